// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// NewAEAD returns the AEAD of a suite. That of SuiteFIPS takes an empty nonce
// (NonceSize is 0), puts a random one in front of the ciphertext and finds it
// there. Where nothing but approved ciphers may carry data, the other suites are
// an error.
func NewAEAD(suite wire.Suite, key []byte) (cipher.AEAD, error) {
	if fips.Only() && suite != wire.SuiteFIPS {
		return nil, fmt.Errorf("cipher suite %d (%s) is not approved in FIPS mode", uint8(suite), suite)
	}
	switch suite {
	case wire.SuiteChaCha:
		return chacha20poly1305.New(key)
	case wire.SuiteAES, wire.SuiteFIPS:
		if len(key) != 32 {
			return nil, fmt.Errorf("key has %d bytes, want 32", len(key))
		}
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		if suite == wire.SuiteFIPS {
			return cipher.NewGCMWithRandomNonce(b)
		}
		return cipher.NewGCM(b)
	default:
		return nil, fmt.Errorf("cipher suite %d is not supported", uint8(suite))
	}
}

// Overhead returns by how many bytes a packet of a suite is longer than its body:
// header, tag and, in SuiteFIPS, nonce.
func Overhead(suite wire.Suite) int {
	if suite == wire.SuiteFIPS {
		return wire.Overhead + 12
	}
	return wire.Overhead
}

// MaxPackets returns how many packets one key of a suite may seal, and so the
// first counter that nobody sends or accepts. The random nonces of SuiteFIPS may
// collide: SP 800-38D, section 8.3, ends at 2^32. AES with the counter as nonce
// leaks at the birthday bound of its blocks: 2^36 packets keep the advantage below
// 2^-40 (RFC 9001, appendix B.1).
func MaxPackets(suite wire.Suite) uint64 {
	switch suite {
	case wire.SuiteFIPS:
		return 1 << 32
	case wire.SuiteAES:
		return 1 << 36
	default:
		return 1 << 60
	}
}

// RekeyPackets returns after how many packets under one key of a suite new keys
// are due, whatever their age. At 2^22 random nonces a collision has the
// probability 2^-53.
func RekeyPackets(suite wire.Suite) uint64 {
	switch suite {
	case wire.SuiteFIPS:
		return 1 << 22
	case wire.SuiteAES:
		return 1 << 28
	default:
		return 1 << 48
	}
}

// HasAES reports whether this processor has instructions for AES and for GCM's
// multiplication, without which AES-256-GCM is slower than ChaCha20-Poly1305 and
// not in constant time.
func HasAES() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ ||
		cpu.ARM64.HasAES && cpu.ARM64.HasPMULL ||
		cpu.S390X.HasAES && cpu.S390X.HasAESGCM
}

// sealOnce seals with a key that is used for this one message (nonce 0) or for a
// sequence of numbered messages (nonce seq). SuiteFIPS has a random nonce in front
// of the ciphertext instead, as in packets; there aad MUST hold seq, and does: the
// only numbered messages are candidates, whose aad is their header.
func sealOnce(suite wire.Suite, key []byte, seq uint64, plain, aad []byte) ([]byte, error) {
	a, err := NewAEAD(suite, key)
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, seqNonce(seq)[:a.NonceSize()], plain, aad), nil
}

func openOnce(suite wire.Suite, key []byte, seq uint64, sealed, aad []byte) ([]byte, error) {
	a, err := NewAEAD(suite, key)
	if err != nil {
		return nil, err
	}
	return a.Open(nil, seqNonce(seq)[:a.NonceSize()], sealed, aad)
}

func seqNonce(seq uint64) []byte {
	n := make([]byte, 12)
	for i := range 8 {
		n[11-i] = byte(seq >> (8 * i))
	}
	return n
}
