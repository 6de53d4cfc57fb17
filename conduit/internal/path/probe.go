// SPDX-License-Identifier: Apache-2.0

package path

import (
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// The gaps between probes.
	idleGap   = 15 * time.Second
	warmGap   = time.Second
	activeGap = 100 * time.Millisecond
	bondGap   = 50 * time.Millisecond
	// rttGap is the longest time without a measurement where others hear us.
	rttGap = time.Second
	// judgeGap is the same where another path could serve instead.
	judgeGap = 250 * time.Millisecond
	// spareGap is that of relays while a direct path serves.
	spareGap = 5 * time.Second
	// manyPaths is from which place on paths are probed four times less.
	manyPaths = 8

	// Probes to paths that are not valid: this many at once, then one in paceGap.
	burst   = 50
	paceGap = 10 * time.Millisecond
	// triggerGap is the least time between probes that packets trigger.
	triggerGap = 20 * time.Millisecond
	// upgradeGap is how often silent pairs are tried again while no direct path serves.
	upgradeGap = 30 * time.Second
)

// findGaps are the times between the first probes of a pair, 15 s in all.
var findGaps = [...]time.Duration{
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 650 * time.Millisecond,
	time.Second, time.Second, time.Second, 2 * time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second,
}

// Fates of a probe.
const (
	pending = iota
	answered
	lost
)

// sent is a probe that was sent.
type sent struct {
	seq  uint32
	size uint16 // 0: unpadded
	fate uint8
	pos  uint32 // its place in the history of quality
	at   dur
}

// probeRing remembers the last probes of a path.
type probeRing struct {
	e     []sent
	n     uint32 // probes ever
	first uint32 // the oldest that may be pending
}

const maxRing = 64

func (r *probeRing) at(i uint32) *sent { return &r.e[i%uint32(len(r.e))] }

// add remembers a probe. The one that it takes the place of is returned where it
// was still pending.
func (r *probeRing) add(x sent) (over sent, was bool) {
	if n := uint32(len(r.e)); r.n-r.first >= n && n < maxRing {
		e := make([]sent, max(8, 2*n))
		for i := r.first; i != r.n; i++ {
			e[i%uint32(len(e))] = *r.at(i)
		}
		r.e = e
	}
	if r.n-r.first >= uint32(len(r.e)) {
		over, was = *r.at(r.first), r.at(r.first).fate == pending
		r.first++
	}
	*r.at(r.n) = x
	r.n++
	return over, was
}

// find returns the probe with seq, or nil.
func (r *probeRing) find(seq uint32) *sent {
	for i := range r.e {
		if e := &r.e[i]; e.seq == seq && seq != 0 {
			return e
		}
	}
	return nil
}

// gap is the time between probes of a valid path.
func (s *Set) gap(p *path) time.Duration {
	serves := p.used[0] || p.used[1] || p.used[2]
	g := idleGap
	switch s.demand {
	case Warm:
		g = warmGap
		if p.kind != Direct && !serves {
			g = spareGap
		}
	case Active:
		switch {
		case serves && s.bond:
			g = bondGap
		case serves && p.q.boost > s.now:
			g = bondGap
		case serves:
			g = activeGap
		case p.kind == Direct || s.doubtful():
			g = warmGap
		default:
			g = spareGap
		}
	default:
		if p.kind >= Peer && !serves {
			g *= 4 // there is no NAT to keep open
		}
	}
	if !serves && int(p.rank) >= manyPaths {
		g *= 4
	}
	return g
}

// doubtful reports whether a direct path in use is losing packets.
func (s *Set) doubtful() bool {
	if s.doubt {
		return true
	}
	for _, p := range s.use[0] {
		if p.q.boost > s.now || p.q.bad != 0 {
			return true
		}
	}
	return false
}

// dueProbe is when p is to be probed next.
func (s *Set) dueProbe(p *path) dur {
	if p.chal != nil {
		return never // we may not send there
	}
	if p.local.Fallback && s.haveDirect {
		return never
	}
	if p.force {
		return s.now
	}
	switch p.state {
	case StateNew, StateProbing:
		return s.paced(p.nextTry)
	case StateValid:
		return s.dueValid(p)
	case StateSuspect:
		g := bondGap
		switch age := s.now - p.since; {
		case s.demand == Idle || age > 15*time.Second:
			g = time.Second
		case age > 5*time.Second || int(p.rank) >= manyPaths:
			g = 250 * time.Millisecond
		}
		return p.lastProbe + g
	default:
	}
	if !p.proven {
		return never
	}
	g := idleGap
	switch {
	case p.answers > 0:
		return s.paced(p.lastProbe + bondGap)
	case s.demand == Warm:
		g = 2 * time.Second
	case s.demand == Active:
		g = time.Second
	}
	if g < spareGap && s.usable > 0 && (p.kind != Direct || int(p.rank) >= manyPaths) {
		g = spareGap
	}
	return s.paced(p.lastProbe + g)
}

