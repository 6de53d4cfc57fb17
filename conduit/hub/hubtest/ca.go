// SPDX-License-Identifier: Apache-2.0

package hubtest

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// CA is a root with one intermediate.
type CA struct {
	MeshID       string
	Root         *x509.Certificate
	intermediate *x509.Certificate
	key          ed25519.PrivateKey
}

// NewCA makes the authority of a mesh.
func NewCA(tb testing.TB, meshID string) *CA {
	tb.Helper()
	rootPub, rootKey := newKey(tb)
	root := sign(tb, caTemplate("root"), nil, rootPub, rootKey)
	pub, key := newKey(tb)
	return &CA{MeshID: meshID, Root: root, intermediate: sign(tb, caTemplate("intermediate"), root, pub, rootKey), key: key}
}

// Pin returns the pin of the root.
func (c *CA) Pin() string { return identity.Pin(c.Root) }

// Roots returns a pool that holds the root alone.
func (c *CA) Roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.Root)
	return p
}

// Server returns a certificate for the hub, with the chain that a hub serves. It
// holds no host name.
func (c *CA) Server(tb testing.TB) tls.Certificate {
	tb.Helper()
	pub, key := newKey(tb)
	leaf := sign(tb, &x509.Certificate{
		SerialNumber: serial(tb), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: c.MeshID, Path: "/hub"}},
	}, c.intermediate, pub, c.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, c.intermediate.Raw, c.Root.Raw}, PrivateKey: key}
}

// Node signs t, which needs its keys, name and IPv4 address, and returns the chain.
func (c *CA) Node(tb testing.TB, t identity.Certificate) [][]byte {
	tb.Helper()
	t.MeshID, t.Serial = c.MeshID, serial(tb)
	if t.NotAfter.IsZero() {
		t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	tmpl, err := t.Template()
	if err != nil {
		tb.Fatal(err)
	}
	return [][]byte{sign(tb, tmpl, c.intermediate, t.Ed25519, c.key).Raw, c.intermediate.Raw}
}

// Public returns the public halves of keys.
func Public(keys *identity.Keys) (ed25519.PublicKey, *ecdh.PublicKey) {
	return keys.Ed25519.Public().(ed25519.PublicKey), keys.X25519.PublicKey()
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		// Longer than any node's certificate, also where a test lets weeks pass.
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

// sign signs with key; a nil parent makes the certificate sign itself.
func sign(tb testing.TB, t, parent *x509.Certificate, pub ed25519.PublicKey, key ed25519.PrivateKey) *x509.Certificate {
	tb.Helper()
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

func newKey(tb testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	tb.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return pub, key
}

func serial(tb testing.TB) *big.Int {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 96))
	if err != nil {
		tb.Fatal(err)
	}
	return n
}
