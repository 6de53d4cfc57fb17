// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// Token is a join token as the hub keeps it: without its secret.
type Token struct {
	ID         string
	SecretHash [32]byte
	MaxUses    uint32
	Uses       uint32
	Created    time.Time
	Expires    time.Time
	Revoked    bool
	Tags       []string
	Site       string
	// Ephemeral nodes go when they have been away for long.
	Ephemeral bool
	// NeedsApproval puts the nodes into the approval queue.
	NeedsApproval bool
	// RequireCSR refuses nodes whose key the hub would have to make.
	RequireCSR bool
	CreatedBy  string
	Note       string
}

func tokenOf(r *db.JoinToken) Token {
	return Token{
		ID: r.ID, SecretHash: [32]byte(r.SecretSha256), MaxUses: uint32(r.MaxUses), Uses: uint32(r.Uses),
		Created: time.UnixMicro(r.Created), Expires: time.UnixMicro(r.Expires), Revoked: r.RevokedAt != 0,
		Tags: splitTags(r.Tags), Site: r.Site, Ephemeral: r.Ephemeral != 0, NeedsApproval: r.NeedsApproval != 0,
		RequireCSR: r.RequireCsr != 0, CreatedBy: r.CreatedBy, Note: r.Note,
	}
}

// CreateToken stores a new token.
func (s *Store) CreateToken(ctx context.Context, k Token) error {
	return s.update(ctx, func(t *tx) error {
		err := t.q.InsertToken(bg, db.InsertTokenParams{
			ID: k.ID, SecretSha256: k.SecretHash[:], MaxUses: int64(k.MaxUses), Expires: k.Expires.UnixMicro(),
			Tags: strings.Join(k.Tags, ","), CreatedBy: ActorOf(t.ctx), Created: t.now.UnixMicro(), Site: k.Site,
			Ephemeral: flag(k.Ephemeral), NeedsApproval: flag(k.NeedsApproval), RequireCsr: flag(k.RequireCSR), Note: k.Note,
		})
		if err != nil {
			return fmt.Errorf("store token: %w", err)
		}
		t.audit("token.create", k.ID, detail("uses", strconv.FormatUint(uint64(k.MaxUses), 10),
			"expires", k.Expires.UTC().Format(time.RFC3339), "tags", strings.Join(k.Tags, ","), "site", k.Site))
		return nil
	})
}

// TokenCount returns how many tokens were ever made.
func (s *Store) TokenCount(ctx context.Context) (int, error) {
	n, err := s.rq.CountTokens(ctx)
	if err != nil {
		return 0, fmt.Errorf("count tokens: %w", err)
	}
	return int(n), nil
}

// ListTokens returns all tokens, newest first.
func (s *Store) ListTokens(ctx context.Context) ([]Token, error) {
	rows, err := s.rq.ListTokens(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	out := make([]Token, len(rows))
	for i := range rows {
		out[i] = tokenOf(&rows[i])
	}
	return out, nil
}

// RevokeToken makes a token useless at once. Errors: ErrNotFound, also where it
// is revoked already.
func (s *Store) RevokeToken(ctx context.Context, id string) error {
	return s.update(ctx, func(t *tx) error {
		n, err := t.q.RevokeToken(bg, db.RevokeTokenParams{RevokedAt: t.now.UnixMicro(), ID: id})
		if err != nil {
			return fmt.Errorf("revoke token: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("token %s: %w", id, ErrNotFound)
		}
		t.audit("token.revoke", id, "")
		return nil
	})
}

// CheckSecret returns ErrTokenInvalid unless the token exists and hash is that of
// its secret. It reads only, so that guesses never reach the writer.
func (s *Store) CheckSecret(ctx context.Context, id string, hash [32]byte) error {
	r, err := s.rq.TokenByID(ctx, id)
	want := r.SecretSha256
	if isNoRows(err) {
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

// token reads a token whose secret is right and that is neither revoked nor
// expired at now.
func (t *tx) token(id string, hash [32]byte, now time.Time) (Token, error) {
	r, err := t.q.TokenByID(bg, id)
	switch {
	case isNoRows(err):
		return Token{}, ErrTokenInvalid
	case err != nil:
		return Token{}, fmt.Errorf("read token: %w", err)
	case subtle.ConstantTimeCompare(r.SecretSha256, hash[:]) != 1:
		return Token{}, ErrTokenInvalid
	case r.RevokedAt != 0:
		return Token{}, ErrTokenRevoked
	case r.Expires <= now.UnixMicro():
		return Token{}, ErrTokenExpired
	}
	return tokenOf(&r), nil
}

// consume takes one use of a token. The condition stands in the UPDATE itself, so
// no interleaving can use a token more often than it allows.
func (t *tx) consume(id string, now time.Time) error {
	n, err := t.q.ConsumeToken(bg, db.ConsumeTokenParams{ID: id, Expires: now.UnixMicro()})
	if err != nil {
		return fmt.Errorf("use token: %w", err)
	}
	if n == 0 {
		return ErrTokenUsedUp
	}
	return nil
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
