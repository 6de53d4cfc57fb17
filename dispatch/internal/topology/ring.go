// SPDX-License-Identifier: Apache-2.0

// Package topology fans the hub's events out to the nodes that watch. Every event
// is encoded once and kept once, in the ring of the scope that it concerns, which
// all watchers of that scope read with a cursor of their own: a slow watcher costs
// nothing but its own resynchronisation, and a change costs nothing outside of its
// scope.
//
// Durable events carry a resource version (rv) and come from the store after
// their commit; presence carries none, is never stored, and the latest wins.
package topology

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// ErrLagged is returned to a watcher that its ring has overtaken.
var ErrLagged = errors.New("watcher is too far behind")

// Event is one message for watchers.
type Event struct {
	// RV is 0 for presence.
	RV uint64
	// Scope is the site whose watchers get it, or store.ScopeAll.
	Scope string
	// Node is whom it is about; zero where about nobody in particular.
	Node identity.PeerID
	// Raw is the encoded WatchTopologyResponse. It is shared: never modify it.
	Raw []byte

	seq uint64 // order of publication
}

// ring holds the newest events of one scope. The feed's lock guards it.
type ring struct {
	buf  []Event
	next uint64        // number of the next event
	wake chan struct{} // closed and replaced by rouse

	// held is the presence that nobody was told of yet, the newest of each node: one
	// that comes and goes all the time takes one place and not all.
	held map[identity.PeerID]Event

	roused  time.Time
	pending bool // a timer is going to rouse
}

func newRing(size int) *ring {
	return &ring{buf: make([]Event, size), wake: make(chan struct{})}
}

// hold keeps a presence event until the ring's watchers are woken.
func (r *ring) hold(e Event) {
	if r.held == nil {
		r.held = make(map[identity.PeerID]Event)
	}
	r.held[e.Node] = e
}

// crowded tells that what is held would soon overtake those that are slow.
func (r *ring) crowded() bool { return len(r.held) >= max(1, len(r.buf)/4) }

// release puts what is held into the ring, in the order of publication.
func (r *ring) release() {
	if len(r.held) == 0 {
		return
	}
	for _, e := range slices.SortedFunc(maps.Values(r.held), bySeq) {
		r.append(e)
	}
	r.held = nil
}

func bySeq(a, b Event) int { return cmp.Compare(a.seq, b.seq) }

// put adds an event that watchers hear of at once.
func (r *ring) put(e Event) {
	r.release()
	r.append(e)
}

func (r *ring) append(e Event) {
	r.buf[r.next%uint64(len(r.buf))] = e
	r.next++
}

// rouse wakes all that wait.
func (r *ring) rouse() {
	r.release()
	r.roused, r.pending = time.Now(), false
	close(r.wake)
	r.wake = make(chan struct{})
}

// read appends to dst the events from *seq on. Errors: ErrLagged.
func (r *ring) read(dst []Event, seq *uint64) ([]Event, error) {
	if r.next-*seq > uint64(len(r.buf)) {
		return dst, ErrLagged
	}
	for ; *seq < r.next; *seq++ {
		dst = append(dst, r.buf[*seq%uint64(len(r.buf))])
	}
	return dst, nil
}

// coalesce drops, in place, every presence event that a later one of the same
// node replaces.
func coalesce(events []Event) []Event {
	if len(events) < 2 {
		return events
	}
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
