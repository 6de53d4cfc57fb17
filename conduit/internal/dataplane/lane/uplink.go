// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Shares of an uplink in eighths of Bulk's.
var weights = [numClasses]int{packet.Telemetry: 24, packet.Bulk: 8, demoted: 1}

// The turn of a lane or pipe is about 1 ms of the rate, within these bounds: long
// enough for batches, short enough that nobody waits for it.
const (
	minTurn = 1514
	maxTurn = 32 << 10
	turnFor = 1e-3
	// givenFor is how long the sum of the pipes' rates is good for.
	givenFor = int64(10 * time.Millisecond)
)

// Uplink is one link of this node to the network: a thin resource that pipes
// share. All methods are safe for concurrent use.
type Uplink struct {
	s *Scheduler
	// The rest is guarded by s.mu.
	closed bool
	listed bool
	limit  float64 // 0: none
	bucket bucket
	held   [packet.NumLanes]int

	n       [numClasses]int
	rings   [numClasses]ring
	waiting ring // pipes with anything but Critical
	scanAt  int64

	turn    int // class
	deficit [numClasses]int
	share   int // bytes of a turn

	// For Police, which does not lock: until when others wait, and what they are given
	// together, as bits.
	strictTo atomic.Int64
	policed  atomic.Uint64

	givenAt  int64 // when givenSum was worked out; 0 never
	givenSum float64
}

// AddUplink returns a new uplink without a limit.
func (s *Scheduler) AddUplink() *Uplink {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := &Uplink{s: s, scanAt: math.MaxInt64, turn: int(packet.Telemetry), share: minTurn}
	for c := range u.rings {
		u.rings[c].class = c
	}
	u.waiting.class = inWaiting
	u.bucket.refill(s.now(), math.Inf(1))
	u.listed = true
	s.uplinks = append(s.uplinks, u)
	return u
}

// SetRate bounds all pipes together, in bytes per second; 0: no bound.
func (u *Uplink) SetRate(bytesPerSecond float64) {
	s := u.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if !(bytesPerSecond > 0) || u.closed {
		bytesPerSecond = 0
	}
	u.limit = bytesPerSecond
	u.refill(s.now())
	s.signalLocked()
}

func (u *Uplink) refill(now int64) {
	rate := u.limit
	if rate == 0 {
		rate = math.Inf(1)
	}
	u.bucket.refill(max(now, u.bucket.at), rate)
}

func (u *Uplink) take(now int64, bytes int) {
	if u.limit > 0 {
		u.refill(now)
		u.bucket.take(bytes)
	}
}

// Close ends the pacing of all pipes that wait for u, and the holds. What waits is
// handed out.
func (u *Uplink) Close() {
	s := u.s
	s.mu.Lock()
	defer s.mu.Unlock()
	u.closed, u.limit, u.held = true, 0, [packet.NumLanes]int{}
	u.refill(s.now())
	for p := u.waiting.head; p != nil; p = p.links[inWaiting].next {
		p.closeLocked()
	}
	s.prune(u)
	s.signalLocked()
}

// prune forgets u where it is closed and nothing waits for it.
func (s *Scheduler) prune(u *Uplink) {
	if !u.closed || u.waiting.n > 0 || !u.listed {
		return
	}
	u.listed = false
	for i, o := range s.uplinks {
		if o == u { // a new slice, since somebody may be walking the old one
			s.uplinks = append(s.uplinks[:i:i], s.uplinks[i+1:]...)
			return
		}
	}
}

// Hold keeps lane l and those below it from Dequeue until as many Unholds: the
// uplink's socket has no room. Critical is never held.
func (u *Uplink) Hold(l packet.Lane) {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if !u.closed {
		u.held[l]++
	}
}

// Unhold takes back one Hold.
func (u *Uplink) Unhold(l packet.Lane) {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if u.held[l] > 0 {
		u.held[l]--
	}
	u.s.signalLocked()
}

