// SPDX-License-Identifier: Apache-2.0

package path

import (
	"crypto/rand"
	"io"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// never is a time that does not come.
const never = time.Duration(1<<63 - 1)

// dur is a moment: the time since the Set's epoch, which lies an hour before
// the first call, so that 0 is long ago.
type dur = time.Duration

// Set is what is known of the paths to one peer.
type Set struct {
	modes [packet.NumLanes]Mode
	rand  io.Reader

	epoch time.Time
	now   dur
	next  dur  // what is due
	stale bool // next is

	locals  []Local
	remotes []remote
	paths   []*path // by rank of probing, then by number
	byID    map[ID]*path
	demand  Demand
	seq     uint32
	nextNum uint16
	gen     uint64
	moves   []move // our addresses that changed lately
	left    []move // uplinks that lost a socket lately

	pace       dur  // of probes to paths that are not valid (GCRA)
	haveDirect bool // a direct path that is no fallback is valid
	usable     int  // valid paths
	indirect   bool // no direct path is valid
	upgradeAt  dur  // when silent pairs are tried again

	// The choice of paths.
	use       [packet.NumLanes][]*path
	mtu       int
	bond      bool // several uplinks are used
	doubt     bool // a path in use is suspect
	dirty     bool // a choice is due
	reviewAt  dur
	changedAt dur
	lastLook  dur  // the last review
	metered   bool // some socket is
	missed    dur  // Critical has had no path since; never: it has one
	order     []*path
	lists     [packet.NumLanes][]*path

	out, spare []Output
}

// New returns an empty Set.
func New(cfg Config) *Set {
	s := &Set{
		modes: cfg.Modes, rand: cfg.Rand, byID: make(map[ID]*path), missed: never, reviewAt: never,
	}
	if s.rand == nil {
		s.rand = rand.Reader
	}
	for lane, m := range [packet.NumLanes]Mode{Duplicate, RedundantAdaptive, Balance} {
		if s.modes[lane] == DefaultMode {
			s.modes[lane] = m
		}
	}
	return s
}

// advance takes the caller's time, which never goes back.
func (s *Set) advance(now time.Time) {
	if s.epoch.IsZero() {
		s.epoch = now.Add(-time.Hour)
	}
	s.now = max(s.now, now.Sub(s.epoch))
	s.stale = true
}

// moment converts a time that the caller gives for something past.
func (s *Set) moment(at time.Time) dur { return min(max(at.Sub(s.epoch), 0), s.now) }

// clock is the inverse.
func (s *Set) clock(d dur) time.Time {
	if d == 0 || d == never {
		return time.Time{}
	}
	return s.epoch.Add(d)
}

// norm makes one ID of an IPv4 address and the same one mapped into IPv6.
func norm(id ID) ID {
	id.Remote = normAddr(id.Remote)
	return id
}

func normAddr(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4In6() {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return a
}

// Demand says how much the peer is wanted.
func (s *Set) Demand(d Demand, now time.Time) {
	s.advance(now)
	if d != s.demand {
		s.demand = d
		s.reviewAt = s.now
	}
}

// Tick lets time pass. Nothing is due before NextTick.
func (s *Set) Tick(now time.Time) {
	s.advance(now)
	s.run()
}

// Ready returns what is to be done, in order, and forgets it. The slice is the
// caller's until the next call of Ready; what its Ways point to, for good.
func (s *Set) Ready() []Output {
	if !s.epoch.IsZero() {
		s.run()
	}
	out := s.out
	s.out, s.spare = s.spare[:0], out
	return out
}

// run does all that is due. What it does may make more due at once: a path that
// is used now is probed more often.
func (s *Set) run() {
	for range 4 {
		s.pass()
		s.next, s.stale = s.due(), false
		if s.next > s.now {
			return
		}
	}
}

func (s *Set) pass() {
	s.survey()
	for i := 0; i < len(s.paths); {
		p := s.paths[i]
		s.age(p)
		if !p.gone { // else the next one has its place
			i++
		}
	}
	if s.dirty || s.reviewAt <= s.now {
		s.survey()
		s.review()
	}
	s.upgrade()
	for _, p := range s.paths { // what was never asked goes before what was
		s.challenge(p)
		if p.state == StateNew && s.dueProbe(p) <= s.now {
			s.probe(p, 0)
		}
	}
	for _, p := range s.paths {
		if s.dueProbe(p) <= s.now {
			s.probe(p, 0)
		}
		s.tickMTU(p)
	}
}

// survey sums up the states of all paths.
func (s *Set) survey() {
	s.haveDirect, s.usable = false, 0
	for _, p := range s.paths {
		if p.state == StateValid {
			s.usable++
			s.haveDirect = s.haveDirect || p.kind == Direct && !p.local.Fallback
		}
	}
	s.indirect = len(s.paths) > 0 && !s.haveDirect
}

// NextTick is when Tick should be called next if nothing else happens; zero:
// never. It is exact: a call before does nothing.
func (s *Set) NextTick() time.Time {
	if s.epoch.IsZero() {
		return time.Time{}
	}
	if s.stale {
		s.next, s.stale = s.due(), false
	}
	return s.clock(s.next)
}

func (s *Set) due() dur {
	next := s.reviewAt
	if s.dirty {
		next = s.now
	}
	next = min(next, s.dueUpgrade())
	for _, p := range s.paths {
		next = min(next, s.dueAge(p), s.dueChallenge(p), s.dueProbe(p), s.dueMTU(p))
	}
	return next
}

// Usable reports whether some path is valid, or suspect while there is no other.
func (s *Set) Usable() bool {
	for _, p := range s.paths {
		if p.state == StateValid || p.state == StateSuspect {
			return true
		}
	}
	return false
}

// Sleep says that the last session is gone: nothing can be proved any more, and what
// was is void. The ways become empty. The caller leaves the Set alone until Wake.
func (s *Set) Sleep(now time.Time) {
	s.advance(now)
	for _, p := range s.paths {
		if p.state == StateValid || p.state == StateSuspect {
			p.answers = 0
			s.enter(p, StateProbing)
		}
	}
	s.survey()
	s.dirty = true
}

// Wake probes every path at once: a new session stands in which nobody answered
// yet, or the machine slept.
func (s *Set) Wake(now time.Time) {
	s.advance(now)
	for _, p := range s.paths {
		s.rearm(p)
		p.force = p.chal == nil && p.proven
	}
}

// IDs returns all paths that are kept, the first ones those that are probed
// first. It changes only with Generation.
func (s *Set) IDs() []ID { return ids(s.paths) }

// Generation changes whenever a path comes or goes.
func (s *Set) Generation() uint64 { return s.gen }

// LastHeard is when an authenticated packet last came from the peer on any path
// that is known; zero: never.
func (s *Set) LastHeard() time.Time {
	var at dur
	for _, p := range s.paths {
		at = max(at, p.heard)
	}
	return s.clock(at)
}
