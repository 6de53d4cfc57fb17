// SPDX-License-Identifier: Apache-2.0

package path

import (
	"cmp"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

const (
	// A choice that only scores speak for is made this seldom.
	scoreGap = 2 * time.Second
	// reviewGap is how often the quality of several paths is looked at while they
	// are active.
	reviewGap = 250 * time.Millisecond
	// maxCover bounds the copies of a packet where nothing is in doubt.
	maxCover = 4
	// maxResend bounds what is sent again on a path that is new.
	maxResend = time.Second
	// failMargin and upgradeMargin are added to the round trip when that is
	// reckoned.
	failMargin    = 20 * time.Millisecond
	upgradeMargin = 50 * time.Millisecond
	// balanceAfter is how long a path that healed must answer to get flows.
	balanceAfter = 500 * time.Millisecond
)

// review looks at the quality of the paths and chooses anew if need be.
func (s *Set) review() {
	full := s.dirty
	s.dirty = false
	if s.usable > 1 {
		full = s.judgeAll() || full
	}
	for _, p := range s.paths {
		for _, at := range [2]dur{p.settled, p.settled - settleFor + balanceAfter} {
			full = full || at > s.lastLook && at <= s.now
		}
		full = full || p.q.shaky > s.lastLook && p.q.shaky <= s.now
	}
	s.lastLook = s.now
	if full || s.now-s.changedAt >= scoreGap {
		s.choose()
	}
	s.reviewAt = s.nextReview()
}

func (s *Set) nextReview() dur {
	next := never
	if s.usable > 1 {
		switch s.demand {
		case Active:
			next = s.now + reviewGap
		case Warm:
			next = s.now + warmGap
		default:
		}
	}
	for _, p := range s.paths {
		for _, at := range [3]dur{p.settled, p.settled - settleFor + balanceAfter, p.q.shaky} {
			if at > s.now {
				next = min(next, at)
			}
		}
	}
	return next
}

// judgeAll judges the valid paths by those of lower kinds.
func (s *Set) judgeAll() (changed bool) {
	var best [numKinds + 1]time.Duration // of this kind and below; 0 none
	for _, p := range s.paths {
		if p.state == StateValid && p.q.srtt > 0 && !p.local.Spent && (best[p.kind] == 0 || p.q.srtt < best[p.kind]) {
			best[p.kind] = p.q.srtt
		}
	}
	for k := int(numKinds) - 2; k >= 0; k-- {
		if b := best[k+1]; b > 0 && (best[k] == 0 || b < best[k]) {
			best[k] = b
		}
	}
	for _, p := range s.paths {
		if p.state == StateValid {
			changed = p.q.judge(best[p.kind+1], s.now) || changed
		}
	}
	return changed
}

// The bits of a rank, the worst first.
const (
	rankSuspect   = 1 << 12
	rankSpent     = 1 << 11
	rankMetered   = 1 << 10
	rankPoor      = 1 << 9
	rankUnsettled = 1 << 8
	rankKind      = 4 // shift
	rankFallback  = 1 << 3
)

// class is what comes before the score when paths are ordered for a lane.
func (s *Set) class(p *path, lane packet.Lane) (c uint32) {
	if p.state != StateValid {
		c |= rankSuspect
	}
	if p.local.Spent {
		c |= rankSpent
	}
	if lane != packet.Critical && s.isMetered(p) {
		c |= rankMetered
	}
	if p.q.poor && (lane != packet.Bulk || p.q.awful()) {
		c |= rankPoor
	}
	if p.settled > s.now {
		c |= rankUnsettled
	}
	if p.local.Fallback {
		c |= rankFallback
	}
	return c | uint32(p.kind)<<rankKind
}

// isMetered: what leaves on no uplink in particular may leave on a metered one.
func (s *Set) isMetered(p *path) bool {
	return p.local.Metered || p.local.Uplink == 0 && s.metered
}

// sort orders the usable paths for a lane.
func (s *Set) sort(lane packet.Lane) []*path {
	s.order = s.order[:0]
	for _, p := range s.paths {
		if p.state == StateValid || p.state == StateSuspect {
			p.class, p.sc = s.class(p, lane), s.score(p, lane)
			s.order = append(s.order, p)
		}
	}
	slices.SortFunc(s.order, func(a, b *path) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.sc, b.sc), cmp.Compare(a.born, b.born))
	})
	return s.order
}

