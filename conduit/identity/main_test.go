// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/netip"
	"testing"
	"time"
)

// epoch is when the certificates of these tests begin to be valid.
var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// authority is a mesh's root with an intermediate below it.
type authority struct {
	root, inter *x509.Certificate
	key         ed25519.PrivateKey // of inter
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	root, rootKey := newCA(t, "root", nil, nil)
	inter, key := newCA(t, "intermediate", root, rootKey)
	return &authority{root: root, inter: inter, key: key}
}

func newCA(t testing.TB, name string, parent *x509.Certificate, parentKey ed25519.PrivateKey) (*x509.Certificate, ed25519.PrivateKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: epoch, NotAfter: epoch.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	return sign(t, tmpl, parent, pub, parentKey), key
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub ed25519.PublicKey, key ed25519.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (a *authority) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.root)
	return p
}

// issue signs a certificate for keys; spoil may change the template first.
func (a *authority) issue(t testing.TB, keys *Keys, spoil func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c := wanted(keys)
	tmpl, err := c.Template()
	if err != nil {
		t.Fatal(err)
	}
	if spoil != nil {
		spoil(tmpl)
	}
	return sign(t, tmpl, a.inter, c.Ed25519, a.key)
}

// wanted is what a certificate for keys should say.
func wanted(keys *Keys) *Certificate {
	return &Certificate{
		ID: keys.ID(), Name: "robot-1", MeshID: "farm",
		Virtual4: netip.MustParseAddr("10.66.0.1"), Virtual6: netip.MustParseAddr("fd00::1"),
		Ed25519: keys.Ed25519.Public().(ed25519.PublicKey), X25519: keys.X25519.PublicKey(),
		Serial: big.NewInt(7), NotBefore: epoch, NotAfter: epoch.Add(time.Hour),
	}
}

func newKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	return k
}
