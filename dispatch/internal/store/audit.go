// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// AuditFilter selects audit entries. Actor, Action and Target are prefixes.
type AuditFilter struct {
	// After lists entries with a higher number; with NewestFirst those with a lower
	// one, where 0 means no bound.
	After                 uint64
	NewestFirst           bool
	Actor, Action, Target string
	Since                 time.Time
	// Limit is how many at most; it must be positive.
	Limit int
}

// Audit returns the entries that f selects, in order.
func (s *Store) Audit(ctx context.Context, f AuditFilter) ([]audit.Entry, error) {
	since := int64(math.MinInt64)
	if !f.Since.IsZero() {
		since = f.Since.UnixMicro()
	}
	var rows []db.Audit
	var err error
	if f.NewestFirst {
		before := int64(math.MaxInt64)
		if f.After != 0 {
			before = int64(min(f.After, math.MaxInt64))
		}
		rows, err = s.rq.AuditBefore(ctx, db.AuditBeforeParams{
			Before: before, Since: since, Actor: f.Actor, Action: f.Action, Target: f.Target, Limit: int64(f.Limit),
		})
	} else {
		rows, err = s.rq.AuditAfter(ctx, db.AuditAfterParams{
			After: int64(min(f.After, math.MaxInt64)), Since: since, Actor: f.Actor, Action: f.Action, Target: f.Target, Limit: int64(f.Limit),
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	out := make([]audit.Entry, len(rows))
	for i, r := range rows {
		out[i] = audit.Entry{
			Seq: uint64(r.Seq), Time: time.UnixMicro(r.Ts), Prev: r.Prev, Hash: r.Hash,
			Event: audit.Event{Actor: r.Actor, Action: r.Action, Target: r.Target, Detail: r.Detail},
		}
	}
	return out, nil
}

// AuditChanged returns a channel that is closed after the next commit that wrote
// an audit entry. Take it before reading, and nothing is missed.
func (s *Store) AuditChanged() <-chan struct{} { return s.auditWake.wait() }

// SaveCheckpoint keeps a signed checkpoint.
func (s *Store) SaveCheckpoint(ctx context.Context, c audit.Checkpoint, signed []byte) error {
	return s.update(ctx, func(t *tx) error {
		err := t.q.InsertCheckpoint(bg, db.InsertCheckpointParams{
			Seq: int64(c.Seq), Ts: c.Time.UnixMicro(), Head: c.Head, Signed: signed,
		})
		if err != nil {
			return fmt.Errorf("store audit checkpoint: %w", err)
		}
		return nil
	})
}

// Checkpoints returns the newest signed checkpoints, newest first.
func (s *Store) Checkpoints(ctx context.Context, limit int) ([][]byte, error) {
	rows, err := s.rq.Checkpoints(ctx, int64(limit))
	if err != nil {
		return nil, fmt.Errorf("read audit checkpoints: %w", err)
	}
	out := make([][]byte, len(rows))
	for i, r := range rows {
		out[i] = r.Signed
	}
	return out, nil
}
