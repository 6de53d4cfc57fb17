// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

// PeerID names a node: SHA-256 over a label, its Ed25519 and its X25519 public
// key. The zero value names nobody.
type PeerID [32]byte

// PeerIDLen is the length of a PeerID as text.
const PeerIDLen = 52

// ErrPeerID is returned for text that is no PeerID.
var ErrPeerID = errors.New("malformed peer id")

// lower-case RFC 4648 base32 without padding: one DNS label, no ambiguous case.
var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewPeerID derives the PeerID of a pair of public keys. Both are 32 bytes.
func NewPeerID(ed ed25519.PublicKey, x25519 []byte) PeerID {
	h := sha256.New()
	h.Write([]byte("bx-id-v1"))
	h.Write(ed)
	h.Write(x25519)
	var id PeerID
	h.Sum(id[:0])
	return id
}

// ParsePeerID reads the 52 characters that String writes. Upper case is
// accepted; a text whose last character carries stray bits is not.
func ParsePeerID(s string) (PeerID, error) {
	var id PeerID
	if len(s) != PeerIDLen {
		return id, fmt.Errorf("%w: %d characters, want %d", ErrPeerID, len(s), PeerIDLen)
	}
	b, err := idEncoding.DecodeString(strings.ToLower(s))
	if err != nil {
		return id, fmt.Errorf("%w: not base32", ErrPeerID)
	}
	copy(id[:], b)
	if id.String() != strings.ToLower(s) {
		return PeerID{}, fmt.Errorf("%w: not canonical", ErrPeerID)
	}
	return id, nil
}

// String returns 52 characters of lower-case base32.
func (id PeerID) String() string { return idEncoding.EncodeToString(id[:]) }

// Short returns the first 8 characters, for logs and tables.
func (id PeerID) Short() string { return id.String()[:8] }

// IsZero reports whether id names nobody.
func (id PeerID) IsZero() bool { return id == PeerID{} }

// Compare orders PeerIDs by their bytes; the lower one initiates sessions.
func (id PeerID) Compare(o PeerID) int { return bytes.Compare(id[:], o[:]) }

// MarshalText implements encoding.TextMarshaler.
func (id PeerID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *PeerID) UnmarshalText(b []byte) error {
	v, err := ParsePeerID(string(b))
	if err == nil {
		*id = v
	}
	return err
}
