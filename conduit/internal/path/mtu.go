// SPDX-License-Identifier: Apache-2.0

package path

import "time"

// Path MTU discovery after RFC 8899. A path starts with what a 1350-byte inner
// packet needs and confirms it. Where probes of that size are lost while small
// ones pass, it falls to the base and climbs from there.

const (
	// ipHeaders4 and ipHeaders6 are the sizes of the IP and UDP headers.
	ipHeaders4 = 20 + 8
	ipHeaders6 = 40 + 8
	// turnHeaders and relayHeaders are what a relay adds at most.
	turnHeaders  = 40
	relayHeaders = 80
	// wanted is the datagram of an inner packet of 1350 bytes.
	wanted = 1350 + 32
	// hubMTU is the largest packet on the hub's stream.
	hubMTU = 1500

	mtuTries    = 3 // lost probes of one size that mean too big
	mtuAttempts = 8 // of which more are lost together with small ones
	confirmGap  = 30 * time.Second
	loadedGap   = time.Second // the same while large packets are sent
	raiseGap    = 10 * time.Minute
	// fallGap is how long packets that are too big may still come.
	fallGap = 50 * time.Millisecond
)

// outerSizes are the sizes of IP packets that are tried.
var outerSizes = [...]int{1280, 1360, 1400, 1410, 1420, 1430, 1452, 1492, 1500}

// mtu is the state of one path's discovery. Sizes are indexes of outerSizes.
type mtu struct {
	off       int // what a packet has around its payload
	fixed     int // hub streams
	cur       int // what packets may have
	confirmed bool
	ceiling   int // the smallest known to be too big

	trying   int // the size of the probe that is out; -1 none
	fails    int // probes of that size that were lost alone
	attempts int
	seq      uint32 // the large probe
	small    uint32 // and its small companion
	deadline dur
	next     dur // the next confirmation or climb
	began    dur // the last one
	raiseAt  dur
}

func (m *mtu) size(i int) int {
	if m.fixed != 0 {
		return m.fixed
	}
	return outerSizes[i] - m.off
}

func (m *mtu) init(p *path) {
	*m = mtu{off: ipHeaders4, trying: -1, next: never, raiseAt: never, ceiling: len(outerSizes)}
	if p.id.Remote.Addr().Is6() {
		m.off = ipHeaders6
	}
	want := wanted
	switch p.kind {
	case Hub:
		m.fixed, m.confirmed = hubMTU, true
		return
	case Turn:
		m.off += turnHeaders
	case Peer:
		m.off += relayHeaders
		want -= relayHeaders
	default:
	}
	for m.cur < len(outerSizes)-1 && m.size(m.cur) < want {
		m.cur++
	}
}

// sized reports whether p's size matters now: it is used, or would be next.
func (s *Set) sized(p *path) bool {
	return p.state == StateValid && p.m.fixed == 0 && p.chal == nil && (p.used[0] || p.used[1] || p.used[2])
}

// confirm tests the size in use soon: the path is valid anew.
func (m *mtu) confirm(now dur) {
	if m.fixed == 0 {
		m.trying, m.next = -1, now
	}
}

// doubt tests the size in use at once: packets are lost.
func (m *mtu) doubt(now dur) {
	if m.trying < 0 && m.confirmed {
		m.next = min(m.next, now)
	}
}

// dueMTU is when p's discovery has something to do.
func (s *Set) dueMTU(p *path) dur {
	m := &p.m
	if !s.sized(p) {
		return never
	}
	if m.trying >= 0 {
		return m.deadline
	}
	if s.demand == Idle && m.confirmed {
		return never
	}
	return min(m.next, m.raiseAt)
}

// tickMTU does what is due.
func (s *Set) tickMTU(p *path) {
	for s.dueMTU(p) <= s.now {
		s.stepMTU(p)
	}
}

