// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
)

// oidX25519 marks the certificate extension with the node's X25519 public key,
// a bare OCTET STRING of 32 bytes. The arc is private to this project.
var oidX25519 = asn1.ObjectIdentifier{1, 3, 9999, 6610, 1}

// MaxChain bounds the certificates of a chain (leaf and intermediates) and
// MaxCertificate the DER bytes of each.
const (
	MaxChain       = 3
	MaxCertificate = 2048
)

// ErrCertificate is returned for a certificate that is not a node's, or that
// the mesh's root does not vouch for.
var ErrCertificate = errors.New("bad node certificate")

// Certificate is what the hub says of a node. Chain holds the DER certificates,
// the leaf first, without the root.
type Certificate struct {
	ID         PeerID
	Name       string
	MeshID     string
	Virtual4   netip.Addr
	Virtual6   netip.Addr
	Ed25519    ed25519.PublicKey
	X25519     *ecdh.PublicKey
	Serial     *big.Int
	NotBefore  time.Time
	NotAfter   time.Time
	Chain      [][]byte
	leafParsed *x509.Certificate
}

// Template returns the X.509 template for c, to be signed by the hub's
// intermediate. It reads MeshID, Name, the addresses, both public keys, Serial
// and the validity; the PeerID is derived.
func (c *Certificate) Template() (*x509.Certificate, error) {
	if len(c.Ed25519) != ed25519.PublicKeySize || c.X25519 == nil || !c.Virtual4.Is4() {
		return nil, fmt.Errorf("%w: template lacks a key or an address", ErrCertificate)
	}
	if c.Virtual6.IsValid() && (!c.Virtual6.Is6() || c.Virtual6.Is4In6() || c.Virtual6.Zone() != "") {
		return nil, fmt.Errorf("%w: %s is no plain IPv6 address", ErrCertificate, c.Virtual6)
	}
	x, err := asn1.Marshal(c.X25519.Bytes())
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:    c.Serial,
		Subject:         pkix.Name{CommonName: c.Name},
		NotBefore:       c.NotBefore,
		NotAfter:        c.NotAfter,
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:            []*url.URL{SPIFFE(c.MeshID, NewPeerID(c.Ed25519, c.X25519.Bytes()))},
		IPAddresses:     []net.IP{c.Virtual4.AsSlice()},
		ExtraExtensions: []pkix.Extension{{Id: oidX25519, Value: x}},
	}
	if c.Virtual6.IsValid() {
		t.IPAddresses = append(t.IPAddresses, c.Virtual6.AsSlice())
	}
	return t, nil
}

// SPIFFE returns the identity URI of a node: spiffe://<mesh id>/node/<peer id>.
func SPIFFE(meshID string, id PeerID) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: meshID, Path: "/node/" + id.String()}
}

