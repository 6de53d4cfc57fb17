// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// The intermediate is replaced in two steps, since only the root can sign the new
// one and its key may be elsewhere. The new key never leaves the hub, the root's
// never comes to it.
const (
	nextKeyFile = "intermediate.key.next"
	// rotatedFile has certificate and key in one, so that they change at once.
	rotatedFile = "intermediate.pem"
)

// ErrRotation is returned for a certificate that cannot become the intermediate.
var ErrRotation = errors.New("cannot become the intermediate")

// BeginRotation makes the key of the next intermediate and returns its request, as
// PEM. Called again before Install, it returns another request for the same key.
func (c *CA) BeginRotation() ([]byte, error) {
	name := filepath.Join(c.dir, nextKeyFile)
	key, err := ReadKey(name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return nil, fmt.Errorf("generate key: %w", err)
		}
		err = WriteKey(name, key)
	}
	if err != nil {
		return nil, err
	}
	t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "Bauxite intermediate " + c.MeshID}}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, fmt.Errorf("create request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// SignIntermediate signs a request of BeginRotation with the root's key, where that
// is kept, and returns the certificate as PEM. Only the request's key is used.
func SignIntermediate(root *x509.Certificate, key ed25519.PrivateKey, request []byte, now time.Time) ([]byte, error) {
	if !key.Public().(ed25519.PublicKey).Equal(root.PublicKey) {
		return nil, errors.New("sign intermediate: the key is not the root's")
	}
	blk, _ := pem.Decode(request)
	if blk == nil || blk.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("sign intermediate: no certificate request")
	}
	csr, err := x509.ParseCertificateRequest(blk.Bytes)
	if err != nil {
		return nil, fmt.Errorf("sign intermediate: %w", err)
	}
	pub, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok || csr.CheckSignature() != nil {
		return nil, errors.New("sign intermediate: the request is not signed by an Ed25519 key")
	}
	t, err := caTemplate("Bauxite intermediate "+meshID(root), now, intermediateLifetime, 0)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, root, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign intermediate: %w", err)
	}
	return identity.MarshalChainPEM([][]byte{der}), nil
}

// ReadRoot reads the root's certificate from a file.
func ReadRoot(name string) (*x509.Certificate, error) { return readCert(name) }

// CheckIntermediate reads a certificate that is to be installed. Errors:
// ErrRotation.
func (c *CA) CheckIntermediate(text []byte) (*x509.Certificate, error) {
	bad := func(why string) (*x509.Certificate, error) { return nil, fmt.Errorf("%w: %s", ErrRotation, why) }
	blk, _ := pem.Decode(text)
	if blk == nil || blk.Type != "CERTIFICATE" {
		return bad("no certificate")
	}
	cert, err := x509.ParseCertificate(blk.Bytes)
	if err != nil {
		return bad("malformed certificate")
	}
	key, err := ReadKey(filepath.Join(c.dir, nextKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return bad("no rotation was begun")
	}
	if err != nil {
		return nil, err
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	switch {
	case !ok || !pub.Equal(key.Public()):
		return bad("it is for another key than that of the rotation that was begun")
	case cert.CheckSignatureFrom(c.Root) != nil:
		return bad("it is not signed by this mesh's root")
	case !cert.IsCA || !cert.MaxPathLenZero:
		return bad("it is no intermediate that signs nodes only")
	case !time.Now().Add(24 * time.Hour).Before(cert.NotAfter):
		return bad("it expires within a day")
	case time.Now().Before(cert.NotBefore):
		return bad("it is not valid yet")
	}
	return cert, nil
}

// Install puts the intermediate of CheckIntermediate into use. What the old one has
// signed stays valid; its key is destroyed.
func (c *CA) Install(cert *x509.Certificate) error {
	key, err := ReadKey(filepath.Join(c.dir, nextKeyFile))
	if err != nil {
		return err
	}
	text, err := keyPEM(key)
	if err != nil {
		return err
	}
	text = slices.Concat(identity.MarshalChainPEM([][]byte{cert.Raw}), text)
	if err := identity.WriteFile(filepath.Join(c.dir, rotatedFile), text, 0o600); err != nil {
		return err
	}
	c.issuer.Store(&issuer{cert: cert, key: key})
	for _, f := range []string{nextKeyFile, "intermediate.key", "intermediate.crt"} {
		if err := os.Remove(filepath.Join(c.dir, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove old intermediate: %w", err)
		}
	}
	return nil
}
