// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// criticalTurn is how many packets of Critical one pipe gets before the next.
const criticalTurn = 8

// Dequeue moves packets of one lane and one pipe into dst, the most urgent that may
// leave now, and returns how many; the caller owns them. p is nil for those that
// had none. After they were sent the caller tells p with Sent, which is where
// their tokens go. train: they are a train, or a part of it, to be sent back to
// back and in packets of their own; Pipe.TrainSent is to be called, too.
//
// One call gives one lane, so that a send of Bulk is never the reason why Critical
// waits for longer than that send.
func (s *Scheduler) Dequeue(dst []*packet.Buf) (n int, p *Pipe, train bool) {
	s.mu.Lock()
	now := s.now()
	s.scan(now)
	for n == 0 && len(dst) > 0 {
		var ok bool
		if n, p, train, ok = s.dequeue(dst, now); !ok {
			break
		}
	}
	if p == s.free {
		p = nil
	}
	dead := s.exhume()
	s.mu.Unlock()
	s.release(dead)
	return n, p, train
}

// dequeue makes one attempt. ok: another one may find something.
func (s *Scheduler) dequeue(dst []*packet.Buf, now int64) (n int, p *Pipe, train, ok bool) {
	if s.control.n > 0 {
		return s.serveControl(dst, now), nil, false, true
	}
	if p = s.critical.head; p != nil {
		if s.critical.n > 1 {
			dst = dst[:min(len(dst), criticalTurn)]
		}
		n, _ = s.serve(p, int(packet.Critical), math.MaxInt, dst, now)
		if s.critical.head == p {
			s.critical.rotate()
		}
		return n, p, false, true
	}
	if len(s.trains) > 0 {
		p = s.trains[0]
		return s.serveTrain(p, dst, now), p, true, true
	}
	for i := range s.uplinks {
		at := (s.turn + i) % len(s.uplinks)
		u := s.uplinks[at]
		if n, p, ok = u.dequeue(dst, now); ok {
			s.turn = at + 1
			return n, p, false, true
		}
	}
	return 0, nil, false, false
}

// dequeue serves the pipe whose turn it is.
func (u *Uplink) dequeue(dst []*packet.Buf, now int64) (n int, p *Pipe, ok bool) {
	c, only := u.pick(u.open())
	if c < 0 {
		return 0, nil, false
	}
	if u.refill(now); !u.bucket.open() {
		return 0, nil, false
	}
	p, alone := u.pickPipe(c)
	p.update(now)
	u.expect(p, now)
	if p.blocked || p.train > 0 {
		return 0, nil, true
	}
	u.setShare(p)
	budget := u.bucket.budget()
	if !p.leaving {
		budget = min(budget, p.bucket.budget())
	}
	if !only {
		budget = min(budget, u.deficit[c])
	}
	if !alone {
		budget = min(budget, p.deficit[c])
	}
	n, bytes := u.s.serve(p, c, budget, dst, now)
	if !only {
		u.deficit[c] -= bytes
	}
	if !alone {
		p.deficit[c] -= bytes
	}
	return n, p, true
}

// serve takes packets of class c from p until budget, in wire bytes, is used up.
func (s *Scheduler) serve(p *Pipe, c int, budget int, dst []*packet.Buf, now int64) (n, bytes int) {
	if c == int(packet.Bulk) {
		p.serves(now)
	}
	st := &s.lanes[laneOf(c)]
	wait := &p.wait[laneOf(c)]
	for n < len(dst) && bytes < budget {
		var b *packet.Buf
		if c == int(packet.Bulk) {
			b = s.takeBulk(p, now)
		} else {
			b = s.take(p, c, now)
		}
		if b == nil {
			break
		}
		s.left(b)
		st.wait.add(now, now-b.Queued)
		wait.add(now, now-b.Queued)
		bytes += b.N + p.perPacket
		dst[n] = b
		n++
	}
	st.dequeued += uint64(n)
	return n, bytes
}

// serveTrain serves p's train, of Bulk and, where that is all, of what is demoted.
func (s *Scheduler) serveTrain(p *Pipe, dst []*packet.Buf, now int64) int {
	if p.u.open() <= int(packet.Bulk) {
		p.endTrain()
		return 0
	}
	n, bytes := 0, 0
	for _, c := range [...]int{int(packet.Bulk), demoted} {
		m, size := s.serve(p, c, p.train-bytes, dst[n:], now)
		n, bytes = n+m, bytes+size
	}
	left := p.train - bytes
	if left <= 0 || p.n[packet.Bulk]+p.n[demoted] == 0 {
		p.endTrain()
	} else {
		p.train = left
	}
	return n
}

