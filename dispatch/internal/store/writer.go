// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

const (
	// maxBatch and maxBatchTime bound what shares one commit: more operations make
	// the fsync cheaper for each, more time makes the first one wait.
	maxBatch     = 256
	maxBatchTime = 2 * time.Millisecond
)

// Scopes that are no site.
const (
	// ScopeAll is the scope of a change that all watchers see.
	ScopeAll = "*"
	// ScopeNone is that of a change that no node sees, only who looks after them.
	ScopeNone = "-"
)

// bg is the writer's context: its transaction outlives those of the callers.
var bg = context.Background()

// tx is what a write operation works on. It is used by the writer goroutine only.
type tx struct {
	raw     *sql.Tx
	q       *db.Queries
	ctx     context.Context // of the operation that runs
	now     time.Time
	changes []Change
	events  []audit.Event
}

// audit records what the operation did. Every operation that somebody asked for
// calls it; detail is JSON or empty and holds no secret.
func (t *tx) audit(action, target, detail string) {
	t.events = append(t.events, audit.Event{Actor: ActorOf(t.ctx), Action: action, Target: target, Detail: detail})
}

type actorKey struct{}

// WithActor returns a context whose mutations are audited as done by actor:
// "node:<PeerID>", "user:<name>/<key id>", "token:<id>", "socket" or "hub".
func WithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// ActorOf returns the actor of WithActor, "hub" where there is none.
func ActorOf(ctx context.Context) string {
	if a, ok := ctx.Value(actorKey{}).(string); ok && a != "" {
		return a
	}
	return "hub"
}

// Change is one line of the log, before it has an rv. The zero value says that
// another policy is in force.
type Change struct {
	// Scope is the site whose watchers see it; empty is the default site, ScopeAll
	// all. Policies, denials and mesh keys are for all.
	Scope string
	// Upsert is a node that is new or different, Delete one that is gone.
	Upsert *Node
	Delete identity.PeerID
	// Moved says of a Delete that the node is still in the mesh, in another scope:
	// whoever has asked for it by name keeps it.
	Moved bool
	// Denials are further ones.
	Denials []Denial
	// PSKEpoch is the new one, where it has changed.
	PSKEpoch uint32
	// Policy is the number of the newest activation. The writer sets it.
	Policy uint64
}

func (c *Change) describe() (kind string, node identity.PeerID) {
	switch {
	case c.Upsert != nil:
		return "node", c.Upsert.ID
	case c.Moved:
		return "node-moved", identity.PeerID{}
	case !c.Delete.IsZero():
		return "node-gone", c.Delete
	case len(c.Denials) > 0:
		return "denial", identity.PeerID{}
	case c.PSKEpoch != 0:
		return "psk", identity.PeerID{}
	}
	return "policy", identity.PeerID{}
}

func (t *tx) change(c Change) { t.changes = append(t.changes, c) }

