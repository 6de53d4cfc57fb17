// SPDX-License-Identifier: Apache-2.0

package fips

import (
	"crypto/ecdh"
	"crypto/rand"
)

// X25519 is not approved by itself. Bauxite uses it as the second half of a
// hybrid whose first half, ML-KEM-768, is: the ML-KEM secret stands first in what
// HKDF extracts, as SP 800-56C r2, section 2, allows. The functions below are
// those of ecdh.X25519 that enforcement would refuse; ECDH itself is not refused.

// GenerateX25519 makes a key from the system's randomness.
func GenerateX25519() (k *ecdh.PrivateKey, err error) {
	Unapproved(func() { k, err = ecdh.X25519().GenerateKey(rand.Reader) })
	return k, err
}

// NewX25519PrivateKey reads a private key of 32 bytes.
func NewX25519PrivateKey(raw []byte) (k *ecdh.PrivateKey, err error) {
	Unapproved(func() { k, err = ecdh.X25519().NewPrivateKey(raw) })
	return k, err
}

// NewX25519PublicKey reads a public key of 32 bytes. It takes points of low order
// too; ECDH with one of them fails.
func NewX25519PublicKey(raw []byte) (k *ecdh.PublicKey, err error) {
	Unapproved(func() { k, err = ecdh.X25519().NewPublicKey(raw) })
	return k, err
}