func (s *Set) dueValid(p *path) dur {
	g := s.gap(p)
	next := p.lastProbe + g
	if g > time.Second && p.unanswered > 0 {
		next = p.lastProbe + time.Second // ask again soon
	}
	if g < rttGap && (!s.bond || g != bondGap) && !p.q.poor {
		// What is heard counts as an answer, but somebody must hear us too.
		limit := p.lastProbe + rttGap
		if s.usable > 1 {
			limit = p.lastProbe + max(g, judgeGap)
		}
		if p.unanswered > 0 {
			limit = p.lastProbe + max(g, p.q.rto())
		}
		next = max(next, min(p.heard+g, limit))
	}
	return next
}

// paced is the first time from t on at which there is a probe to spare.
func (s *Set) paced(t dur) dur {
	if t == never {
		return t
	}
	return max(t, s.pace-(burst-1)*paceGap)
}

// dueUpgrade is when silent pairs are due again.
func (s *Set) dueUpgrade() dur {
	if s.demand == Idle || !s.indirect {
		return never
	}
	return s.upgradeAt
}

func (s *Set) upgrade() {
	if !s.indirect || s.demand == Idle {
		if s.haveDirect {
			s.upgradeAt = s.now + upgradeGap
		}
		return
	}
	if s.now < s.upgradeAt {
		return
	}
	s.upgradeAt = s.now + upgradeGap
	for _, p := range s.paths {
		if p.kind == Direct && p.state == StateDead && !p.proven {
			s.rearm(p)
			p.attempts = len(findGaps) - 1 // two probes
		}
	}
}

// rearm begins anew with a pair that did not answer.
func (s *Set) rearm(p *path) {
	if p.chal != nil {
		return
	}
	switch p.state {
	case StateNew:
		p.nextTry = min(p.nextTry, s.now)
	case StateDead:
		if p.proven {
			p.force = true
			return
		}
		s.enter(p, StateNew)
		p.attempts, p.nextTry = 0, s.now
	case StateProbing:
		if p.attempts > 3 { // it is slow by now
			p.attempts, p.nextTry = 0, s.now
		}
	default:
	}
}

// trigger probes p soon because something came from there.
func (s *Set) trigger(p *path) {
	if p.chal != nil || p.state == StateValid || s.now-p.lastProbe < triggerGap {
		return
	}
	switch {
	case p.state == StateSuspect, p.proven:
		p.force = true
	case p.state == StateDead:
		s.enter(p, StateProbing)
		p.attempts, p.nextTry = 2, s.now
	default:
		p.nextTry = s.now
	}
}

// enter changes the state of p.
func (s *Set) enter(p *path, st State) {
	if p.state == st {
		return
	}
	if p.used[0] || p.used[1] || p.used[2] || st == StateValid || p.state == StateValid {
		s.dirty = true
	}
	p.state, p.since = st, s.now
}

// probe sends a probe of size bytes, 0 for one without padding.
func (s *Set) probe(p *path, size int) {
	if p.state != StateValid && p.state != StateSuspect {
		s.pace = max(s.pace, s.now) + paceGap
	}
	p.force = false
	if p.state == StateNew || p.state == StateProbing {
		s.enter(p, StateProbing)
		if p.attempts < len(findGaps) {
			p.nextTry = s.now + findGaps[p.attempts]
			p.attempts++
		} else {
			p.nextTry = never // age ends it
		}
	}
	s.seq++
	x := sent{seq: s.seq, size: uint16(size), at: s.now}
	if over, was := p.ring.add(x); was {
		s.lose(p, &over)
	}
	if size == 0 {
		p.lastProbe = s.now
		p.unanswered++
		if p.firstOut == 0 {
			p.firstOut = s.now
		}
		s.settle(p)
	}
	o := Output{Kind: SendProbe, ID: p.id, Size: size}
	o.Probe = wire.Probe{Path: p.num, Seq: s.seq, Sent: uint64(s.now)}
	o.Probe.Uplink = p.local.Uplink
	if p.movedOut != 0 && s.now-p.movedOut < movedFor {
		o.Probe.Flags |= wire.ProbeMoved
	}
	s.out = append(s.out, o)
}