// open returns how many classes may be taken from.
func (u *Uplink) open() int {
	for l, n := range u.held {
		if n > 0 {
			return l
		}
	}
	// While others wait for their pace, what is demoted waits as well: a path of its
	// own must not make it one more sender beside them.
	if u.rings[packet.Telemetry].n+u.rings[packet.Bulk].n == 0 && u.n[packet.Telemetry]+u.n[packet.Bulk] > 0 {
		return demoted
	}
	return numClasses
}

// waits is told that p has begun to wait.
func (u *Uplink) waits(p *Pipe) {
	p.blocked = true // until update says otherwise
	u.waiting.link(p)
	if u.closed {
		p.st = nil
		if !u.listed {
			u.listed = true
			u.s.uplinks = append(u.s.uplinks, u)
		}
	}
}

// rests is told that nothing waits for p any more.
func (u *Uplink) rests(p *Pipe) {
	p.blocked, p.leaving, p.waitFrom = false, false, 0
	u.waiting.unlink(p)
	u.s.prune(u)
}

// expect has p looked at when it is due.
func (u *Uplink) expect(p *Pipe, now int64) { u.scanAt = min(u.scanAt, max(p.due(), now)) }

// scan updates those pipes that are due.
func (u *Uplink) scan(now int64) {
	if now < u.scanAt {
		return
	}
	u.scanAt = math.MaxInt64
	for p := u.waiting.head; p != nil; p = p.links[inWaiting].next {
		if p.due() <= now {
			p.update(now)
		}
		u.scanAt = min(u.scanAt, p.due())
	}
}

// ready returns whether a pipe has tokens, in a class below open.
func (u *Uplink) ready(open int) bool {
	for c := int(packet.Telemetry); c < open; c++ {
		if u.rings[c].n > 0 {
			return true
		}
	}
	return false
}

// pick returns whose turn it is of the classes below open; -1: nobody's. alone: no
// other class could be picked, so what leaves is not counted.
func (u *Uplink) pick(open int) (c int, alone bool) {
	c = -1
	alone = true
	for i := int(packet.Telemetry); i < open; i++ {
		if u.rings[i].n > 0 {
			alone = c < 0
			c = i
		}
	}
	if alone {
		return c, true
	}
	for {
		c = u.turn
		switch {
		case u.n[c] == 0:
			u.deficit[c] = 0
		case u.rings[c].n > 0 && c < open:
			if u.deficit[c] > 0 {
				return c, false
			}
			u.deficit[c] += u.share * weights[c] / 8
		}
		if u.turn++; u.turn == numClasses {
			u.turn = int(packet.Telemetry)
		}
	}
}

// pickPipe returns the pipe whose turn it is in class c.
func (u *Uplink) pickPipe(c int) (p *Pipe, alone bool) {
	r := &u.rings[c]
	for r.n > 1 && r.head.deficit[c] <= 0 {
		r.head.deficit[c] += u.share
		r.rotate()
	}
	return r.head, r.n == 1
}

// setShare sizes the turns after p.
func (u *Uplink) setShare(p *Pipe) {
	rate := min(p.bucket.rate, u.bucket.rate)
	u.share = maxTurn
	if !math.IsInf(rate, 1) {
		u.share = int(min(max(rate*turnFor, minTurn), maxTurn))
	}
}

// police notes that packets wait for a pipe whose rate is known.
func (u *Uplink) police(now int64) {
	u.policed.Store(math.Float64bits(u.given(now)))
	u.strictTo.Store(now + strictFor)
}

// given is what the strategies of the pipes that wait let out together, in bytes per
// second. It is worked out a hundred times a second at most.
func (u *Uplink) given(now int64) float64 {
	if now-u.givenAt < givenFor && u.givenAt != 0 {
		return u.givenSum
	}
	u.givenAt, u.givenSum = max(now, 1), 0
	for p := u.waiting.head; p != nil; p = p.links[inWaiting].next {
		if r := p.Rate(); !math.IsInf(r, 1) && p.n[packet.Telemetry]+p.n[packet.Bulk] > 0 {
			u.givenSum += r
		}
	}
	return u.givenSum
}
