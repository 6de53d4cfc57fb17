// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// ErrCompacted is returned for an rv that the log does not reach back to, or that
// it has not reached yet.
var ErrCompacted = errors.New("resource version is not in the log")

// Snapshot is all nodes as of one rv.
type Snapshot struct {
	RV     uint64
	Policy uint64
	Nodes  []Node
}

// Snapshot reads all active nodes at one rv.
func (s *Store) Snapshot(ctx context.Context) (snap Snapshot, err error) {
	err = s.view(ctx, func(t *sql.Tx) error {
		if snap.RV, snap.Policy, err = head(ctx, t); err != nil {
			return err
		}
		snap.Nodes, err = listNodes(ctx, t, s.meta)
		return err
	})
	return snap, err
}

func head(ctx context.Context, t *sql.Tx) (rv, policy uint64, err error) {
	err = t.QueryRowContext(ctx, `SELECT rv, coalesce((SELECT version FROM policy_active WHERE scope = ''), 0)
		FROM meta WHERE id = 1`).Scan(&rv, &policy)
	if err != nil {
		return 0, 0, fmt.Errorf("read rv: %w", err)
	}
	return rv, policy, nil
}

// Since returns the changes after rv, the newest rv and the policy in force then.
// Errors: ErrCompacted.
func (s *Store) Since(ctx context.Context, rv uint64) (events []Event, policy uint64, err error) {
	err = s.view(ctx, func(t *sql.Tx) error {
		var now, compact uint64
		if now, policy, err = head(ctx, t); err != nil {
			return err
		}
		if err := t.QueryRowContext(ctx, `SELECT compact_rv FROM meta WHERE id = 1`).Scan(&compact); err != nil {
			return fmt.Errorf("read rv: %w", err)
		}
		if rv < compact || rv > now {
			return fmt.Errorf("%w: %d, have %d to %d", ErrCompacted, rv, compact, now)
		}
		rows, err := t.QueryContext(ctx, `SELECT rv, encoded FROM changes WHERE rv > ? ORDER BY rv`, rv)
		if err != nil {
			return fmt.Errorf("read changes: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			var e Event
			if err := rows.Scan(&e.RV, &e.Encoded); err != nil {
				return fmt.Errorf("read changes: %w", err)
			}
			events = append(events, e)
		}
		return rows.Err()
	})
	return events, policy, err
}

// Compact drops all but the newest keep changes. Watchers that are further behind
// get a snapshot instead.
func (s *Store) Compact(ctx context.Context, keep uint64) error {
	return s.update(ctx, func(t *tx) error {
		var to uint64
		err := t.row(`UPDATE meta SET compact_rv = max(compact_rv, rv - ?) WHERE id = 1 RETURNING compact_rv`, keep).Scan(&to)
		if err == nil {
			_, err = t.exec(`DELETE FROM changes WHERE rv <= ?`, to)
		}
		if err != nil {
			return fmt.Errorf("compact changes: %w", err)
		}
		return nil
	})
}
