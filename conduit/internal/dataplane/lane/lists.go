// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// list is a queue of packets, through Buf.Next.
type list struct {
	head, tail *packet.Buf
	n          int
}

func (l *list) push(b *packet.Buf) {
	b.Next = nil
	if l.tail == nil {
		l.head = b
	} else {
		l.tail.Next = b
	}
	l.tail = b
	l.n++
}

// pop takes the first packet; nil where there is none.
func (l *list) pop() *packet.Buf {
	b := l.head
	if b != nil {
		l.cut(nil, b)
	}
	return b
}

// cut takes out b, which follows prev; nil: b is the first.
func (l *list) cut(prev, b *packet.Buf) {
	if prev == nil {
		l.head = b.Next
	} else {
		prev.Next = b.Next
	}
	if l.tail == b {
		l.tail = prev
	}
	b.Next = nil
	l.n--
}

// ring is the pipes that have packets of one class that may leave, in the order of
// their turns.
type ring struct {
	class      int
	head, tail *Pipe
	n          int
}

// links are a pipe's place in a ring.
type links struct {
	prev, next *Pipe
	in         bool
}

func (r *ring) link(p *Pipe) {
	l := &p.links[r.class]
	if l.in {
		return
	}
	*l = links{prev: r.tail, in: true}
	if r.tail == nil {
		r.head = p
	} else {
		r.tail.links[r.class].next = p
	}
	r.tail = p
	r.n++
}

func (r *ring) unlink(p *Pipe) {
	l := &p.links[r.class]
	if !l.in {
		return
	}
	if l.prev == nil {
		r.head = l.next
	} else {
		l.prev.links[r.class].next = l.next
	}
	if l.next == nil {
		r.tail = l.prev
	} else {
		l.next.links[r.class].prev = l.prev
	}
	*l = links{}
	r.n--
}

// rotate gives the next pipe its turn.
func (r *ring) rotate() {
	if p := r.head; r.n > 1 {
		r.unlink(p)
		r.link(p)
	}
}

// Slots of Pipe.links besides those of the classes.
const (
	inWaiting = numClasses
	inIdle    = numClasses + 1
	numLinks  = numClasses + 2
)

// idleAfter is how long a pipe without Bulk keeps its flow queues, busyFor how
// long at least, before another pipe may have them.
const (
	idleAfter = int64(10 * time.Second)
	busyFor   = int64(time.Second)
)

// idleList is the pipes that have flow queues without packets, the longest first.
type idleList struct{ ring }

// push adds p, which became empty at about now, and takes its queues from whoever
// has not used them for long.
func (l *idleList) push(p *Pipe, now int64) {
	p.fq.idle = now
	l.link(p)
	if old := l.head; now-old.fq.idle > idleAfter {
		l.unlink(old)
		old.fq = nil
	}
}

// queues returns flow queues for p, which is about to get its first Bulk.
func (l *idleList) queues(p *Pipe, now int64) *flowQueues {
	if p.fq != nil {
		l.unlink(p)
		return p.fq
	}
	if old := l.head; old != nil && now-old.fq.idle > busyFor {
		l.unlink(old)
		fq := old.fq
		old.fq = nil
		*fq = flowQueues{}
		return fq
	}
	return new(flowQueues)
}

// sojourn is how long packets wait.
type sojourn struct {
	mean      int64 // over some 16
	max, last int64 // of this second, of the last one
	since     int64 // when this second began
}

func (w *sojourn) add(now, d int64) {
	w.mean += (d - w.mean) / 16
	if now-w.since > int64(time.Second) {
		w.turn(now)
	}
	w.max = max(w.max, d)
}

func (w *sojourn) turn(now int64) {
	w.last, w.max = w.max, 0
	if now-w.since > 2*int64(time.Second) {
		w.last = 0
	}
	w.since = now
}

// most returns the longest of the last second or two.
func (w *sojourn) most(now int64) int64 {
	if now-w.since > int64(time.Second) {
		w.turn(now)
	}
	return max(w.max, w.last)
}