// settle gives up probes whose answer is overdue.
func (s *Set) settle(p *path) {
	for rto := p.q.rto(); p.ring.first != p.ring.n; p.ring.first++ {
		e := p.ring.at(p.ring.first)
		if e.fate == pending {
			if s.now-e.at < rto {
				return
			}
			s.lose(p, e)
			e.fate = lost
		}
	}
}

// lose counts a small probe as lost; what was lost while the path was down says
// nothing of its quality.
func (s *Set) lose(p *path, e *sent) {
	if e.size != 0 {
		return
	}
	p.missed++
	p.answers = 0
	if p.state == StateValid {
		e.pos = p.q.note(true)
		if p.q.lately() < 2 {
			p.q.boost = max(p.q.boost, s.now+boostFor/2)
			return
		}
		if p.q.boost <= s.now {
			p.m.doubt(s.now)
		}
		p.q.boost = s.now + boostFor
	}
}

// Heard says that an authenticated packet came on id at the given time, the
// newest one. It reports whether id is known; an unknown one is challenged.
func (s *Set) Heard(id ID, at, now time.Time) (known bool) {
	s.advance(now)
	id = norm(id)
	p := s.byID[id]
	if p == nil {
		s.stranger(id)
		return false
	}
	s.hear(p, s.moment(at))
	return true
}

func (s *Set) hear(p *path, at dur) {
	if at <= p.heard {
		return
	}
	p.heard = at
	if p.chal != nil {
		p.chal.earn()
	}
	if at >= p.firstOut {
		p.firstOut = 0
	}
	s.trigger(p)
}

// Probed says that a probe of the peer came on id. It is answered elsewhere.
func (s *Set) Probed(id ID, m wire.Probe, now time.Time) {
	s.advance(now)
	id = norm(id)
	p := s.byID[id]
	if p == nil {
		if p = s.stranger(id); p == nil {
			return
		}
	}
	if u := m.Uplink; u != 0 && u != p.remoteUplink {
		p.remoteUplink = u
		s.dirty = s.dirty || p.state == StateValid
	}
	s.hear(p, s.now)
	if m.Flags&wire.ProbeMoved != 0 {
		p.movedIn = s.now
		if p.state == StateValid {
			s.supersede(p)
		}
	}
}

// supersede ends the paths to the addresses that the peer has left: those of the
// same uplink on which it did not say so too.
func (s *Set) supersede(p *path) {
	if p.remoteUplink == 0 || p.movedIn == 0 || s.now-p.movedIn > movedFor {
		return
	}
	for _, o := range s.paths {
		if o != p && o.remoteUplink == p.remoteUplink && o.heard < p.movedIn+movedSlack && (o.movedIn == 0 || s.now-o.movedIn > movedFor) &&
			(o.state == StateValid || o.state == StateSuspect) {
			o.answers = 0
			s.enter(o, StateDead)
		}
	}
}

// Acked says that the answer to one of our probes came on id at the given time.
func (s *Set) Acked(id ID, a wire.ProbeAck, at, now time.Time) {
	s.advance(now)
	p := s.byID[norm(id)]
	if p == nil {
		return
	}
	e := p.ring.find(a.Probe.Seq)
	if e == nil || e.fate == answered {
		return
	}
	got := s.moment(at)
	late := e.fate == lost
	e.fate = answered
	p.heard = max(p.heard, got)
	p.reached = max(p.reached, e.at)
	p.firstOut, p.missed, p.movedOut = 0, 0, 0
	if e.size == 0 {
		p.unanswered = 0
		rtt := max(got-e.at, 0)
		if hold := time.Duration(a.Hold) * time.Microsecond; hold < rtt {
			rtt -= hold
		}
		p.q.measure(rtt)
		if late && e.pos != 0 {
			p.q.amend(e.pos)
		} else {
			e.pos = p.q.note(false)
		}
	} else if int(e.size) == int(a.Size) {
		p.m.acked(p, s, int(e.size))
	}
	s.alive(p)
}
