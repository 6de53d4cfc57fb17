// SPDX-License-Identifier: Apache-2.0

// Package ca is the mesh's certificate authority: a root that may be kept
// offline, an intermediate that signs the nodes' certificates, and the TLS
// configuration of the node port. A node's certificate is built from what the
// store says of it and from nothing that the node sent.
package ca

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

const (
	// NodeLifetime is how long a node's certificate is good for.
	NodeLifetime = 7 * 24 * time.Hour
	// backdate lets machines in whose clock is behind, as that of a robot without
	// a battery-backed one often is.
	backdate = time.Hour

	rootLifetime         = 30 * 365 * 24 * time.Hour
	intermediateLifetime = 10 * 365 * 24 * time.Hour
)

// CA signs. It is safe for concurrent use.
type CA struct {
	// MeshID is derived from the root's key.
	MeshID string
	// Root and Intermediate are the certificates.
	Root, Intermediate *x509.Certificate

	key ed25519.PrivateKey // the intermediate's
}

// Open reads the authority in dir, or makes one where there is none. It needs
// root.crt, intermediate.crt and intermediate.key; root.key only to renew the
// intermediate, so it may be moved offline.
func Open(dir string) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make CA directory: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "intermediate.crt")); errors.Is(err, fs.ErrNotExist) {
		if err := create(dir); err != nil {
			return nil, err
		}
	}
	c := &CA{}
	var err error
	if c.Root, err = readCert(filepath.Join(dir, "root.crt")); err != nil {
		return nil, err
	}
	if c.Intermediate, err = readCert(filepath.Join(dir, "intermediate.crt")); err != nil {
		return nil, err
	}
	if c.key, err = readKey(filepath.Join(dir, "intermediate.key")); err != nil {
		return nil, err
	}
	if err := c.Intermediate.CheckSignatureFrom(c.Root); err != nil {
		return nil, fmt.Errorf("CA in %s: intermediate is not signed by the root: %w", dir, err)
	}
	if !c.key.Public().(ed25519.PublicKey).Equal(c.Intermediate.PublicKey) {
		return nil, fmt.Errorf("CA in %s: intermediate.key does not belong to intermediate.crt", dir)
	}
	if time.Now().After(c.Intermediate.NotAfter) {
		return nil, fmt.Errorf("CA in %s: intermediate expired %s", dir, c.Intermediate.NotAfter.Format(time.DateOnly))
	}
	c.MeshID = meshID(c.Root)
	return c, nil
}

func meshID(root *x509.Certificate) string { return meshIDOf(root.RawSubjectPublicKeyInfo) }

// meshIDOf is "bx-" and the first 80 bits of the hash of the root's key: a DNS
// label that nobody has to invent and that two meshes never share.
func meshIDOf(spki []byte) string {
	h := sha256.Sum256(spki)
	return "bx-" + strings.ToLower(base32.StdEncoding.EncodeToString(h[:10]))
}

// Pin is what join tokens carry of the root.
func (c *CA) Pin() string { return identity.Pin(c.Root) }

// RootPEM returns the root certificate as PEM.
func (c *CA) RootPEM() []byte { return identity.MarshalChainPEM([][]byte{c.Root.Raw}) }

// IssueNode signs the certificate of n and returns the chain as PEM, without the
// root.
func (c *CA) IssueNode(n store.Node, serial []byte, now, notAfter time.Time) ([]byte, error) {
	x, err := ecdh.X25519().NewPublicKey(n.X25519)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", n.ID.Short(), err)
	}
	t, err := (&identity.Certificate{
		Name: n.Name, MeshID: c.MeshID, Virtual4: n.Virtual4, Virtual6: n.Virtual6,
		Ed25519: ed25519.PublicKey(n.Ed25519), X25519: x, Serial: new(big.Int).SetBytes(serial),
		NotBefore: now.Add(-backdate), NotAfter: notAfter,
	}).Template()
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", n.ID.Short(), err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, c.Intermediate, ed25519.PublicKey(n.Ed25519), c.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", n.ID.Short(), err)
	}
	return identity.MarshalChainPEM([][]byte{der, c.Intermediate.Raw}), nil
}

// NewSerial returns a random positive serial number of 16 bytes.
func NewSerial() ([]byte, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("generate serial: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and always 16 bytes long
	return b, nil
}

// create makes both authorities. intermediate.crt comes last: while it is
// missing, the next start makes all anew.
func create(dir string) error {
	if err := refuseUsed(dir); err != nil {
		return err
	}
	rootPub, rootKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("generate root key: %w", err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("generate intermediate key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(rootPub)
	if err != nil {
		return fmt.Errorf("create root: %w", err)
	}
	id, now := meshIDOf(spki), time.Now()
	root, err := caTemplate("Bauxite root "+id, now, rootLifetime, 1)
	if err != nil {
		return err
	}
	inter, err := caTemplate("Bauxite intermediate "+id, now, intermediateLifetime, 0)
	if err != nil {
		return err
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootPub, rootKey)
	if err != nil {
		return fmt.Errorf("create root: %w", err)
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return fmt.Errorf("create root: %w", err)
	}
	interDER, err := x509.CreateCertificate(rand.Reader, inter, root, pub, rootKey)
	if err != nil {
		return fmt.Errorf("create intermediate: %w", err)
	}
	if err := writeKey(filepath.Join(dir, "root.key"), rootKey); err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, "intermediate.key"), key); err != nil {
		return err
	}
	if err := identity.WriteFile(filepath.Join(dir, "root.crt"), identity.MarshalChainPEM([][]byte{rootDER}), 0o600); err != nil {
		return err
	}
	return identity.WriteFile(filepath.Join(dir, "intermediate.crt"), identity.MarshalChainPEM([][]byte{interDER}), 0o600)
}

// refuseUsed refuses to make an authority in a data directory that has a
// database: there are nodes that trust the old root.
func refuseUsed(dir string) error {
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "dispatch.db")); err == nil {
		return fmt.Errorf("CA in %s: intermediate.crt is missing, but this hub has run before: restore it from a backup", dir)
	}
	return nil
}

func caTemplate(name string, now time.Time, life time.Duration, pathLen int) (*x509.Certificate, error) {
	serial, err := NewSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
		MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0,
	}, nil
}

func readCert(name string) (*x509.Certificate, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	chain, err := identity.ParseChainPEM(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return cert, nil
}

func readKey(name string) (ed25519.PrivateKey, error) {
	text, err := identity.ReadSecret(name)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	blk, _ := pem.Decode(text)
	if blk == nil {
		return nil, fmt.Errorf("read %s: no PEM", name)
	}
	k, err := x509.ParsePKCS8PrivateKey(blk.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	ed, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read %s: is a %T", name, k)
	}
	return ed, nil
}

func writeKey(name string, k ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return fmt.Errorf("marshal %s: %w", name, err)
	}
	return identity.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
