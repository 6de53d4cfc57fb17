// SPDX-License-Identifier: Apache-2.0

// Package topology fans the hub's events out to the nodes that watch. Every event
// is encoded once and kept once, in a ring that all watchers read with a cursor
// of their own: a slow watcher costs nothing but its own resynchronisation.
//
// Durable events carry a resource version (rv) and come from the store after
// their commit; presence carries none, is never stored, and the latest wins.
package topology

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// ErrLagged is returned to a cursor that the ring has overtaken.
var ErrLagged = errors.New("watcher is too far behind")

// Event is one message for watchers.
type Event struct {
	// RV is 0 for presence.
	RV uint64
	// Node is whose presence it is; zero for durable events.
	Node identity.PeerID
	// Raw is the encoded WatchTopologyResponse. It is shared: never modify it.
	Raw []byte
}

// Ring holds the newest events. It is safe for concurrent use.
type Ring struct {
	mu   sync.Mutex // guards the following
	buf  []Event
	next uint64        // sequence number of the next event
	wake chan struct{} // closed and replaced by each Publish
	rv   uint64
}

// NewRing returns a ring of size events in a mesh that is at rv.
func NewRing(size int, rv uint64) *Ring {
	return &Ring{buf: make([]Event, size), wake: make(chan struct{}), rv: rv}
}

// Publish appends events and wakes the watchers. It never blocks on them.
func (r *Ring) Publish(events ...Event) {
	if len(events) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		r.buf[r.next%uint64(len(r.buf))] = e
		r.next++
		if e.RV > r.rv {
			r.rv = e.RV
		}
	}
	close(r.wake)
	r.wake = make(chan struct{})
}

// RV returns the newest published resource version.
func (r *Ring) RV() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rv
}

// Cursor returns a cursor that sees what is published from now on. A cursor has
// one user.
func (r *Ring) Cursor() *Cursor {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &Cursor{ring: r, seq: r.next}
}

// Cursor is one watcher's place in the ring.
type Cursor struct {
	ring *Ring
	seq  uint64
}

// Next appends to dst the events that came since the last call, at most limit,
// and waits for one where there is none. It appends nothing where tick fires
// first. Errors: ErrLagged, or that of ctx.
func (c *Cursor) Next(ctx context.Context, dst []Event, limit int, tick <-chan time.Time) ([]Event, error) {
	for {
		r := c.ring
		r.mu.Lock()
		if size := uint64(len(r.buf)); r.next-c.seq > size {
			r.mu.Unlock()
			return dst, ErrLagged
		}
		n := min(r.next-c.seq, uint64(limit))
		for end := c.seq + n; c.seq < end; c.seq++ {
			dst = append(dst, r.buf[c.seq%uint64(len(r.buf))])
		}
		wake := r.wake
		r.mu.Unlock()
		if n > 0 {
			return dst, nil
		}
		select {
		case <-wake:
		case <-tick:
			return dst, nil
		case <-ctx.Done():
			return dst, ctx.Err()
		}
	}
}

// Coalesce drops, in place, every presence event that a later one of the same
// node replaces.
func Coalesce(events []Event) []Event {
	last := make(map[identity.PeerID]int)
	for i, e := range events {
		if e.RV == 0 {
			last[e.Node] = i
		}
	}
	out := events[:0]
	for i, e := range events {
		if e.RV != 0 || last[e.Node] == i {
			out = append(out, e)
		}
	}
	return out
}
