// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
)

// Keys are a node's long-lived private keys: Ed25519 for signatures and TLS,
// X25519 for the static half of the key exchange.
type Keys struct {
	Ed25519 ed25519.PrivateKey
	X25519  *ecdh.PrivateKey
}

// GenerateKeys makes fresh keys from the system's randomness.
func GenerateKeys() (*Keys, error) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate ed25519 key: %w", err)
	}
	x, err := fips.GenerateX25519()
	if err != nil {
		return nil, fmt.Errorf("generate x25519 key: %w", err)
	}
	return &Keys{Ed25519: ed, X25519: x}, nil
}

// ID returns the PeerID of the keys.
func (k *Keys) ID() PeerID {
	return NewPeerID(k.Ed25519.Public().(ed25519.PublicKey), k.X25519.PublicKey().Bytes())
}

// CSR returns a PKCS #10 request in DER for the Ed25519 key. It carries the key
// only: the hub reads nothing else of it.
func (k *Keys) CSR() ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k.Ed25519)
	if err != nil {
		return nil, fmt.Errorf("create certificate request: %w", err)
	}
	return der, nil
}

// MarshalPEM returns both private keys as PKCS #8 PEM blocks.
func (k *Keys) MarshalPEM() (ed, x []byte, err error) {
	if ed, err = marshalKey(k.Ed25519); err != nil {
		return nil, nil, err
	}
	x, err = marshalKey(k.X25519)
	return ed, x, err
}

// ParseKeysPEM reads what MarshalPEM wrote.
func ParseKeysPEM(ed, x []byte) (*Keys, error) {
	ek, err := parseKey(ed)
	if err != nil {
		return nil, fmt.Errorf("parse ed25519 key: %w", err)
	}
	xk, err := parseKey(x)
	if err != nil {
		return nil, fmt.Errorf("parse x25519 key: %w", err)
	}
	k := &Keys{}
	var ok bool
	if k.Ed25519, ok = ek.(ed25519.PrivateKey); !ok {
		return nil, fmt.Errorf("parse ed25519 key: is a %T", ek)
	}
	if k.X25519, ok = xk.(*ecdh.PrivateKey); !ok || k.X25519.Curve() != ecdh.X25519() {
		return nil, fmt.Errorf("parse x25519 key: is a %T", xk)
	}
	return k, nil
}

// LoadKeys reads both keys from two PEM files. It refuses files that others can
// read.
func LoadKeys(edFile, xFile string) (*Keys, error) {
	ed, err := ReadSecret(edFile)
	if err != nil {
		return nil, err
	}
	x, err := ReadSecret(xFile)
	if err != nil {
		return nil, err
	}
	return ParseKeysPEM(ed, x)
}

// ErrExposed is returned for a secret that group or others may read.
var ErrExposed = errors.New("secret is readable by others")

const maxSecret = 1 << 20

// ReadSecret reads a file that must be private to its owner: mode 0600 or
// stricter. Limit 1 MiB.
func ReadSecret(name string) ([]byte, error) {
	// What is checked must be what is read, so the name is resolved once.
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(name, fi); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSecret {
		return nil, fmt.Errorf("read %s: larger than 1 MiB", name)
	}
	return b, nil
}

func marshalKey(k any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("marshal private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(b []byte) (any, error) {
	blk, _ := pem.Decode(b)
	if blk == nil || blk.Type != "PRIVATE KEY" {
		return nil, errors.New("no PRIVATE KEY block")
	}
	// One of the two keys is X25519.
	var k any
	var err error
	fips.Unapproved(func() { k, err = x509.ParsePKCS8PrivateKey(blk.Bytes) })
	return k, err
}