// choose decides which paths the lanes use.
func (s *Set) choose() {
	s.doubt = false
	for _, use := range s.use {
		for _, p := range use {
			s.doubt = s.doubt || !p.gone && p.state == StateSuspect
		}
	}
	for lane := range packet.Lane(packet.NumLanes) {
		order := s.sort(lane)
		to := s.lists[lane][:0]
		if lane == packet.Critical {
			dead := 0
			for _, p := range s.paths {
				if p.rank = 0; p.state == StateDead && p.proven {
					p.rank = uint32(dead)
					dead++
				}
			}
			for i, p := range order {
				p.rank = uint32(i)
			}
		}
		switch mode := s.modes[lane]; {
		case len(order) == 0:
		case lane == packet.Bulk && mode != ActiveBackup:
			to = s.balance(to, order)
		case lane == packet.Bulk:
			to = append(to, order[0])
		case lane == packet.Critical && (s.doubt || order[0].state == StateSuspect):
			to = everywhere(to, order)
		case mode == Duplicate:
			to = duplicate(to, order)
		case mode == RedundantAdaptive:
			to = s.adaptive(to, order)
		default:
			to = append(to, order[0])
		}
		s.lists[lane] = to
	}
	s.adopt()
}

// everywhere takes all direct paths and the best relay: one in use is suspect.
func everywhere(to, order []*path) []*path {
	relay := false
	for _, p := range order {
		switch {
		case len(to) >= MaxCopies:
			return to
		case p.local.Spent && !order[0].local.Spent && p.state == StateValid:
		case p.kind == Direct, p.state == StateSuspect:
			to = append(to, p)
		case !relay:
			relay = true
			to = append(to, p)
		}
	}
	return to
}

// duplicate takes a path for each uplink of ours and of the peer, and the best of
// all if it is none of them.
func duplicate(to, order []*path) []*path {
	to = append(to, order[0])
	kind := Hub
	for _, p := range order { // direct ones, else over TURN
		if eligible(p, order[0]) && p.kind <= Turn {
			kind = min(kind, p.kind)
		}
	}
	return cover(to, order, func(p *path) bool { return p.kind == kind && eligible(p, order[0]) })
}

// eligible reports whether p may be used beside best.
func eligible(p, best *path) bool {
	return p.state == StateValid && (!p.local.Spent || best.local.Spent) && p.local.Uplink|p.remoteUplink != 0
}

// cover adds paths until each uplink is used that one of them has, those that add
// most first.
func cover(to, order []*path, ok func(*path) bool) []*path {
	for len(to) < maxCover {
		var next *path
		most := 0
		for _, p := range order {
			if !ok(p) {
				continue
			}
			local, remote := p.local.Uplink != 0, p.remoteUplink != 0
			for _, o := range to {
				if o.kind == p.kind {
					local = local && o.local.Uplink != p.local.Uplink
					remote = remote && o.remoteUplink != p.remoteUplink
				}
			}
			gain := 0
			if local {
				gain++
			}
			if remote {
				gain++
			}
			if gain > most {
				next, most = p, gain
			}
		}
		if next == nil {
			break
		}
		to = append(to, next)
	}
	return to
}

// adaptive takes the best path, and a second one, over other uplinks if it can,
// while the best one is not good.
func (s *Set) adaptive(to, order []*path) []*path {
	best := order[0]
	to = append(to, best)
	if best.q.shaky <= s.now && best.settled <= s.now && best.state == StateValid && !s.doubt {
		return to
	}
	var second *path
	for _, p := range order[1:] {
		other := p.local.Uplink != best.local.Uplink || p.remoteUplink != best.remoteUplink
		switch {
		case p.state == StateSuspect && best.state == StateValid,
			p.local.Spent && !best.local.Spent,
			s.isMetered(p) && !s.isMetered(best) && best.state == StateValid:
		case second == nil || other && second.local.Uplink == best.local.Uplink && second.remoteUplink == best.remoteUplink && p.kind == second.kind:
			second = p
		}
	}
	if second != nil {
		to = append(to, second)
	}
	return to
}

