// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// AddPolicy stores a document as the next version and makes it the active one.
func (s *Store) AddPolicy(ctx context.Context, document []byte, author string) (version uint64, err error) {
	err = s.update(ctx, func(t *tx) error {
		version, err = t.addPolicy(document, author)
		return err
	})
	return version, err
}

// InitPolicy is AddPolicy where no version exists yet, and nothing otherwise.
func (s *Store) InitPolicy(ctx context.Context, document []byte) error {
	return s.update(ctx, func(t *tx) error {
		var n int
		if err := t.row(`SELECT count(*) FROM policies`).Scan(&n); err != nil || n > 0 {
			return err
		}
		_, err := t.addPolicy(document, "hub")
		return err
	})
}

func (t *tx) addPolicy(document []byte, author string) (version uint64, err error) {
	sum := sha256.Sum256(document)
	err = t.row(`INSERT INTO policies (version, document, sha256, author, created)
		VALUES ((SELECT coalesce(max(version), 0) + 1 FROM policies), ?, ?, ?, ?) RETURNING version`,
		document, sum[:], author, time.Now().UnixMicro()).Scan(&version)
	if err == nil {
		_, err = t.exec(`INSERT INTO policy_active (scope, version) VALUES ('', ?)
			ON CONFLICT (scope) DO UPDATE SET version = excluded.version`, version)
	}
	if err != nil {
		return 0, fmt.Errorf("store policy: %w", err)
	}
	t.changes = append(t.changes, Change{})
	return version, nil
}

// Policy returns a version and its document; version 0 means the active one.
// Errors: ErrNotFound.
func (s *Store) Policy(ctx context.Context, version uint64) (v uint64, document []byte, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT version, document FROM policies
		WHERE version = CASE WHEN ?1 = 0 THEN (SELECT version FROM policy_active WHERE scope = '') ELSE ?1 END`, version).
		Scan(&v, &document)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, fmt.Errorf("policy version %d: %w", version, ErrNotFound)
	}
	return v, document, err
}
