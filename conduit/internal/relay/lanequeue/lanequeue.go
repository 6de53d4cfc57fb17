// SPDX-License-Identifier: Apache-2.0

// Package lanequeue has the short queue that stands in front of everything slower
// than a socket: the highest lane leaves first, and where the queue is full the
// oldest of the lowest lane goes. Robots want the newest state, and a stop before
// a picture.
package lanequeue

// Lanes is the number of lanes: 0 Critical, 1 Telemetry and 2 Bulk.
const Lanes = 3

// Queue holds a bounded number of values. It is not safe for concurrent use.
type Queue[T any] struct {
	rings [Lanes]ring[T]
	n     int
	limit int
}

// New returns a queue of at most limit values, 1 at least.
func New[T any](limit int) *Queue[T] {
	q := &Queue[T]{limit: max(limit, 1)}
	for l := range q.rings {
		// One more than is kept, for the moment between an arrival and the drop that
		// it causes.
		q.rings[l].buf = make([]T, q.limit+1)
	}
	return q
}

// Len returns how many values wait.
func (q *Queue[T]) Len() int { return q.n }

// Push adds v. Where that is one too many it drops the oldest value of the lowest
// lane, which can be v, and returns it with its lane; else the lane is -1. A lane
// that is none counts as the lowest.
func (q *Queue[T]) Push(lane int, v T) (dropped T, from int) {
	if lane < 0 || lane >= Lanes {
		lane = Lanes - 1
	}
	q.rings[lane].push(v)
	if q.n++; q.n <= q.limit {
		return dropped, -1
	}
	q.n--
	for from = Lanes - 1; q.rings[from].n == 0; {
		from--
	}
	return q.rings[from].pop(), from
}

// Pop takes the oldest value of the highest lane.
func (q *Queue[T]) Pop() (v T, lane int, ok bool) {
	for l := range q.rings {
		if q.rings[l].n > 0 {
			q.n--
			return q.rings[l].pop(), l, true
		}
	}
	return v, -1, false
}

// Peek returns what Pop would, and leaves it there.
func (q *Queue[T]) Peek() (v T, lane int, ok bool) {
	for l := range q.rings {
		if r := &q.rings[l]; r.n > 0 {
			return r.buf[r.head], l, true
		}
	}
	return v, -1, false
}

// ring is a FIFO over a fixed array.
type ring[T any] struct {
	buf  []T
	head int
	n    int
}

func (r *ring[T]) push(v T) {
	r.buf[(r.head+r.n)%len(r.buf)] = v
	r.n++
}

func (r *ring[T]) pop() T {
	var zero T
	v := r.buf[r.head]
	r.buf[r.head] = zero // the collector's
	r.head = (r.head + 1) % len(r.buf)
	r.n--
	return v
}
