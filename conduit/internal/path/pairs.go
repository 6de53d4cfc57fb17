// SPDX-License-Identifier: Apache-2.0

package path

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// remote is a candidate of the peer.
type remote struct {
	addr  netip.AddrPort
	relay bool // of the peer's TURN server
	prio  uint8
}

// move notes that our address on an uplink changed.
type move struct {
	uplink uint8
	at     dur
}

// Priorities of probing, the first probed first and evicted last.
const (
	prioAdded = iota
	prioHost
	prioReflexive
	prioRelay
	prioTurn     // our TURN server to anything
	prioFallback // the socket without an interface
)

const (
	maxLocals = 64
	// movedFor is how long probes tell of a change of address.
	movedFor = 5 * time.Second
	// movedSlack is how much later packets from the old address may come.
	movedSlack = 50 * time.Millisecond
	// leftFor is for how long the socket of an uplink may be missing to be replaced.
	leftFor = 10 * time.Second
	// forget is how long a path that nobody names any more is kept after it died.
	forget = time.Minute
)

// path is one way to the peer.
type path struct {
	id           ID
	num          uint16 // on the wire
	born         uint64 // the order of their making
	kind         Kind
	local        Local
	remoteUplink uint8
	prio         uint8
	named        bool // by a candidate that still holds, or by AddPath
	added        bool // by AddPath

	state  State
	since  dur
	proven bool // was valid once
	gone   bool // no longer in the Set

	// Liveness.
	heard      dur  // newest authenticated packet
	reached    dur  // when the newest probe was sent that was answered
	lastProbe  dur  // newest probe of ours
	firstOut   dur  // oldest probe since then that nothing was heard after; 0: none
	unanswered int  // small probes since the last answer
	missed     int  // small probes in a row that were lost
	answers    int  // in a row, while dead
	settled    dur  // when it may be preferred again
	force      bool // probe at once
	attempts   int  // while it is being found
	nextTry    dur
	movedIn    dur // when the peer said here that it moved
	movedOut   dur // when our address moved, until an answer

	chal *challenge // an address of which nothing but packets is known
	ring probeRing
	q    quality
	m    mtu

	used  [3]bool
	rank  uint32 // its place among the usable ones
	class uint32
	sc    dur // score, for sorting
}

// SetLocals says which sockets there are. Paths of sockets that are gone die at
// once; new sockets are paired with all candidates. Where a socket replaces one
// of the same uplink, the peer is told that the old address is gone.
func (s *Set) SetLocals(l []Local, now time.Time) {
	s.advance(now)
	l = l[:min(len(l), maxLocals)]
	find := func(in []Local, bind int) *Local {
		for i := range in {
			if in[i].Bind == bind {
				return &in[i]
			}
		}
		return nil
	}
	for _, p := range slices.Clone(s.paths) {
		if n := find(l, p.id.Bind); n == nil {
			s.remove(p)
		} else if p.local != *n {
			p.local = *n
			s.dirty = true
		}
	}
	old := s.locals
	s.locals = slices.Clone(l)
	s.metered = slices.ContainsFunc(l, func(l Local) bool { return l.Metered })
	s.left = slices.DeleteFunc(s.left, func(m move) bool { return s.now-m.at > leftFor })
	for i := range old {
		if old[i].Uplink != 0 && find(l, old[i].Bind) == nil && len(s.left) < maxLocals {
			s.left = append(s.left, move{old[i].Uplink, s.now})
		}
	}
	for i := range l {
		left := func(m move) bool { return m.uplink == l[i].Uplink }
		if find(old, l[i].Bind) == nil && slices.ContainsFunc(s.left, left) {
			s.left = slices.DeleteFunc(s.left, left)
			s.noteMove(l[i].Uplink)
		}
	}
	for i := range l {
		if find(old, l[i].Bind) != nil {
			continue
		}
		for _, r := range s.remotes {
			s.pair(&s.locals[i], r)
		}
		for _, p := range s.paths {
			s.rearm(p)
		}
	}
}

// AddRemote takes a candidate of the peer: an address and its ICE type, "host",
// "srflx", "prflx" or "relay". It is paired with every socket of its family. A
// repetition probes what did not answer once more.
func (s *Set) AddRemote(a netip.AddrPort, typ string, now time.Time) {
	s.advance(now)
	s.addRemote(normAddr(a), typ)
}

func (s *Set) addRemote(a netip.AddrPort, typ string) {
	if !a.IsValid() || a.Port() == 0 {
		return
	}
	r := remote{addr: a, prio: prioReflexive}
	switch typ {
	case "host":
		r.prio = prioHost
	case "relay":
		r.prio, r.relay = prioRelay, true
	}
	if !slices.ContainsFunc(s.remotes, func(o remote) bool { return o.addr == a }) {
		if len(s.remotes) >= MaxRemotes {
			return
		}
		s.remotes = append(s.remotes, r)
	}
	for i := range s.locals {
		s.pair(&s.locals[i], r)
	}
}

