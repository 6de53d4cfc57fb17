// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Token is a join token as the hub keeps it: without its secret.
type Token struct {
	ID         string
	SecretHash [32]byte
	MaxUses    uint32
	Uses       uint32
	Expires    time.Time
	Tags       []string
	CreatedBy  string
}

// CreateToken stores a new token.
func (s *Store) CreateToken(ctx context.Context, k Token) error {
	return s.update(ctx, func(t *tx) error {
		_, err := t.exec(`INSERT INTO join_tokens (id, secret_sha256, max_uses, expires, tags, created_by, created)
			VALUES (?, ?, ?, ?, ?, ?, ?)`, k.ID, k.SecretHash[:], k.MaxUses, k.Expires.UnixMicro(),
			strings.Join(k.Tags, ","), k.CreatedBy, time.Now().UnixMicro())
		if err != nil {
			return fmt.Errorf("store token: %w", err)
		}
		return nil
	})
}

// TokenCount returns how many tokens were ever made.
func (s *Store) TokenCount(ctx context.Context) (n int, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT count(*) FROM join_tokens`).Scan(&n)
	return n, err
}

// RevokeToken makes a token useless at once.
func (s *Store) RevokeToken(ctx context.Context, id string) error {
	return s.update(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE join_tokens SET revoked_at = ? WHERE id = ? AND revoked_at = 0`, time.Now().UnixMicro(), id)
		if err == nil && n == 0 {
			err = fmt.Errorf("token %s: %w", id, ErrNotFound)
		}
		return err
	})
}

// CheckSecret returns ErrTokenInvalid unless the token exists and hash is that of
// its secret. It reads only, so that guesses never reach the writer.
func (s *Store) CheckSecret(ctx context.Context, id string, hash [32]byte) error {
	var want []byte
	err := s.read.QueryRowContext(ctx, `SELECT secret_sha256 FROM join_tokens WHERE id = ?`, id).Scan(&want)
	if errors.Is(err, sql.ErrNoRows) {
		want, err = make([]byte, len(hash)), nil
		want[0] = ^hash[0] // same work, never equal
	}
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	if subtle.ConstantTimeCompare(want, hash[:]) != 1 {
		return ErrTokenInvalid
	}
	return nil
}

type tokenRow struct {
	tags    []string
	expires int64
}

// token reads a token whose secret is right and that is neither revoked nor
// expired at now.
func (t *tx) token(id string, hash [32]byte, now time.Time) (tokenRow, error) {
	var (
		r       tokenRow
		want    []byte
		tags    string
		revoked int64
	)
	err := t.row(`SELECT secret_sha256, expires, revoked_at, tags FROM join_tokens WHERE id = ?`, id).
		Scan(&want, &r.expires, &revoked, &tags)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return r, ErrTokenInvalid
	case err != nil:
		return r, fmt.Errorf("read token: %w", err)
	case subtle.ConstantTimeCompare(want, hash[:]) != 1:
		return r, ErrTokenInvalid
	case revoked != 0:
		return r, ErrTokenRevoked
	case r.expires <= now.UnixMicro():
		return r, ErrTokenExpired
	}
	if tags != "" {
		r.tags = strings.Split(tags, ",")
	}
	return r, nil
}

// consume takes one use of a token. The condition stands in the UPDATE itself, so
// no interleaving can use a token more often than it allows.
func (t *tx) consume(id string, now time.Time) error {
	n, err := t.exec(`UPDATE join_tokens SET uses = uses + 1
		WHERE id = ? AND uses < max_uses AND revoked_at = 0 AND expires > ?`, id, now.UnixMicro())
	if err != nil {
		return fmt.Errorf("use token: %w", err)
	}
	if n == 0 {
		return ErrTokenUsedUp
	}
	return nil
}
