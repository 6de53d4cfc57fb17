// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// What became of a datagram.
const (
	undecided = iota
	begun     // a fragment has left, so none of the others may be dropped
	condemned // a fragment was dropped, so none of the others may leave
)

// How long a fate is remembered after the last fragment that met it. What has begun
// may be stretched by a slow path; what is condemned is over once its sender, a
// kernel that makes fragments in one go, has done.
const (
	begunFor     = int64(5 * time.Second)
	condemnedFor = int64(time.Second)
)

// The table has fateSets sets of fateWays datagrams; a power of two.
const (
	fateSets = 128
	fateWays = 4
)

type fate struct {
	key  uint64 // 0: free
	at   int64
	what uint8
	// first: the first fragment has been met, so another one begins another datagram
	// that uses the key anew.
	first bool
}

// fates remembers datagrams. It forgets the oldest where too many are under way.
type fates struct {
	sets [][fateWays]fate // made when the first one is decided
	any  int64            // nothing in it is valid after that
}

func (f *fates) set(key uint64) *[fateWays]fate {
	return &f.sets[(key^key>>32)*0x9e3779b97f4a7c15>>57%fateSets]
}

// of returns what is known of a datagram; nil: nothing.
func (f *fates) of(key uint64, now int64) *fate {
	if f.any <= now {
		return nil
	}
	set := f.set(key)
	for i := range set {
		if e := &set[i]; e.key == key {
			if e.what == begun && now-e.at < begunFor || e.what == condemned && now-e.at < condemnedFor {
				return e
			}
			*e = fate{}
			return nil
		}
	}
	return nil
}

func (f *fates) is(key uint64, what uint8, now int64) bool {
	e := f.of(key, now)
	return e != nil && e.what == what
}

// put remembers what b's datagram met.
func (f *fates) put(b *packet.Buf, what uint8, now int64) {
	e := f.of(b.Datagram, now)
	if e == nil {
		if f.sets == nil {
			f.sets = make([][fateWays]fate, fateSets)
		}
		set := f.set(b.Datagram)
		e = &set[0]
		for i := range set {
			if set[i].at < e.at || set[i].key == 0 {
				e = &set[i]
			}
		}
		*e = fate{key: b.Datagram}
	}
	e.at, e.what = now, what
	e.first = e.first || b.FirstFragment
	f.any = max(f.any, now+begunFor)
}

// arrives reports whether the fragment b must not enter.
func (f *fates) arrives(b *packet.Buf, now int64) bool {
	e := f.of(b.Datagram, now)
	if e == nil {
		return false
	}
	if b.FirstFragment {
		if e.first {
			*e = fate{}
			return false
		}
		e.first = true
	}
	return e.what == condemned
}

// leaves reports whether b, the fragment whose turn it is, may leave, and
// remembers that.
func (f *fates) leaves(b *packet.Buf, now int64) bool {
	if f.is(b.Datagram, condemned, now) {
		return false
	}
	f.put(b, begun, now)
	return true
}

// kept reports whether b must not be dropped.
func (s *Scheduler) kept(b *packet.Buf, now int64) bool {
	return b.Datagram != 0 && s.fates.is(b.Datagram, begun, now)
}

// drop takes b, which follows prev in the queue l of p, out and drops it, and the
// other fragments of its datagram.
func (s *Scheduler) drop(p *Pipe, c int, l *list, prev, b *packet.Buf, why Drop, now int64) {
	l.cut(prev, b)
	s.gone(p, c, b)
	s.bury(b, why)
	if b.Datagram != 0 {
		s.condemn(p, c, l, prev, b, now)
	}
}

// condemn drops the fragments of b's datagram that wait behind prev in l.
func (s *Scheduler) condemn(p *Pipe, c int, l *list, prev, b *packet.Buf, now int64) {
	key, last := b.Datagram, b.LastFragment
	s.fates.put(b, condemned, now)
	at := l.head
	if prev != nil {
		at = prev.Next
	}
	for at != nil && !last { // a fragment behind the last one is met at its turn
		next := at.Next
		if at.Datagram != key {
			prev, at = at, next
			continue
		}
		last = at.LastFragment
		if at.FirstFragment {
			s.fates.put(at, condemned, now)
		}
		l.cut(prev, at)
		s.gone(p, c, at)
		s.bury(at, Datagram)
		at = next
	}
}

// shed drops the first packet of l that may be dropped, with its whole datagram.
// force: even one whose siblings have left.
func (s *Scheduler) shed(p *Pipe, c int, l *list, force bool, now int64) bool {
	var prev *packet.Buf
	for b := l.head; b != nil; prev, b = b, b.Next {
		if force || !s.kept(b, now) {
			s.drop(p, c, l, prev, b, Overflow, now)
			return true
		}
	}
	return false
}

// overdue is the number of packets from which on a queue gives even fragments whose
// siblings have left: those that a limit cannot take yet come on top of it, but not
// without end.
func overdue(limit int) int { return 2*limit + 256 }

// trim drops what is too much after a packet of class c came into p.
func (s *Scheduler) trim(p *Pipe, c int, now int64) {
	switch c {
	case int(packet.Critical):
		for limit := s.cfg.Critical; s.nCrit > limit; {
			if !s.shedClass(s.fatPipe(&s.critical, p, c, limit), c, s.nCrit > overdue(limit), now) {
				return
			}
		}
	case int(packet.Telemetry):
		s.trimUplink(p, c, s.cfg.Telemetry, now)
	case int(packet.Bulk):
		for limit := p.maxBytes; p.wire(c) > limit; {
			if !s.shedClass(p, c, p.wire(c)/2 > limit, now) {
				break
			}
		}
		s.trimUplink(p, c, s.cfg.Bulk, now)
	case demoted:
		for p.n[c] > maxDemoted {
			if !s.shedClass(p, c, p.n[c] > overdue(maxDemoted), now) {
				return
			}
		}
	}
}

func (s *Scheduler) trimUplink(p *Pipe, c, limit int, now int64) {
	for u := p.u; u.n[c] > limit; {
		if !s.shedClass(s.fatPipe(&u.waiting, p, c, limit), c, u.n[c] > overdue(limit), now) {
			return
		}
	}
}

// fatPipe returns the pipe of r that is to give: p where it has its fair share of
// limit, else the one that has the most.
func (s *Scheduler) fatPipe(r *ring, p *Pipe, c, limit int) *Pipe {
	if p.n[c]*r.n >= limit {
		return p
	}
	for q := r.head; q != nil; q = q.links[r.class].next {
		if q.n[c] > p.n[c] {
			p = q
		}
	}
	return p
}

// shedClass drops one packet, or datagram, of p.
func (s *Scheduler) shedClass(p *Pipe, c int, force bool, now int64) bool {
	if c != int(packet.Bulk) {
		return s.shed(p, c, &p.queues[c], force, now)
	}
	if p.n[c] == 0 {
		return false
	}
	fat := p.fq.fattest()
	if s.shed(p, c, &fat.list, force, now) {
		return true
	}
	for i := range p.fq.flows {
		if f := &p.fq.flows[i]; f != fat && s.shed(p, c, &f.list, force, now) {
			return true
		}
	}
	return false
}