func (t *tx) exec(query string) error {
	_, err := t.raw.ExecContext(bg, query)
	return err
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
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &op{ctx: ctx, do: f, result: make(chan error, 1)}
	select {
	case s.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return fmt.Errorf("write to store: %w", net.ErrClosed)
	}
	return s.fault(<-o.result) // the writer answers whatever it has taken
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
	start := time.Now()
	events, audited, err := s.commit(func(t *tx) error {
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
	// Also where it failed: an error may come after the fact.
	s.admissions.wrote()
	if err != nil {
		s.log.Error("write to store", "err", err, "ops", len(batch))
		if len(batch) == 0 { // not even begun
			batch = []*op{first}
		}
	}
	if err == nil && len(events) > 0 && s.publish != nil {
		s.publish(events)
	}
	if err == nil && audited {
		s.auditWake.all()
	}
	if s.observe != nil {
		s.observe(len(batch), time.Since(start), err)
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
	if err := t.exec("SAVEPOINT op"); err != nil {
		return err
	}
	t.ctx = o.ctx
	changes, events := len(t.changes), len(t.events)
	if o.err = o.do(t); o.err != nil {
		t.changes, t.events = t.changes[:changes], t.events[:events]
		if err := t.exec("ROLLBACK TO op"); err != nil {
			// Some errors of the disk end the whole transaction.
			return fmt.Errorf("%w; roll back operation: %w", o.err, err)
		}
	}
	return t.exec("RELEASE op")
}

// commit runs fill in a transaction, then numbers the changes and the audit
// entries from the one row that all writers lock last, so that the order of
// commits is the order of both.
func (s *Store) commit(fill func(*tx) error) (events []Event, audited bool, err error) {
	raw, err := s.write.BeginTx(bg, nil)
	if err != nil {
		return nil, false, err
	}
	t := &tx{raw: raw, q: s.wq.WithTx(raw), now: time.Now()}
	defer func() {
		if err != nil {
			_ = raw.Rollback()
		}
	}()
	if err = fill(t); err != nil {
		return nil, false, err
	}
	if len(t.changes) > 0 {
		if events, err = s.number(t); err != nil {
			return nil, false, err
		}
	}
	if len(t.events) > 0 {
		if err = t.chain(); err != nil {
			return nil, false, err
		}
	}
	if err = raw.Commit(); err != nil {
		return nil, false, fmt.Errorf("commit: %w", err)
	}
	return events, len(t.events) > 0, nil
}

func (s *Store) number(t *tx) ([]Event, error) {
	n := int64(len(t.changes))
	rv, err := t.q.AllocateRV(bg, n)
	if err != nil {
		return nil, fmt.Errorf("allocate rv: %w", err)
	}
	m, err := t.q.GetMeta(bg)
	if err != nil {
		return nil, fmt.Errorf("read mesh state: %w", err)
	}
	rv -= n
	events := make([]Event, 0, n)
	for _, c := range t.changes {
		rv++
		c.Policy = uint64(m.PolicyGeneration)
		b, err := s.encode(uint64(rv), c)
		if err != nil {
			return nil, fmt.Errorf("encode change: %w", err)
		}
		kind, node := c.describe()
		key := []byte{}
		if !node.IsZero() {
			key = node[:]
		}
		err = t.q.InsertChange(bg, db.InsertChangeParams{Rv: rv, Kind: kind, Key: key, Encoded: b, Scope: c.Scope})
		if err != nil {
			return nil, fmt.Errorf("log change: %w", err)
		}
		events = append(events, Event{RV: uint64(rv), Scope: c.Scope, Node: node, Policy: c.Policy, Encoded: b})
	}
	return events, nil
}

// chain appends the operations' audit entries to the log.
func (t *tx) chain() error {
	head, err := t.q.AuditHead(bg)
	if err != nil {
		return fmt.Errorf("read audit head: %w", err)
	}
	seq, hash := uint64(head.AuditSeq), head.AuditHead
	for _, e := range t.events {
		n := audit.New(seq, hash, t.now, e)
		err := t.q.InsertAudit(bg, db.InsertAuditParams{
			Seq: int64(n.Seq), Ts: n.Time.UnixMicro(), Actor: n.Actor, Action: n.Action, Target: n.Target,
			Detail: n.Detail, Prev: n.Prev, Hash: n.Hash,
		})
		if err != nil {
			return fmt.Errorf("write audit entry: %w", err)
		}
		seq, hash = n.Seq, n.Hash
	}
	if err := t.q.SetAuditHead(bg, db.SetAuditHeadParams{AuditSeq: int64(seq), AuditHead: hash}); err != nil {
		return fmt.Errorf("write audit head: %w", err)
	}
	return nil
}

// wake lets any number of goroutines wait for the next call of all. The zero value
// is ready.
type wake struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// wait returns a channel that the next all closes.
func (w *wake) wait() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ch == nil {
		w.ch = make(chan struct{})
	}
	return w.ch
}

func (w *wake) all() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ch != nil {
		close(w.ch)
		w.ch = nil
	}
}
