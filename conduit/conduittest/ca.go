// SPDX-License-Identifier: Apache-2.0

package conduittest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// MeshID is the mesh of all certificates made here.
const MeshID = "test-mesh"

// CA is a mesh's certificate authority: a root and an intermediate, as a hub has.
type CA struct {
	root, inter       *x509.Certificate
	rootKey, interKey ed25519.PrivateKey
	serial            int64
}

// NewCA makes a certificate authority that is valid for an hour.
func NewCA() (*CA, error) {
	ca := &CA{}
	var err error
	if ca.root, ca.rootKey, err = ca.authority("test root", nil, nil); err != nil {
		return nil, err
	}
	ca.inter, ca.interKey, err = ca.authority("test intermediate", ca.root, ca.rootKey)
	return ca, err
}

func (ca *CA) authority(name string, parent *x509.Certificate, parentKey ed25519.PrivateKey) (*x509.Certificate, ed25519.PrivateKey, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	ca.serial++
	t := &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, parentKey)
	if err != nil {
		return nil, nil, err
	}
	c, err := x509.ParseCertificate(der)
	return c, key, err
}

// Roots returns the pool with the root.
func (ca *CA) Roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.root)
	return p
}

// Root returns the root certificate.
func (ca *CA) Root() *x509.Certificate { return ca.root }

// Issue returns a certificate for keys, valid from a minute ago for life, which
// may be negative for one that has expired. v6 may be the zero Addr.
func (ca *CA) Issue(keys *identity.Keys, name string, v4, v6 netip.Addr, life time.Duration) (*identity.Certificate, error) {
	ca.serial++
	now := time.Now()
	c := &identity.Certificate{
		MeshID: MeshID, Name: name, Virtual4: v4, Virtual6: v6,
		Ed25519: keys.Ed25519.Public().(ed25519.PublicKey), X25519: keys.X25519.PublicKey(),
		Serial: big.NewInt(ca.serial), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(life),
	}
	if life < 0 {
		c.NotBefore = c.NotAfter.Add(-time.Hour)
	}
	t, err := c.Template()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.inter, c.Ed25519, ca.interKey)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return identity.ParseCertificate([][]byte{der, ca.inter.Raw})
}
