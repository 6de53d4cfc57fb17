// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// maxStale is how many changes a cached snapshot may be behind before it is read
// again: a watcher gets the rest as deltas.
const maxStale = 256

// Source is where a Feed reads what the ring no longer holds.
type Source interface {
	Snapshot(ctx context.Context) (store.Snapshot, error)
	Since(ctx context.Context, rv uint64) ([]store.Event, uint64, error)
}

// Feed starts watchers. It is safe for concurrent use.
type Feed struct {
	Ring *Ring

	src   Source
	epoch uint64

	mu    sync.Mutex // guards the cache and is held while it is read anew
	cache *cached
}

type cached struct {
	rv, policy uint64
	chunks     [][]byte
}

// NewFeed returns a feed over ring.
func NewFeed(src Source, epoch uint64, ring *Ring) *Feed {
	return &Feed{Ring: ring, src: src, epoch: epoch}
}

// Publish is the store's Publish.
func (f *Feed) Publish(events []store.Event) {
	out := make([]Event, len(events))
	for i, e := range events {
		out[i] = Event{RV: e.RV, Raw: e.Encoded}
	}
	f.Ring.Publish(out...)
}

// Watch is the state of one watcher's stream.
type Watch struct {
	// Snapshot tells whether Chunks, possibly none, replace all that the watcher
	// has.
	Snapshot bool
	Chunks   [][]byte
	// RV and Policy are what Chunks, or the watcher's own state, stand for.
	RV, Policy uint64
	// Backlog are the changes after RV that were committed before the cursor.
	Backlog []Event

	cursor *Cursor
	sent   uint64 // newest rv delivered
}

// Start begins a watch for a node that has (epoch, rv); epoch 0 means nothing.
func (f *Feed) Start(ctx context.Context, epoch, rv uint64) (*Watch, error) {
	// The cursor comes first: what is committed while the database is read then
	// arrives twice rather than never, and rv tells the copies apart.
	w := &Watch{cursor: f.Ring.Cursor()}
	if epoch == f.epoch {
		err := f.backlog(ctx, w, rv)
		if !errors.Is(err, store.ErrCompacted) {
			return w, err
		}
	}
	c, err := f.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	w.Snapshot, w.Chunks, w.Policy = true, c.chunks, c.policy
	err = f.backlog(ctx, w, c.rv)
	w.Policy = max(w.Policy, c.policy)
	return w, err
}

func (f *Feed) backlog(ctx context.Context, w *Watch, rv uint64) error {
	events, policy, err := f.src.Since(ctx, rv)
	if err != nil {
		return err
	}
	w.RV, w.sent, w.Policy = rv, rv, policy
	for _, e := range events {
		w.Backlog = append(w.Backlog, Event{RV: e.RV, Raw: e.Encoded})
		w.sent = e.RV
	}
	return nil
}

func (f *Feed) snapshot(ctx context.Context) (*cached, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.cache; c != nil && f.Ring.RV() <= c.rv+maxStale {
		return c, nil
	}
	s, err := f.src.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	chunks, err := EncodeSnapshot(s.Nodes)
	if err != nil {
		return nil, err
	}
	f.cache = &cached{rv: s.RV, policy: s.Policy, chunks: chunks}
	return f.cache, nil
}

// Next returns the events that came since the last call, none of them twice, and
// waits for one. It returns none where tick fires first. The slice is valid until
// the next call, which may get it as buf.
func (w *Watch) Next(ctx context.Context, buf []Event, tick <-chan time.Time) ([]Event, error) {
	for {
		got, err := w.cursor.Next(ctx, buf[:0], 256, tick)
		if err != nil || len(got) == 0 {
			return nil, err
		}
		out := got[:0]
		for _, e := range Coalesce(got) {
			if e.RV != 0 {
				if e.RV <= w.sent {
					continue
				}
				w.sent = e.RV
			}
			out = append(out, e)
		}
		if len(out) > 0 {
			return out, nil
		}
	}
}

// Sent returns the newest rv that the watcher has been given.
func (w *Watch) Sent() uint64 { return w.sent }
