// SPDX-License-Identifier: Apache-2.0

package path

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Status describes all paths: those in use first, then the valid ones.
func (s *Set) Status(now time.Time) []Status {
	s.advance(now)
	out := make([]Status, 0, len(s.paths))
	for _, p := range s.paths {
		st := Status{
			ID: p.id, Kind: p.kind, State: p.state, Since: s.clock(p.since), Uplink: p.local.Uplink, RemoteUplink: p.remoteUplink,
			RTT: p.q.srtt, RTTVar: p.q.rttvar, Loss: p.q.loss(), MTU: p.m.size(p.m.cur), MTUConfirmed: p.m.confirmed,
			Heard: s.clock(p.heard), Lanes: p.used,
		}
		st.Why = s.why(p)
		out = append(out, st)
	}
	order := func(st *Status) int {
		switch {
		case st.Lanes[packet.Critical]:
			return 0
		case st.Lanes != [packet.NumLanes]bool{}:
			return 1
		case st.State == StateValid:
			return 2
		}
		return 3
	}
	slices.SortStableFunc(out, func(a, b Status) int {
		return cmp.Or(order(&a)-order(&b), int(a.Kind)-int(b.Kind))
	})
	return out
}

// why says in a few words why p is used or not.
func (s *Set) why(p *path) string {
	used := p.used != [packet.NumLanes]bool{}
	switch {
	case p.chal != nil:
		return "an address that has to prove itself"
	case p.state == StateNew && p.local.Fallback:
		return "only while no uplink has a direct path"
	case p.state == StateNew:
		return "not asked yet"
	case p.state == StateProbing:
		return fmt.Sprintf("asked %d times, no answer yet", p.attempts)
	case p.state == StateDead && !p.proven:
		return "no answer"
	case p.state == StateDead:
		return "silent for " + s.ago(p.heard)
	case p.state == StateSuspect && used:
		return "in doubt: silent for " + s.ago(p.heard) + ", Critical goes everywhere"
	case p.state == StateSuspect:
		return "in doubt: silent for " + s.ago(p.heard)
	case p.local.Spent:
		return "its budget is used up"
	case p.q.poor:
		return fmt.Sprintf("poor: loss %.1f %%, round trip %s", 100*p.q.loss(), p.q.p95().Round(100*time.Microsecond))
	case p.settled > s.now:
		return "was in doubt a moment ago"
	case used && p.kind != Direct && !s.haveDirect:
		return "no direct path answers"
	case used && p.kind != Direct:
		return "the direct path is not good"
	case used:
		return "in use"
	case p.kind != Direct:
		return "ready: a better path is in use"
	case p.local.Fallback:
		return "only while no uplink has a direct path"
	}
	return "ready: the same uplinks as another path"
}

func (s *Set) ago(at dur) string {
	if at == 0 {
		return "ever"
	}
	return (s.now - at).Round(10 * time.Millisecond).String()
}
