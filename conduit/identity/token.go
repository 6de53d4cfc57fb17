// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// ErrToken is returned for text that is no join token.
var ErrToken = errors.New("malformed join token")

const (
	tokenPrefix   = "bxt1"
	tokenIDLen    = 16 // characters of base64url: 12 random bytes
	tokenSecLen   = 43 // 32 random bytes
	tokenPinLen   = 43 // SHA-256
	maxMeshIDLen  = 63
	maxTokenBytes = 5 + 17 + 44 + 44 + 64
)

// Token lets a machine join a mesh: "bxt1.<id>.<secret>.<pin>[.<mesh id>]". The
// pin authenticates the hub to the machine, the secret the machine to the hub.
type Token struct {
	// ID names the token in the hub's records; it is no secret.
	ID string
	// Secret is 32 random bytes in base64url.
	Secret string
	// Pin is the Pin of the mesh's root certificate.
	Pin string
	// MeshID names the mesh; may be empty.
	MeshID string
}

// NewToken makes a token with a fresh id and secret.
func NewToken(pin, meshID string) (Token, error) {
	var b [44]byte
	if _, err := rand.Read(b[:]); err != nil {
		return Token{}, fmt.Errorf("generate token: %w", err)
	}
	enc := base64.RawURLEncoding
	return Token{ID: enc.EncodeToString(b[:12]), Secret: enc.EncodeToString(b[12:]), Pin: pin, MeshID: meshID}, nil
}

// ParseToken reads a token. The errors never repeat any part of the text.
func ParseToken(s string) (Token, error) {
	if len(s) > maxTokenBytes {
		return Token{}, fmt.Errorf("%w: too long", ErrToken)
	}
	f := strings.Split(s, ".")
	if len(f) != 4 && len(f) != 5 {
		return Token{}, fmt.Errorf("%w: want 4 or 5 parts, have %d", ErrToken, len(f))
	}
	if f[0] != tokenPrefix {
		return Token{}, fmt.Errorf("%w: does not start with %s", ErrToken, tokenPrefix)
	}
	t := Token{ID: f[1], Secret: f[2], Pin: f[3]}
	for _, p := range []struct {
		what, text string
		chars      int
	}{{"id", t.ID, tokenIDLen}, {"secret", t.Secret, tokenSecLen}, {"pin", t.Pin, tokenPinLen}} {
		if len(p.text) != p.chars {
			return Token{}, fmt.Errorf("%w: %s has %d characters, want %d", ErrToken, p.what, len(p.text), p.chars)
		}
		// The decoder skips line ends, even when strict.
		if _, err := base64.RawURLEncoding.Strict().DecodeString(p.text); err != nil || strings.ContainsAny(p.text, "\r\n") {
			return Token{}, fmt.Errorf("%w: %s is not base64url", ErrToken, p.what)
		}
	}
	if len(f) == 5 {
		if !ValidName(f[4]) || len(f[4]) > maxMeshIDLen {
			return Token{}, fmt.Errorf("%w: bad mesh id", ErrToken)
		}
		t.MeshID = f[4]
	}
	return t, nil
}

// String returns the token's text, secret included: never log it.
func (t Token) String() string {
	s := strings.Join([]string{tokenPrefix, t.ID, t.Secret, t.Pin}, ".")
	if t.MeshID != "" {
		s += "." + t.MeshID
	}
	return s
}

// SecretHash is what the hub stores of the secret: SHA-256. The secret has 256
// bits of entropy, so no slow hash is needed.
func (t Token) SecretHash() [32]byte { return sha256.Sum256([]byte(t.Secret)) }
