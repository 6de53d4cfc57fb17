// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

const (
	// maxBatch and maxBatchTime bound what shares one commit: more operations make
	// the fsync cheaper for each, more time makes the first one wait.
	maxBatch     = 256
	maxBatchTime = 2 * time.Millisecond
)

// tx is what a write operation works on. It is used by the writer goroutine only.
type tx struct {
	raw     *sql.Tx
	changes []Change
}

// Change is one line of the log, before it has an rv.
type Change struct {
	// Upsert is a node that is new or different, Delete one that is gone. Both
	// are zero where only the policy changed.
	Upsert *Node
	Delete identity.PeerID
	// Policy is the version in force after the change.
	Policy uint64
}

func (c Change) describe() (kind string, key []byte) {
	switch {
	case c.Upsert != nil:
		return "node", c.Upsert.ID[:]
	case !c.Delete.IsZero():
		return "node-gone", c.Delete[:]
	}
	return "policy", binary.BigEndian.AppendUint64(nil, c.Policy)
}

// The writer's transaction outlives the callers' contexts, so these take none.

func (t *tx) exec(query string, args ...any) (int64, error) {
	r, err := t.raw.ExecContext(context.Background(), query, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *tx) row(query string, args ...any) *sql.Row {
	return t.raw.QueryRowContext(context.Background(), query, args...)
}

type op struct {
	ctx    context.Context
	do     func(*tx) error
	err    error
	result chan error
}

// update runs f in a transaction of the writer, isolated from the other
// operations of its batch by a savepoint, and returns once it is on disk. Where
// ctx ends while f waits its turn, f does not run.
func (s *Store) update(ctx context.Context, f func(*tx) error) error {
	o := &op{ctx: ctx, do: f, result: make(chan error, 1)}
	select {
	case s.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return fmt.Errorf("write to store: %w", net.ErrClosed)
	}
	return <-o.result // the writer answers whatever it has taken
}

// run is the writer goroutine.
func (s *Store) run() {
	defer close(s.done)
	for {
		select {
		case o := <-s.ops:
			s.batch(o)
		case <-s.closing:
			return
		}
	}
}

// batch runs first and whatever else arrives meanwhile in one transaction.
func (s *Store) batch(first *op) {
	var batch []*op
	events, err := s.commit(func(t *tx) error {
		start := time.Now()
		for o := first; ; {
			batch = append(batch, o)
			if err := t.run(o); err != nil {
				return err
			}
			if len(batch) == maxBatch || time.Since(start) > maxBatchTime {
				return nil
			}
			select {
			case o = <-s.ops:
			default:
				return nil
			}
		}
	})
	if err != nil {
		s.log.Error("write to store", "err", err, "ops", len(batch))
		if len(batch) == 0 { // not even begun
			batch = []*op{first}
		}
	}
	if err == nil && len(events) > 0 && s.publish != nil {
		s.publish(events)
	}
	for _, o := range batch {
		if o.err == nil {
			o.err = err
		}
		o.result <- o.err
	}
}

// run executes one operation in a savepoint. The error it returns ends the
// batch; that of the operation is kept in o.
func (t *tx) run(o *op) error {
	if o.err = o.ctx.Err(); o.err != nil {
		return nil
	}
	if _, err := t.exec("SAVEPOINT op"); err != nil {
		return err
	}
	kept := len(t.changes)
	if o.err = o.do(t); o.err != nil {
		t.changes = t.changes[:kept]
		if _, err := t.exec("ROLLBACK TO op"); err != nil {
			return err
		}
	}
	_, err := t.exec("RELEASE op")
	return err
}

// commit runs fill in a transaction, then numbers the changes from the one row
// that all writers lock last, so that the order of commits is the order of rv.
func (s *Store) commit(fill func(*tx) error) (events []Event, err error) {
	raw, err := s.write.BeginTx(context.Background(), nil)
	if err != nil {
		return nil, err
	}
	t := &tx{raw: raw}
	defer func() {
		if err != nil {
			_ = raw.Rollback()
		}
	}()
	if err = fill(t); err != nil {
		return nil, err
	}
	if len(t.changes) > 0 {
		if events, err = s.number(t); err != nil {
			return nil, err
		}
	}
	if err = raw.Commit(); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	return events, nil
}

func (s *Store) number(t *tx) ([]Event, error) {
	var policy uint64
	err := t.row(`SELECT version FROM policy_active WHERE scope = ''`).Scan(&policy)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read active policy: %w", err)
	}
	n := uint64(len(t.changes))
	var rv uint64
	if err := t.row(`UPDATE meta SET rv = rv + ? WHERE id = 1 RETURNING rv`, n).Scan(&rv); err != nil {
		return nil, fmt.Errorf("allocate rv: %w", err)
	}
	rv -= n
	events := make([]Event, 0, n)
	for _, c := range t.changes {
		rv++
		c.Policy = policy
		b, err := s.encode(rv, c)
		if err != nil {
			return nil, fmt.Errorf("encode change: %w", err)
		}
		kind, key := c.describe()
		if _, err := t.exec(`INSERT INTO changes (rv, kind, key, encoded) VALUES (?, ?, ?, ?)`, rv, kind, key, b); err != nil {
			return nil, fmt.Errorf("log change: %w", err)
		}
		events = append(events, Event{RV: rv, Encoded: b})
	}
	return events, nil
}
