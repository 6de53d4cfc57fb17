// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var errInjected = errors.New("injected")

// present returns the tokens in the database at path, as the next program would
// find them.
func present(t *testing.T, path string) map[string]bool {
	t.Helper()
	f := open(t, path, testMeta)
	tokens, err := f.ListTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]bool)
	for _, k := range tokens {
		out[k.ID] = true
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

// ledger is what callers were told.
type ledger struct {
	mu   sync.Mutex
	told map[string]error
}

func (l *ledger) put(id string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told == nil {
		l.told = make(map[string]error)
	}
	l.told[id] = err
}

// check demands that exactly the acknowledged ones are in the database.
func (l *ledger) check(t *testing.T, path string) (acked, refused int) {
	t.Helper()
	have := present(t, path)
	for id, err := range l.told {
		if (err == nil) != have[id] {
			t.Errorf("%s was answered with %v, present: %v", id, err, have[id])
		}
		if err == nil {
			acked++
		} else {
			refused++
		}
	}
	if len(have) != acked {
		t.Errorf("database has %d tokens, %d were acknowledged", len(have), acked)
	}
	return acked, refused
}

// insert is an operation that writes a token.
func insert(id string) func(*tx) error {
	return func(t *tx) error {
		_, err := t.raw.ExecContext(bg, `INSERT INTO join_tokens (id, secret_sha256, max_uses, expires, created_by, created)
			VALUES (?, zeroblob(32), 1, 1, 'test', 1)`, id)
		t.audit("token.create", id, "")
		return err
	}
}

// orphan makes the commit fail, not the operation: a deferred constraint.
func orphan(t *tx) error {
	if err := t.exec(`PRAGMA defer_foreign_keys = 1`); err != nil {
		return err
	}
	return t.exec(`INSERT INTO node_tags (node_id, tag) VALUES (x'01', 'orphan')`)
}

// TestAcknowledgedIsDurable lets many callers write while operations fail before
// and after they wrote, commits fail, contexts end, the disk is full, and the
// store is closed: success is told exactly to those whose write is there.
func TestAcknowledgedIsDurable(t *testing.T) {
	for name, fault := range map[string]func(f *fixture, rng *mrand.Rand, id string) (context.Context, func(*tx) error){
		"operation fails": func(_ *fixture, rng *mrand.Rand, id string) (context.Context, func(*tx) error) {
			return bg, func(t *tx) error {
				if err := insert(id)(t); err != nil || rng.IntN(2) == 0 {
					return err
				}
				return errInjected
			}
		},
		"statement fails": func(_ *fixture, rng *mrand.Rand, id string) (context.Context, func(*tx) error) {
			return bg, func(t *tx) error {
				if err := insert(id)(t); err != nil || rng.IntN(3) > 0 {
					return err
				}
				return insert(id)(t) // not unique
			}
		},
		"commit fails": func(_ *fixture, rng *mrand.Rand, id string) (context.Context, func(*tx) error) {
			return bg, func(t *tx) error {
				if err := insert(id)(t); err != nil || rng.IntN(8) > 0 {
					return err
				}
				return orphan(t)
			}
		},
		"transaction is gone": func(_ *fixture, rng *mrand.Rand, id string) (context.Context, func(*tx) error) {
			return bg, func(t *tx) error {
				if err := insert(id)(t); err != nil || rng.IntN(8) > 0 {
					return err
				}
				// What SQLite does by itself after some errors of the disk.
				return errors.Join(errInjected, t.exec(`ROLLBACK`))
			}
		},
		"context ends": func(_ *fixture, rng *mrand.Rand, id string) (context.Context, func(*tx) error) {
			ctx, cancel := context.WithTimeout(bg, time.Duration(rng.IntN(2000))*time.Microsecond)
			context.AfterFunc(ctx, cancel)
			return ctx, insert(id)
		},
		"disk is full": func(_ *fixture, rng *mrand.Rand, id string) (context.Context, func(*tx) error) {
			return bg, func(t *tx) error {
				limit := `PRAGMA max_page_count = 1` // means as many as there are
				if rng.IntN(2) == 0 {
					limit = `PRAGMA max_page_count = 1000000`
				}
				if err := t.exec(limit); err != nil {
					return err
				}
				if err := t.exec(`INSERT INTO lock_log (seq, entry, hash) VALUES (NULL, zeroblob(20000), x'00')`); err != nil {
					return err
				}
				return insert(id)(t)
			}
		},
		"closed meanwhile": func(f *fixture, rng *mrand.Rand, id string) (context.Context, func(*tx) error) {
			return bg, func(t *tx) error {
				if rng.IntN(100) == 0 {
					go func() { _ = f.Close() }()
				}
				return insert(id)(t)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := open(t, "", testMeta)
			var l ledger
			var wg sync.WaitGroup
			for w := range 16 {
				rng := mrand.New(mrand.NewPCG(1, uint64(w)))
				wg.Go(func() {
					for i := range 30 {
						id := fmt.Sprintf("%s-%d-%d", name, w, i)
						ctx, do := fault(f, rng, id)
						l.put(id, f.update(ctx, do))
					}
				})
			}
			wg.Wait()
			if name != "closed meanwhile" {
				// However it went before, the store works.
				l.put("after", f.update(bg, func(t *tx) error {
					return errors.Join(t.exec(`PRAGMA max_page_count = 1000000`), insert("after")(t))
				}))
				if l.told["after"] != nil {
					t.Errorf("write after the faults: %v", l.told["after"])
				}
			}
			if err := f.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			acked, refused := l.check(t, f.path)
			if acked == 0 || refused == 0 {
				t.Errorf("%d acknowledged, %d refused: the fault did not happen, or nothing else did", acked, refused)
			}
			auditFollows(t, f.path, acked)
		})
	}
}

// auditFollows demands one audit entry for each token, without a gap.
func auditFollows(t *testing.T, path string, want int) {
	t.Helper()
	f := open(t, path, testMeta)
	entries, err := f.Audit(t.Context(), AuditFilter{Action: "token.create", Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != want {
		t.Errorf("%d tokens have %d audit entries", want, len(entries))
	}
	for i, e := range entries {
		if e.Seq != uint64(i+1) {
			t.Fatalf("audit entry %d has number %d", i, e.Seq)
		}
	}
}

// TestFaultKinds makes sure that callers can tell a full disk from a bug.
func TestFaultKinds(t *testing.T) {
	f := open(t, "", testMeta)
	grow := func(t *tx) error {
		return t.exec(`INSERT INTO lock_log (seq, entry, hash) VALUES (NULL, zeroblob(100000), x'00')`)
	}
	if err := f.update(bg, func(t *tx) error { return t.exec(`PRAGMA max_page_count = 1`) }); err != nil {
		t.Fatal(err)
	}
	if err := f.update(bg, grow); !errors.Is(err, ErrDiskFull) || !IsStorage(err) {
		t.Errorf("write to a full disk = %v, want ErrDiskFull", err)
	}
	if _, err := f.State(t.Context()); err != nil {
		t.Errorf("read while the disk is full: %v", err)
	}
	if err := f.update(bg, func(t *tx) error { return t.exec(`PRAGMA max_page_count = 1000000`) }); err != nil {
		t.Fatal(err)
	}
	if err := f.update(bg, grow); err != nil {
		t.Errorf("write once there is space: %v", err)
	}
	if err := f.update(bg, orphan); err == nil || IsStorage(err) {
		t.Errorf("a broken constraint = %v, want an error that is not of the storage", err)
	}
}

// TestContextEndsInQueue makes sure that what nobody waits for any more does not
// run, and that a caller whose write has begun learns what became of it.
func TestContextEndsInQueue(t *testing.T) {
	f := open(t, "", testMeta)
	running, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		first <- f.update(ctx, func(t *tx) error {
			close(running)
			<-release
			return insert("begun")(t)
		})
	}()
	<-running
	queued, stop := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() { second <- f.update(queued, insert("queued")) }()
	stop()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("write that waited = %v, want context.Canceled", err)
	}
	cancel() // too late for the one that runs
	close(release)
	if err := <-first; err != nil {
		t.Errorf("write that had begun = %v, want that it is done", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if have := slices.Collect(maps.Keys(present(t, f.path))); !slices.Equal(have, []string{"begun"}) {
		t.Errorf("database has %v, want only the one that had begun", have)
	}
}

// TestCommitBeforePublishBeforeAnswer checks the order that watchers and callers
// rely on.
func TestCommitBeforePublishBeforeAnswer(t *testing.T) {
	var s *Store
	var published atomic.Uint64
	s, err := Open(t.Context(), Config{
		Path: filepath.Join(t.TempDir(), "x.db"), Init: testMeta,
		Publish: func(events []Event) {
			for _, e := range events {
				// Another connection sees what is committed, and only that.
				st, err := s.State(bg)
				if err != nil || st.RV < e.RV {
					t.Errorf("rv %d is published, the database is at %d: %v", e.RV, st.RV, err)
				}
				published.Store(e.RV)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 20 {
		if err := s.update(bg, func(t *tx) error { t.change(Change{Scope: ScopeAll}); return nil }); err != nil {
			t.Fatal(err)
		}
		st, err := s.State(bg)
		if err != nil || published.Load() != st.RV {
			t.Fatalf("answered at rv %d, published up to %d: %v", st.RV, published.Load(), err)
		}
	}
	before := published.Load()
	_ = s.update(bg, func(t *tx) error { t.change(Change{Scope: ScopeAll}); return orphan(t) })
	_ = s.update(bg, func(t *tx) error { t.change(Change{Scope: ScopeAll}); return errInjected })
	if published.Load() != before {
		t.Error("a change was published that is not committed")
	}
}

// TestDurabilitySettings makes sure that each connection, also one that replaces a
// lost one, waits for the disk.
func TestDurabilitySettings(t *testing.T) {
	f := open(t, "", testMeta)
	pragmas := func(c *sql.Conn) (sync, fk, ro int, mode string) {
		t.Helper()
		for q, p := range map[string]any{"synchronous": &sync, "journal_mode": &mode, "foreign_keys": &fk, "query_only": &ro} {
			if err := c.QueryRowContext(t.Context(), `PRAGMA `+q).Scan(p); err != nil {
				t.Fatal(err)
			}
		}
		return sync, fk, ro, mode
	}
	for _, p := range []struct {
		name     string
		db       *sql.DB
		n, write int
	}{{"writer", f.write, 1, 0}, {"readers", f.read, readers, 1}} {
		for round := range 2 {
			var conns []*sql.Conn
			for range p.n { // all at once, so that they are different ones
				c, err := p.db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
			}
			for i, c := range conns {
				sync, fk, ro, mode := pragmas(c)
				if sync != 2 || mode != "wal" || fk != 1 || ro != p.write {
					t.Errorf("%s, connection %d of round %d: synchronous %d, journal_mode %s, foreign_keys %d, query_only %d",
						p.name, i, round, sync, mode, fk, ro)
				}
				// The pool throws it away and opens another.
				_ = c.Raw(func(any) error { return driver.ErrBadConn })
				_ = c.Close()
			}
		}
	}
}

// TestClosedIsSaid makes sure that a write to a closed store is told apart.
func TestClosedIsSaid(t *testing.T) {
	f := open(t, "", testMeta)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.update(bg, insert("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close = %v, want net.ErrClosed", err)
	}
}

// TestRepeatedJoinIsAudited: a machine whose answer was lost gets a certificate
// more, so the log has to say so.
func TestRepeatedJoinIsAudited(t *testing.T) {
	f := open(t, "", testMeta)
	f.token(t, "k", 1, time.Hour)
	j := newJoin("k", "x", time.Now())
	for range 2 {
		if _, err := f.Enroll(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		j.Serial = append([]byte(nil), j.Serial...)
		j.Serial[0]++
	}
	entries, err := f.Audit(t.Context(), AuditFilter{Action: "node.", Limit: 10})
	if err != nil || len(entries) != 2 || entries[1].Action != "node.rejoin" {
		t.Errorf("two joins have the entries %v, %v", entries, err)
	}
}