func (s *Set) stepMTU(p *path) {
	m := &p.m
	if m.trying < 0 { // time to confirm or to climb
		m.fails, m.attempts, m.began = 0, 0, s.now
		if m.raiseAt <= s.now {
			m.raiseAt, m.ceiling = never, len(outerSizes)
		}
		m.trying = m.cur
		s.sendMTU(p)
		return
	}
	// Overdue. Where the small one is missing too, the loss means nothing.
	m.attempts++
	if e := p.ring.find(m.small); e != nil && e.fate == answered {
		m.fails++
	}
	if m.fails < mtuTries && m.attempts < mtuAttempts {
		s.sendMTU(p)
		return
	}
	at := m.trying
	m.trying = -1
	switch {
	case m.fails < mtuTries:
		m.next = s.now + confirmGap // nothing passes: another's business
	case at <= m.cur:
		m.ceiling = min(m.ceiling, max(at, 1))
		s.setMTU(p, 0, at == 0)
		s.climb(p)
	default:
		m.ceiling = at
		s.rest(p)
	}
}

// sendMTU sends a probe of the size that is tried, and a small one.
func (s *Set) sendMTU(p *path) {
	m := &p.m
	s.probe(p, m.size(m.trying))
	m.seq = s.seq
	s.probe(p, 0)
	m.small = s.seq
	m.deadline = s.now + max(p.q.rto()+50*time.Millisecond, 100*time.Millisecond)
}

// acked takes the answer to a probe of a size.
func (m *mtu) acked(p *path, s *Set, size int) {
	for i := range outerSizes {
		if m.fixed != 0 || m.size(i) != size {
			continue
		}
		if i > m.cur {
			s.setMTU(p, i, true)
		}
		m.ceiling = max(m.ceiling, i+1)
		m.confirmed = m.confirmed || i == m.cur
		if i == m.trying {
			m.trying = -1
			s.climb(p)
		}
	}
}

// climb tries the next size, or rests.
func (s *Set) climb(p *path) {
	m := &p.m
	m.fails, m.attempts = 0, 0
	if m.cur+1 >= m.ceiling {
		s.rest(p)
		return
	}
	m.trying = m.cur + 1
	m.deadline = s.now // tickMTU sends it
	m.attempts = -1    // and that is no loss
	m.seq, m.small = 0, 0
}

// rest ends a search.
func (s *Set) rest(p *path) {
	m := &p.m
	m.trying = -1
	m.next = s.now + confirmGap
	if m.raiseAt == never {
		m.raiseAt = s.now + raiseGap
	}
}

func (s *Set) setMTU(p *path, i int, confirmed bool) {
	p.m.cur, p.m.confirmed = i, confirmed
	s.dirty = true
}

// Loaded says that large packets are being sent on id. A router that begins to drop
// them tells nobody: the size is confirmed every second then, so that a flow does
// not stand still for long (RFC 8899, section 4.3).
func (s *Set) Loaded(id ID, now time.Time) {
	s.advance(now)
	p := s.byID[norm(id)]
	if p == nil || p.m.fixed != 0 || p.m.trying >= 0 || !p.m.confirmed {
		return
	}
	if due := max(p.m.began+loadedGap, s.now); due < p.m.next {
		p.m.next = due
	}
}

// TooBig says that the kernel refuses a datagram on id for its size.
func (s *Set) TooBig(id ID, now time.Time) {
	s.advance(now)
	p := s.byID[norm(id)]
	if p == nil || p.m.fixed != 0 {
		return
	}
	m := &p.m
	if m.trying > m.cur { // it was a probe's, or a packet's of before the fall
		if m.seq == 0 {
			return
		}
		m.ceiling = m.trying
		s.rest(p)
		return
	}
	if m.cur == 0 {
		return
	}
	m.ceiling = max(m.cur, 1)
	s.setMTU(p, 0, false)
	s.climb(p)
	m.deadline = s.now + fallGap
}