// ResetRemotes voids the candidates that came before. Paths that answered once
// live on while they do.
func (s *Set) ResetRemotes(now time.Time) {
	s.advance(now)
	s.remotes = s.remotes[:0]
	for _, p := range slices.Clone(s.paths) {
		switch {
		case p.added || p.chal != nil:
		case p.proven:
			p.named = false
		default:
			s.remove(p)
		}
	}
}

// AddPath takes a path that is known otherwise: a relay, a pair that ICE proved,
// or the last good one of an earlier run. It is probed at once, before all
// others. Its socket must be one of the locals, or it is ignored. The address of
// a direct path becomes a candidate for the other sockets too.
func (s *Set) AddPath(id ID, now time.Time) {
	s.advance(now)
	id = norm(id)
	l := s.local(id.Bind)
	if l == nil || !id.Remote.IsValid() {
		return
	}
	p := s.byID[id]
	if p == nil {
		if p = s.create(id, l, s.kindOf(l, id.Remote), prioAdded); p == nil {
			return
		}
	}
	p.added, p.named = true, true
	s.introduce(p)
	if p.prio != prioAdded {
		p.prio = prioAdded
		s.sortPaths()
	}
	s.rearm(p)
	if l.Kind == Direct {
		s.addRemote(id.Remote, "prflx")
	}
}

// Moved says that our address on an uplink changed: its paths are probed at once
// with the news.
func (s *Set) Moved(uplink uint8, now time.Time) {
	s.advance(now)
	if uplink != 0 {
		s.noteMove(uplink)
	}
}

func (s *Set) noteMove(uplink uint8) {
	s.moves = slices.DeleteFunc(s.moves, func(m move) bool { return m.uplink == uplink || s.now-m.at > movedFor })
	s.moves = append(s.moves, move{uplink, s.now})
	for _, p := range s.paths {
		if p.local.Uplink == uplink && p.chal == nil {
			p.movedOut = s.now
			s.rearm(p)
			p.force = p.state == StateValid || p.state == StateSuspect || p.state == StateDead && p.proven
		}
	}
}

func (s *Set) local(bind int) *Local {
	for i := range s.locals {
		if s.locals[i].Bind == bind {
			return &s.locals[i]
		}
	}
	return nil
}

// pair makes a path of a socket and a candidate.
func (s *Set) pair(l *Local, r remote) {
	if a := r.addr.Addr(); a.Is4() && !l.V4 || a.Is6() && !l.V6 {
		return
	}
	id := ID{l.Bind, r.addr}
	if p := s.byID[id]; p != nil {
		p.named = true
		s.introduce(p)
		s.rearm(p)
		return
	}
	prio, kind := r.prio, l.Kind
	if r.relay && kind == Direct {
		kind = Turn // its packets go over the peer's server
	}
	switch {
	case l.Fallback:
		prio = prioFallback
	case l.Kind != Direct:
		prio = prioTurn
	}
	if p := s.create(id, l, kind, prio); p != nil {
		p.named = true
	}
}

// introduce lets an address be probed that was only challenged so far.
func (s *Set) introduce(p *path) {
	if p.chal != nil {
		p.chal, p.nextTry = nil, s.now
	}
}

// kindOf is the kind of the path from l to an address.
func (s *Set) kindOf(l *Local, to netip.AddrPort) Kind {
	if l.Kind == Direct && slices.ContainsFunc(s.remotes, func(r remote) bool { return r.relay && r.addr == to }) {
		return Turn
	}
	return l.Kind
}

// create adds a path, in the place of one that matters less if need be.
func (s *Set) create(id ID, l *Local, kind Kind, prio uint8) *path {
	if len(s.paths) >= MaxPaths {
		var worst *path
		for _, p := range s.paths { // the last of the lowest priority
			if !p.proven && !p.added && p.prio >= prio && (worst == nil || p.prio >= worst.prio) {
				worst = p
			}
		}
		if worst == nil || worst.prio == prio {
			return nil
		}
		s.remove(worst)
	}
	s.nextNum++
	s.gen++
	p := &path{
		id: id, num: s.nextNum, born: s.gen, kind: kind, local: *l, prio: prio, state: StateNew, since: s.now, nextTry: s.now,
	}
	for _, m := range s.moves {
		if m.uplink == l.Uplink && s.now-m.at < movedFor {
			p.movedOut = m.at
		}
	}
	p.m.init(p)
	s.byID[id] = p
	s.paths = append(s.paths, p)
	s.sortPaths()
	return p
}

func (s *Set) sortPaths() {
	slices.SortFunc(s.paths, func(a, b *path) int { return cmp.Or(cmp.Compare(a.prio, b.prio), cmp.Compare(a.born, b.born)) })
}

// remove forgets a path.
func (s *Set) remove(p *path) {
	p.gone = true
	s.gen++
	delete(s.byID, p.id)
	s.paths = slices.DeleteFunc(s.paths, func(o *path) bool { return o == p })
	if p.used[0] || p.used[1] || p.used[2] {
		s.dirty = true
	}
}