// ParseCertificate reads a chain, leaf first, and checks that the leaf is
// consistent: exactly one URI SAN whose PeerID is the hash of both keys, one
// IPv4 and at most one IPv6 SAN. It does not check who signed it.
func ParseCertificate(chain [][]byte) (*Certificate, error) {
	if len(chain) == 0 || len(chain) > MaxChain {
		return nil, fmt.Errorf("%w: chain of %d", ErrCertificate, len(chain))
	}
	for _, der := range chain {
		if len(der) > MaxCertificate {
			return nil, fmt.Errorf("%w: %d bytes", ErrCertificate, len(der))
		}
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	c, err := FromX509(leaf)
	if err != nil {
		return nil, err
	}
	c.Chain = chain
	return c, nil
}

// FromX509 is ParseCertificate for a leaf that is parsed already, as in a TLS
// connection state. Chain is the leaf alone.
func FromX509(leaf *x509.Certificate) (*Certificate, error) {
	bad := func(why string) (*Certificate, error) { return nil, fmt.Errorf("%w: %s", ErrCertificate, why) }
	c := &Certificate{
		Name: leaf.Subject.CommonName, Serial: leaf.SerialNumber,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		Chain: [][]byte{leaf.Raw}, leafParsed: leaf,
	}
	var ok bool
	if c.Ed25519, ok = leaf.PublicKey.(ed25519.PublicKey); !ok {
		return bad("key is not Ed25519")
	}
	if leaf.IsCA {
		return bad("is a CA")
	}
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(oidX25519) {
			continue
		}
		var raw []byte
		if rest, err := asn1.Unmarshal(e.Value, &raw); err != nil || len(rest) != 0 {
			return bad("malformed X25519 extension")
		}
		k, err := fips.NewX25519PublicKey(raw)
		if err != nil {
			return bad("malformed X25519 key")
		}
		c.X25519 = k
	}
	if c.X25519 == nil {
		return bad("no X25519 key")
	}
	c.ID = NewPeerID(c.Ed25519, c.X25519.Bytes())
	if len(leaf.URIs) != 1 {
		return bad("want exactly one URI name")
	}
	u := leaf.URIs[0]
	c.MeshID = u.Host
	if u.String() != SPIFFE(c.MeshID, c.ID).String() || c.MeshID == "" {
		return bad("URI name does not match the keys")
	}
	if len(leaf.DNSNames)+len(leaf.EmailAddresses) != 0 {
		return bad("names beside the URI")
	}
	for _, ip := range leaf.IPAddresses {
		a, ok := netip.AddrFromSlice(ip)
		a = a.Unmap()
		switch {
		case ok && a.Is4() && !c.Virtual4.IsValid():
			c.Virtual4 = a
		case ok && a.Is6() && !c.Virtual6.IsValid():
			c.Virtual6 = a
		default:
			return bad("unexpected address")
		}
	}
	if !c.Virtual4.IsValid() {
		return bad("no virtual address")
	}
	return c, nil
}

// Verify checks that c's chain leads to one of roots and is valid at now. A
// Certificate that was not parsed has no chain and fails.
func (c *Certificate) Verify(roots *x509.CertPool, now time.Time) error {
	if c.leafParsed == nil || len(c.Chain) == 0 {
		return fmt.Errorf("%w: no chain", ErrCertificate)
	}
	inter := x509.NewCertPool()
	for _, der := range c.Chain[1:] {
		ic, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("%w: intermediate: %w", ErrCertificate, err)
		}
		inter.AddCert(ic)
	}
	_, err := c.leafParsed.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return nil
}

// ParseChainPEM splits PEM text into DER certificates, in order: at most
// MaxChain and the root. Other blocks, headers, and text outside of blocks are an
// error. So is a damaged block, which must not make the next one the leaf.
func ParseChainPEM(text []byte) ([][]byte, error) {
	var out [][]byte
	for len(bytes.TrimSpace(text)) > 0 {
		text = bytes.TrimSpace(text)
		blk, rest := pem.Decode(text)
		// Decode skips what it cannot read up to the next whole block.
		if blk == nil || !bytes.HasPrefix(text, pemBegin) || bytes.Count(text[:len(text)-len(rest)], pemBegin) != 1 {
			return nil, fmt.Errorf("%w: text that is no PEM", ErrCertificate)
		}
		if blk.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: unexpected %s block", ErrCertificate, blk.Type)
		}
		if len(blk.Headers) > 0 {
			return nil, fmt.Errorf("%w: block with headers", ErrCertificate)
		}
		if len(out) == MaxChain+1 {
			return nil, fmt.Errorf("%w: chain too long", ErrCertificate)
		}
		out = append(out, blk.Bytes)
		text = rest
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrCertificate)
	}
	return out, nil
}

var pemBegin = []byte("-----BEGIN ")

// MarshalChainPEM is the inverse of ParseChainPEM.
func MarshalChainPEM(chain [][]byte) []byte {
	var b bytes.Buffer
	for _, der := range chain {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return b.Bytes()
}

// Pin returns the pin of a certificate: SHA-256 of its SubjectPublicKeyInfo in
// unpadded base64url, 43 characters (the idea of RFC 7469).
func Pin(cert *x509.Certificate) string {
	h := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.RawURLEncoding.EncodeToString(h[:])
}

// ValidName reports whether s can name a node: one DNS label (RFC 1123), lower
// case, at most 63 characters.
func ValidName(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
