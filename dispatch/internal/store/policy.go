// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// AddPolicy stores a document as the next version and makes it the active one.
func (s *Store) AddPolicy(ctx context.Context, document []byte) (version uint64, err error) {
	err = s.update(ctx, func(t *tx) error {
		version, err = t.addPolicy(document)
		return err
	})
	return version, err
}

// InitPolicy is AddPolicy where no version exists yet, and nothing otherwise.
func (s *Store) InitPolicy(ctx context.Context, document []byte) error {
	return s.update(ctx, func(t *tx) error {
		n, err := t.q.CountPolicies(bg)
		if err != nil || n > 0 {
			return err
		}
		_, err = t.addPolicy(document)
		return err
	})
}

func (t *tx) addPolicy(document []byte) (uint64, error) {
	sum := sha256.Sum256(document)
	v, err := t.q.InsertPolicy(bg, db.InsertPolicyParams{
		Document: document, Sha256: sum[:], Author: ActorOf(t.ctx), Created: t.now.UnixMicro(),
	})
	if err == nil {
		err = t.q.SetActivePolicy(bg, v)
	}
	if err == nil {
		_, err = t.q.BumpPolicyGeneration(bg)
	}
	if err != nil {
		return 0, fmt.Errorf("store policy: %w", err)
	}
	t.change(Change{Scope: ScopeAll})
	t.audit("policy.activate", strconv.FormatInt(v, 10), "")
	return uint64(v), nil
}

// Policy returns a version and its document; version 0 means the active one.
// Errors: ErrNotFound.
func (s *Store) Policy(ctx context.Context, version uint64) (v uint64, document []byte, err error) {
	if version == 0 {
		var a int64
		if a, err = s.rq.ActivePolicy(ctx); err == nil {
			version = uint64(a)
		}
	}
	var p db.Policy
	if err == nil {
		p, err = s.rq.PolicyByVersion(ctx, int64(version))
	}
	if isNoRows(err) {
		return 0, nil, fmt.Errorf("policy version %d: %w", version, ErrNotFound)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read policy: %w", err)
	}
	return uint64(p.Version), p.Document, nil
}
