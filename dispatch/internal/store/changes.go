// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// ErrCompacted is returned for an rv that the log does not reach back to, or that
// it has not reached yet.
var ErrCompacted = errors.New("resource version is not in the log")

// Snapshot is what watchers of one site know, as of one rv.
type Snapshot struct {
	State
	Nodes   []Node
	Denials []Denial
}

// Snapshot reads the visible nodes of a site and all denials at one rv. Where only
// is not nil, the nodes are those that it names, of whatever site.
func (s *Store) Snapshot(ctx context.Context, site string, only []identity.PeerID) (snap Snapshot, err error) {
	err = s.view(ctx, func(q *db.Queries) error {
		if snap.State, err = state(ctx, q); err != nil {
			return err
		}
		if snap.Denials, err = denials(ctx, q, time.Now()); err != nil {
			return err
		}
		if only == nil {
			snap.Nodes, err = listScope(ctx, q, s.meta, site)
			return err
		}
		for _, id := range only {
			n, err := nodeByID(ctx, q, s.meta, id)
			if isNotFound(err) || err == nil && !n.Visible() {
				continue
			}
			if err != nil {
				return err
			}
			snap.Nodes = append(snap.Nodes, n)
		}
		return nil
	})
	return snap, err
}

// Since returns the changes after rv that keep wants, and the state that they lead
// to. Errors: ErrCompacted.
func (s *Store) Since(ctx context.Context, rv uint64, keep func(*Event) bool) (events []Event, st State, err error) {
	err = s.view(ctx, func(q *db.Queries) error {
		m, err := q.GetMeta(ctx)
		if err != nil {
			return fmt.Errorf("read rv: %w", err)
		}
		if st, err = state(ctx, q); err != nil {
			return err
		}
		if rv < uint64(m.CompactRv) || rv > st.RV {
			return fmt.Errorf("%w: %d, have %d to %d", ErrCompacted, rv, m.CompactRv, st.RV)
		}
		rows, err := q.ChangesSince(ctx, int64(rv))
		if err != nil {
			return fmt.Errorf("read changes: %w", err)
		}
		for _, r := range rows {
			e := Event{RV: uint64(r.Rv), Scope: r.Scope, Encoded: r.Encoded}
			if len(r.Key) == len(e.Node) {
				e.Node = identity.PeerID(r.Key)
			}
			if keep(&e) {
				events = append(events, e)
			}
		}
		return nil
	})
	return events, st, err
}

// Compact drops all but the newest keep changes. Watchers that are further behind
// get a snapshot instead.
func (s *Store) Compact(ctx context.Context, keep uint64) error {
	return s.update(ctx, func(t *tx) error {
		to, err := t.q.CompactTo(bg, int64(keep))
		if err == nil {
			err = t.q.DeleteChanges(bg, to)
		}
		if err != nil {
			return fmt.Errorf("compact changes: %w", err)
		}
		return nil
	})
}

// RotatePSK counts the mesh key's epoch up and tells the nodes. before runs in the
// transaction with the new epoch: it makes the key durable, so that no epoch is
// announced that has none.
func (s *Store) RotatePSK(ctx context.Context, before func(epoch uint32) error) (epoch uint32, err error) {
	err = s.update(ctx, func(t *tx) error {
		e, err := t.q.BumpPSKEpoch(bg)
		if err != nil {
			return fmt.Errorf("rotate mesh key: %w", err)
		}
		epoch = uint32(e)
		if err := before(epoch); err != nil {
			return err
		}
		t.change(Change{Scope: ScopeAll, PSKEpoch: epoch})
		t.audit("psk.rotate", "", detail("epoch", fmt.Sprint(epoch)))
		return nil
	})
	return epoch, err
}

// Note audits something that happened outside the database.
func (s *Store) Note(ctx context.Context, action, target string, kv ...string) error {
	return s.update(ctx, func(t *tx) error {
		t.audit(action, target, detail(kv...))
		return nil
	})
}
