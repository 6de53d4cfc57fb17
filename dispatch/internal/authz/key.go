// SPDX-License-Identifier: Apache-2.0

package authz

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// ErrKey is returned for text that is no API key.
var ErrKey = errors.New("malformed API key")

const (
	keyPrefix = "bxk1"
	keyIDLen  = 16 // characters of base32: 10 random bytes
	secretLen = 43 // characters of base64url: 32 random bytes
)

// An id is typed by people and begins with neither a hyphen nor a capital.
var keyIDs = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Key is an API key: "bxk1.<id>.<secret>". The hub keeps the hash of the secret.
type Key struct {
	// ID names the key in the hub's records; it is no secret.
	ID string
	// Secret is 32 random bytes in base64url.
	Secret string
}

// NewKey makes a key.
func NewKey() (Key, error) {
	var id [10]byte
	if _, err := rand.Read(id[:]); err != nil {
		return Key{}, fmt.Errorf("generate API key: %w", err)
	}
	secret, err := NewSecret()
	return Key{ID: keyIDs.EncodeToString(id[:]), Secret: secret}, err
}

// NewSecret returns 256 random bits in base64url.
func NewSecret() (string, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("generate secret: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b[:]), nil
}

// ParseKey reads a key. The errors never repeat any part of the text.
func ParseKey(s string) (Key, error) {
	// The length comes first, so that nobody makes us split a megabyte.
	if len(s) != len(keyPrefix)+1+keyIDLen+1+secretLen {
		return Key{}, fmt.Errorf("%w: want bxk1.<id>.<secret>", ErrKey)
	}
	f := strings.Split(s, ".")
	if len(f) != 3 || f[0] != keyPrefix || !ValidKeyID(f[1]) || !ValidSecret(f[2]) {
		return Key{}, fmt.Errorf("%w: want bxk1.<id>.<secret>", ErrKey)
	}
	return Key{ID: f[1], Secret: f[2]}, nil
}

// ValidKeyID reports whether s looks like the id of a key.
func ValidKeyID(s string) bool {
	return len(s) == keyIDLen && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// ValidSecret reports whether s looks like what NewSecret makes.
func ValidSecret(s string) bool {
	if len(s) != secretLen || strings.ContainsAny(s, "\r\n") { // the decoder skips line ends
		return false
	}
	_, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil
}

// String returns the key's text, secret included: never log it.
func (k Key) String() string { return strings.Join([]string{keyPrefix, k.ID, k.Secret}, ".") }

// Hash is what the hub stores of the secret.
func (k Key) Hash() [32]byte { return HashSecret(k.Secret) }

// HashSecret returns the SHA-256 of a secret. With 256 bits of entropy no slow
// hash is needed.
func HashSecret(secret string) [32]byte { return sha256.Sum256([]byte(secret)) }

// Match reports whether the key has the secret of the stored hash, in constant
// time.
func (k Key) Match(stored []byte) bool {
	h := k.Hash()
	return subtle.ConstantTimeCompare(h[:], stored) == 1
}
