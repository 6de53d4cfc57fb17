// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// FQ-CoDel (RFC 8290) of one pipe's Bulk. Target and interval are three times the
// usual: Critical does not wait behind this queue, so it may be deep, and a pacer
// that drains a bottleneck stops it for up to 20 ms, which is not congestion.
const (
	numFlows    = 128 // a power of two
	quantum     = 1514
	codelTarget = int64(15 * time.Millisecond)
	// minInterval is CoDel's interval where 1.5 RTT is less.
	minInterval = int64(150 * time.Millisecond)
)

// The lists that a flow may be in.
const (
	inNone = iota
	inNew
	inOld
)

type flow struct {
	list
	next *flow
	// since is when the sojourn time began to be above the target; 0: it is not.
	since, dropNext  int64
	deficit          int
	count, lastCount uint32
	in               uint8
	dropping         bool
}

type flowList struct{ head, tail *flow }

func (l *flowList) push(f *flow) {
	f.next = nil
	if l.tail == nil {
		l.head = f
	} else {
		l.tail.next = f
	}
	l.tail = f
}

func (l *flowList) pop() {
	f := l.head
	if l.head = f.next; l.head == nil {
		l.tail = nil
	}
	f.next = nil
}

// flowQueues are the queues of one pipe's Bulk.
type flowQueues struct {
	flows      [numFlows]flow
	bytes      [numFlows]int // of each flow, as flowCost counts
	fresh, old flowList
	idle       int64 // when the last packet left
}

func flowOf(b *packet.Buf) int { return int(b.FlowHash % numFlows) }

// flowCost is what b weighs where flows are compared: its bytes, and something for
// the work it makes.
func flowCost(b *packet.Buf) int { return b.N + 64 }

func (q *flowQueues) push(b *packet.Buf) {
	i := flowOf(b)
	f := &q.flows[i]
	f.push(b)
	q.bytes[i] += flowCost(b)
	if f.in == inNone {
		f.in, f.deficit = inNew, quantum
		q.fresh.push(f)
	}
}

// fattest returns the flow with the most bytes.
func (q *flowQueues) fattest() *flow {
	fat := 0
	for i := range q.bytes {
		if q.bytes[i] > q.bytes[fat] {
			fat = i
		}
	}
	return &q.flows[fat]
}

// takeBulk takes the next packet of p's Bulk; nil: there is none.
func (s *Scheduler) takeBulk(p *Pipe, now int64) *packet.Buf {
	for p.n[packet.Bulk] > 0 {
		q := p.fq
		l := &q.fresh
		if l.head == nil {
			l = &q.old
		}
		f := l.head
		if f.deficit <= 0 {
			f.deficit += quantum
			l.pop()
			f.in = inOld
			q.old.push(f)
			continue
		}
		if b := s.codel(p, f, now); b != nil {
			f.deficit -= b.N + p.perPacket
			return b
		}
		l.pop()
		f.in = inNone
		if l == &q.fresh && q.old.head != nil { // else a flow that comes and goes would always be new
			f.in = inOld
			q.old.push(f)
		}
	}
	return nil
}

// head takes the first packet of f that may leave, and says whether it waited for
// so long that CoDel may drop it.
func (s *Scheduler) head(p *Pipe, f *flow, now int64) (b *packet.Buf, late bool) {
	for {
		b = f.pop()
		if b == nil {
			f.since = 0
			return nil, false
		}
		s.gone(p, int(packet.Bulk), b)
		if b.Datagram == 0 || !s.fates.is(b.Datagram, condemned, now) {
			break
		}
		s.bury(b, Datagram)
	}
	if now-b.Queued < codelTarget || p.fq.bytes[flowOf(b)] <= quantum {
		f.since = 0
		return b, false
	}
	if f.since == 0 {
		f.since = now
		return b, false
	}
	return b, now-max(f.since, p.resumed) >= p.interval
}

// codel takes the next packet of f that it does not drop (RFC 8289, section 5).
func (s *Scheduler) codel(p *Pipe, f *flow, now int64) *packet.Buf {
	b, late := s.head(p, f, now)
	switch {
	case b == nil || !late:
		f.dropping = false
	case f.dropping:
		for f.dropping && now >= f.dropNext {
			marked, dropped := s.punish(p, f, b, now)
			if !marked && !dropped {
				break // the next one
			}
			f.count++
			f.dropNext = law(f.dropNext, p.interval, f.count)
			if marked {
				break
			}
			b, late = s.head(p, f, now)
			f.dropping = late
		}
	default:
		marked, dropped := s.punish(p, f, b, now)
		if !marked && !dropped {
			break
		}
		if dropped {
			b, _ = s.head(p, f, now)
		}
		f.dropping = true
		delta := f.count - f.lastCount
		f.count = 1
		if delta > 1 && now-f.dropNext < 16*p.interval {
			f.count = delta
		}
		f.lastCount = f.count
		f.dropNext = law(now, p.interval, f.count)
	}
	if b != nil && b.Datagram != 0 {
		s.fates.put(b, begun, now)
	}
	return b
}

// punish marks b, which is out of its queue, or drops it with its datagram, or does
// neither because a part of that has left.
func (s *Scheduler) punish(p *Pipe, f *flow, b *packet.Buf, now int64) (marked, dropped bool) {
	switch {
	case mark(b):
		s.lanes[packet.Bulk].marked++
		return true, false
	case s.kept(b, now):
		return false, false
	}
	s.bury(b, CoDel)
	if b.Datagram != 0 {
		s.condemn(p, int(packet.Bulk), &f.list, nil, b, now)
	}
	return false, true
}

// law is CoDel's: drops come closer with the square root of their number.
func law(at, interval int64, count uint32) int64 {
	return at + int64(float64(interval)/math.Sqrt(float64(max(count, 1))))
}