func (s *Scheduler) serveControl(dst []*packet.Buf, now int64) (n int) {
	st := &s.lanes[packet.Critical]
	for n < len(dst) {
		b := s.control.pop()
		if b == nil {
			break
		}
		st.depth--
		st.bytes -= b.N
		st.wait.add(now, now-b.Queued)
		s.left(b)
		dst[n] = b
		n++
	}
	st.dequeued += uint64(n)
	return n
}

// take takes the first packet of class c that is not too old; nil: there is none.
func (s *Scheduler) take(p *Pipe, c int, now int64) *packet.Buf {
	limit, why := telemetryAge, Age
	switch c {
	case int(packet.Critical):
		limit, why = criticalDeadline, Deadline
	case demoted:
		limit = demotedAge
	}
	l := &p.queues[c]
	for b := l.head; b != nil; b = l.head {
		if now-b.Queued > limit && !s.kept(b, now) {
			s.drop(p, c, l, nil, b, why, now)
			continue
		}
		l.cut(nil, b)
		s.gone(p, c, b)
		if b.Datagram != 0 && !s.fates.leaves(b, now) {
			s.bury(b, Datagram)
			continue
		}
		return b
	}
	return nil
}

// serves tells that Bulk is about to leave p. After a pause that is longer than
// CoDel's interval the queue says nothing about those who fill it.
func (p *Pipe) serves(now int64) {
	pause := max(p.interval, int64(4*onePacket/p.bucket.rate*1e9))
	if now-p.served > pause {
		p.resumed = now
	}
	p.served = now
}

// scan updates what is due.
func (s *Scheduler) scan(now int64) {
	for _, u := range s.uplinks {
		u.scan(now)
	}
}

// next returns when something can be dequeued or has to be looked at; now: at once.
func (s *Scheduler) next(now int64) int64 {
	if s.control.n > 0 || s.critical.n > 0 || len(s.trains) > 0 {
		return now
	}
	at := int64(math.MaxInt64)
	for _, u := range s.uplinks {
		at = min(at, u.scanAt)
		if !u.ready(u.open()) {
			continue
		}
		u.refill(now)
		if u.bucket.open() {
			return now
		}
		at = min(at, u.bucket.readyAt(now))
	}
	return at
}

// NextAt returns when Dequeue may find something: the present time or less at once;
// math.MaxInt64: never, unless something happens. A time that was asked for with
// Wake counts, too.
func (s *Scheduler) NextAt() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.scan(now)
	return min(s.next(now), s.wakeAt)
}

// Wake has Wait return true at the given time, or at once when that has passed.
func (s *Scheduler) Wake(at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at < s.wakeAt {
		s.wakeAt = at
		s.signalLocked()
	}
}

// signalLocked wakes Wait.
func (s *Scheduler) signalLocked() {
	if s.sleeping {
		s.sleeping = false
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Wait returns true when something can be dequeued, or when it was asked to with
// Wake; false after Close or when done is closed.
func (s *Scheduler) Wait(done <-chan struct{}) bool {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return false
		}
		now := s.now()
		s.scan(now)
		at := s.next(now)
		if s.wakeAt <= now {
			s.wakeAt, at = math.MaxInt64, now
		}
		at = min(at, s.wakeAt)
		s.sleeping, s.sleepTo = at > now, at
		s.mu.Unlock()
		if at <= now {
			return true
		}
		if !s.sleep(at-now, done) {
			return false
		}
	}
}

// sleep returns after d, or when it is woken; false: it is over.
func (s *Scheduler) sleep(d int64, done <-chan struct{}) bool {
	var timeout <-chan time.Time
	if d < math.MaxInt64/2 {
		if s.timer == nil {
			s.timer = time.NewTimer(time.Duration(d))
		} else {
			s.timer.Reset(time.Duration(d))
		}
		defer s.timer.Stop()
		timeout = s.timer.C
	}
	select {
	case <-timeout:
	case <-s.wake:
	case <-s.done:
		return false
	case <-done:
		return false
	}
	return true
}
