// SPDX-License-Identifier: Apache-2.0

// Package oldlane queues packets by priority in front of one uplink, the thin
// resource that all peers share.
package oldlane

import (
	"sync"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Capacities of the lanes in packets.
const (
	DefaultCritical  = 1024
	DefaultTelemetry = 2048
	DefaultBulk      = 4096
)

// Flows is told when a packet of a flow leaves its lane, sent or dropped. Whoever
// decided for the lane has counted it in.
type Flows interface {
	Left(flow uint32, l packet.Lane)
}

// Config of an Uplink. Zero capacities mean the defaults; nil hooks are not
// called.
type Config struct {
	Critical, Telemetry, Bulk int
	Flows                     Flows
	// OnDrop is told of each packet that found no room or was evicted, before its
	// release and outside the lock.
	OnDrop func(*packet.Buf)
}

// Stats are the counters of one lane. Overflow counts packets that were evicted or found no room.
type Stats struct {
	Enqueued, Dequeued, Overflow uint64
	Depth, Bytes                 int
}

// Uplink is the lanes of one uplink. All methods are safe for concurrent use.
type Uplink struct {
	cfg  Config
	wake chan struct{}
	done chan struct{} // closed by Close

	mu     sync.Mutex // guards the rest
	closed bool
	lanes  [packet.NumLanes]ring
	// held counts the holds on each lane.
	held [packet.NumLanes]int
}

// ring is a bounded queue. Critical and Telemetry evict the oldest, since only
// fresh data helps; Bulk refuses the newest, since TCP expects order.
type ring struct {
	bufs       []*packet.Buf
	head, n    int
	evict      bool
	bytes      int
	enqueued   uint64
	dequeued   uint64
	overflowed uint64
}

// New returns an empty Uplink.
func New(cfg Config) *Uplink {
	u := &Uplink{cfg: cfg, wake: make(chan struct{}, 1), done: make(chan struct{})}
	for l, size := range [packet.NumLanes]struct{ set, def int }{
		{cfg.Critical, DefaultCritical}, {cfg.Telemetry, DefaultTelemetry}, {cfg.Bulk, DefaultBulk},
	} {
		n := size.set
		if n <= 0 {
			n = size.def
		}
		u.lanes[l] = ring{bufs: make([]*packet.Buf, n), evict: packet.Lane(l) != packet.Bulk}
	}
	return u
}

// Enqueue takes all bufs, each into its Lane, and never waits. It overwrites
// elements of bufs.
func (u *Uplink) Enqueue(bufs []*packet.Buf) {
	dropped := bufs[:0] // at most one for each that was read, so in place
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		for _, b := range bufs {
			u.left(b)
			b.Release()
		}
		return
	}
	for _, b := range bufs {
		r := &u.lanes[b.Lane]
		if r.n == len(r.bufs) {
			r.overflowed++
			if !r.evict {
				u.left(b)
				dropped = append(dropped, b)
				continue
			}
			dropped = append(dropped, u.popLocked(r))
		}
		r.bufs[(r.head+r.n)%len(r.bufs)] = b
		r.n++
		r.bytes += b.N
		r.enqueued++
	}
	u.mu.Unlock()
	u.signal()
	for _, b := range dropped {
		if u.cfg.OnDrop != nil {
			u.cfg.OnDrop(b)
		}
		b.Release()
	}
}

func (u *Uplink) popLocked(r *ring) *packet.Buf {
	b := r.bufs[r.head]
	r.bufs[r.head] = nil
	r.head = (r.head + 1) % len(r.bufs)
	r.n--
	r.bytes -= b.N
	u.left(b)
	return b
}

func (u *Uplink) left(b *packet.Buf) {
	if u.cfg.Flows != nil {
		u.cfg.Flows.Left(b.FlowHash, b.Lane)
	}
}

// Dequeue moves packets of the most urgent lane that has any into dst and returns
// how many; the caller owns them. One call gives one lane, so that a send of Bulk
// is never the reason why Critical waits for longer than that send.
func (u *Uplink) Dequeue(dst []*packet.Buf) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	for l := range u.openLocked() {
		r := &u.lanes[l]
		if r.n == 0 {
			continue
		}
		n := min(r.n, len(dst))
		for i := range n {
			dst[i] = u.popLocked(r)
		}
		r.dequeued += uint64(n)
		return n
	}
	return 0
}

// Hold keeps lane l and those below it from Dequeue until as many Unholds:
// somewhere behind them is no room. Critical must not be held.
func (u *Uplink) Hold(l packet.Lane) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held[l]++
}

// Unhold takes back one Hold.
func (u *Uplink) Unhold(l packet.Lane) {
	u.mu.Lock()
	u.held[l]--
	u.mu.Unlock()
	u.signal()
}

// openLocked returns how many lanes may be taken from.
func (u *Uplink) openLocked() int {
	for l, n := range u.held {
		if n > 0 {
			return l
		}
	}
	return packet.NumLanes
}

func (u *Uplink) signal() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// Wait returns true when a packet waits in a lane that is not held, and false
// after Close or when done is closed.
func (u *Uplink) Wait(done <-chan struct{}) bool {
	for {
		u.mu.Lock()
		closed, some := u.closed, false
		for l := range u.openLocked() {
			some = some || u.lanes[l].n > 0
		}
		u.mu.Unlock()
		switch {
		case closed:
			return false
		case some:
			return true
		}
		select {
		case <-u.wake:
		case <-u.done:
			return false
		case <-done:
			return false
		}
	}
}

// Close releases what waits and ends Wait. Idempotent.
func (u *Uplink) Close() {
	u.mu.Lock()
	if !u.closed {
		u.closed = true
		close(u.done)
	}
	var rest []*packet.Buf
	for l := range u.lanes {
		for u.lanes[l].n > 0 {
			rest = append(rest, u.popLocked(&u.lanes[l]))
		}
	}
	u.mu.Unlock()
	for _, b := range rest {
		b.Release()
	}
}

// Stats returns the counters of all lanes, of one instant.
func (u *Uplink) Stats() (s [packet.NumLanes]Stats) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for l := range u.lanes {
		r := &u.lanes[l]
		s[l] = Stats{Enqueued: r.enqueued, Dequeued: r.dequeued, Overflow: r.overflowed, Depth: r.n, Bytes: r.bytes}
	}
	return s
}
