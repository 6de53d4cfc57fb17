// SPDX-License-Identifier: Apache-2.0

// Package ca is the mesh's certificate authority: a root that may be kept
// offline, an intermediate that signs the nodes' certificates, and the TLS
// configuration of the node port. A node's certificate is built from what the
// store says of it and from nothing that the node sent.
package ca

import (
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
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

const (
	// NodeLifetime is how long a node's certificate is good for.
	NodeLifetime = 7 * 24 * time.Hour
	// backdate lets machines in whose clock is behind, as that of a robot without
	// a battery-backed one often is, and keeps the mesh together while the hub's own
	// clock is wrong by two hours: certificates made then are good at the right time.
	backdate = 3 * time.Hour

	rootLifetime         = 30 * 365 * 24 * time.Hour
	intermediateLifetime = 10 * 365 * 24 * time.Hour
)

// AuditKeyFile is the name of the key, beside the authority's folder, that signs the
// checkpoints of the audit log.
const AuditKeyFile = "audit.key"

// CA signs. It is safe for concurrent use.
type CA struct {
	// MeshID is derived from the root's key.
	MeshID string
	// Root is the root's certificate.
	Root *x509.Certificate

	dir    string
	issuer atomic.Pointer[issuer]
}

// issuer is the intermediate that signs now.
type issuer struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// Open reads the authority in dir, or makes one where there is none. It needs
// root.crt and the intermediate: intermediate.pem, which a rotation writes, or
// intermediate.crt and intermediate.key. root.key signs intermediates only, so it
// may be moved offline.
func Open(dir string) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make CA directory: %w", err)
	}
	if !exists(filepath.Join(dir, "intermediate.crt")) && !exists(filepath.Join(dir, rotatedFile)) {
		if err := create(dir); err != nil {
			return nil, err
		}
	}
	c := &CA{dir: dir}
	var err error
	if c.Root, err = readCert(filepath.Join(dir, "root.crt")); err != nil {
		return nil, missing(err)
	}
	i, err := readIssuer(dir)
	if err != nil {
		return nil, missing(err)
	}
	if err := i.cert.CheckSignatureFrom(c.Root); err != nil {
		return nil, fmt.Errorf("CA in %s: intermediate is not signed by the root: %w", dir, err)
	}
	if !i.key.Public().(ed25519.PublicKey).Equal(i.cert.PublicKey) {
		return nil, fmt.Errorf("CA in %s: the key of the intermediate does not belong to its certificate", dir)
	}
	if time.Now().After(i.cert.NotAfter) {
		return nil, fmt.Errorf("%w: CA in %s: on %s", ErrExpired, dir, i.cert.NotAfter.Format(time.DateOnly))
	}
	c.issuer.Store(i)
	c.MeshID = meshID(c.Root)
	if err := c.CheckClock(time.Now()); err != nil {
		return nil, fmt.Errorf("CA in %s: %w", dir, err)
	}
	return c, nil
}

// CheckClock returns ErrClock where now lies before the intermediate was made: what
// it signed then would be good for nobody, and tokens that have expired would not
// look so.
func (c *CA) CheckClock(now time.Time) error {
	if made := c.Intermediate().NotBefore; now.Before(made) {
		return fmt.Errorf("%w: it shows %s, but the authority is from %s", ErrClock,
			now.UTC().Format(time.DateTime), made.Add(backdate).UTC().Format(time.DateTime))
	}
	return nil
}

// missing adds ErrMissing where a file is not there.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return err
}

var (
	// ErrExpired is returned where the intermediate has expired.
	ErrExpired = errors.New("intermediate certificate has expired")
	// ErrMissing is returned where a file is gone that a hub which has run before
	// needs.
	ErrMissing = errors.New("a file of the hub is missing")
	// ErrClock is returned where the machine's clock shows a time before the
	// authority was made.
	ErrClock = errors.New("the clock is wrong")
)

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func readIssuer(dir string) (*issuer, error) {
	i := &issuer{}
	var err error
	if name := filepath.Join(dir, rotatedFile); exists(name) {
		if i.cert, err = readCert(name); err == nil {
			i.key, err = ReadKey(name)
		}
		return i, err
	}
	if i.cert, err = readCert(filepath.Join(dir, "intermediate.crt")); err == nil {
		i.key, err = ReadKey(filepath.Join(dir, "intermediate.key"))
	}
	return i, err
}

// Intermediate returns the certificate that signs now.
func (c *CA) Intermediate() *x509.Certificate { return c.issuer.Load().cert }

// RootKeyPresent reports whether the root's key lies beside the rest.
func (c *CA) RootKeyPresent() bool { return exists(filepath.Join(c.dir, "root.key")) }

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
	x, err := fips.NewX25519PublicKey(n.X25519)
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
	i := c.issuer.Load()
	der, err := x509.CreateCertificate(rand.Reader, t, i.cert, ed25519.PublicKey(n.Ed25519), i.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", n.ID.Short(), err)
	}
	return identity.MarshalChainPEM([][]byte{der, i.cert.Raw}), nil
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
	if err := WriteKey(filepath.Join(dir, "root.key"), rootKey); err != nil {
		return err
	}
	if err := WriteKey(filepath.Join(dir, "intermediate.key"), key); err != nil {
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
		return fmt.Errorf("%w: %s, but this hub has run before", ErrMissing, filepath.Join(dir, "intermediate.crt"))
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

// pemBlock returns the first block of a type in a file that may hold a secret.
func pemBlock(name, typ string) ([]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	for {
		var blk *pem.Block
		if blk, text = pem.Decode(text); blk == nil {
			return nil, fmt.Errorf("read %s: no %s in it", name, typ)
		}
		if blk.Type == typ {
			return blk.Bytes, nil
		}
	}
}

func readCert(name string) (*x509.Certificate, error) {
	der, err := pemBlock(name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return cert, nil
}

// ReadKey reads an Ed25519 key from a PEM file that nobody else may read.
func ReadKey(name string) (ed25519.PrivateKey, error) {
	if _, err := identity.ReadSecret(name); err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	der, err := pemBlock(name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	ed, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read %s: is a %T", name, k)
	}
	return ed, nil
}

func keyPEM(k ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("marshal key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// WriteKey writes an Ed25519 key for ReadKey, atomically and with mode 0600.
func WriteKey(name string, k ed25519.PrivateKey) error {
	text, err := keyPEM(k)
	if err != nil {
		return err
	}
	return identity.WriteFile(name, text, 0o600)
}