// balance takes the good paths of distinct uplinks, in an order that does not
// change: flows are spread by it.
func (s *Set) balance(to, order []*path) []*path {
	best := order[0]
	to = append(to, best)
	if best.state == StateSuspect {
		return to
	}
	// Those that differ from the best only in that they healed lately may join.
	class := best.class &^ rankUnsettled
	to = cover(to, order, func(p *path) bool {
		return p.class&^rankUnsettled == class && p.settled-s.now <= settleFor-balanceAfter &&
			p.q.srtt <= 4*best.q.srtt+50*time.Millisecond && (!p.q.poor || best.q.poor) && !p.local.Fallback
	})
	slices.SortFunc(to, func(a, b *path) int { return cmp.Compare(a.born, b.born) })
	return to
}

// adopt makes the lists the ways in use, and tells the caller where they differ.
func (s *Set) adopt() {
	mtu := 0
	same := true
	for lane, l := range s.lists {
		same = same && slices.Equal(l, s.use[lane])
		for _, p := range l {
			if n := p.m.size(p.m.cur); mtu == 0 || n < mtu {
				mtu = n
			}
		}
	}
	if same && mtu == s.mtu {
		return
	}
	since := s.since(s.use[packet.Critical], s.lists[packet.Critical])
	for _, use := range s.use {
		for _, p := range use {
			p.used = [packet.NumLanes]bool{}
		}
	}
	for lane, l := range s.lists {
		s.use[lane], s.lists[lane] = l, s.use[lane]
		for _, p := range l {
			p.used[lane] = true
		}
	}
	for _, l := range s.lists { // nothing keeps a path that is gone
		clear(l[:cap(l)])
	}
	clear(s.order[:cap(s.order)])
	s.mtu, s.changedAt = mtu, s.now
	s.bond = s.bonded()
	w := &Ways{
		Critical: ids(s.use[packet.Critical]), Telemetry: ids(s.use[packet.Telemetry]), Bulk: ids(s.use[packet.Bulk]),
		Since: since, MTU: mtu,
	}
	s.out = append(s.out, Output{Kind: UseWays, Ways: w})
}

func ids(l []*path) []ID {
	out := make([]ID, len(l))
	for i, p := range l {
		out[i] = p.id
	}
	return out
}

// bonded reports whether Critical or Bulk use several uplinks of one side.
func (s *Set) bonded() bool {
	var local, remote uint8
	for _, lane := range [2]packet.Lane{packet.Critical, packet.Bulk} {
		for _, p := range s.use[lane] {
			if u := p.local.Uplink; u != 0 {
				if local != 0 && local != u {
					return true
				}
				local = u
			}
			if u := p.remoteUplink; u != 0 {
				if remote != 0 && remote != u {
					return true
				}
				remote = u
			}
		}
	}
	return false
}

// since is what a path that is new in Critical may have missed.
func (s *Set) since(old, now []*path) time.Time {
	at, longest, proved := s.missed, time.Duration(0), never
	for _, p := range old {
		longest = max(longest, p.q.srtt)
		// One that is about to die without a word is still valid here.
		proved = min(proved, p.heard-p.q.srtt-failMargin)
		if p.gone || p.state != StateValid {
			// It carried what was sent a round trip before the last word of the peer. But
			// for the probe that was answered last, we know of their direction only.
			at = min(at, p.heard-p.q.srtt-failMargin, max(p.reached, p.since-maxResend))
		}
	}
	if len(now) == 0 {
		s.missed = at
		return time.Time{}
	}
	if !slices.ContainsFunc(now, func(p *path) bool { return !slices.Contains(old, p) }) {
		return time.Time{}
	}
	switch {
	case at != never:
	case len(old) == 0:
		at = s.now
	default:
		at = min(s.now-longest-upgradeMargin, proved)
	}
	s.missed = never
	return s.clock(max(at, s.now-maxResend))
}
