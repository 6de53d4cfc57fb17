// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// meters measure what one sender sends, by lane; nil where nothing limits it.
type meters [packet.NumLanes]*meter

// meter is one budget on one lane.
type meter struct {
	limit Limit
	soft  *Bucket
	// hard is what a receiver bears; nil where nothing is denied.
	hard          *Bucket
	packets, bits int32 // numbers of the rules that packets over it are counted under
	packetsRule   string
	bitsRule      string
	who           identity.PeerID
	lane          Lane

	over, denied atomic.Uint64
	last         atomic.Int64 // when a packet was over it; 0 never
	told         atomic.Int64 // when the alarm was last raised; 0 never
}

// Alarm tells that a node sends more than its budget.
type Alarm struct {
	// Rule is "budget:ROLE", as in Counters.
	Rule string
	// Node is who sent too much: this node or a peer.
	Node identity.PeerID
	Lane Lane
	// Packets were over the budget since it has been in force; Denied of them were
	// dropped, which is done at a receiver only.
	Packets, Denied uint64
	// At is when the last of them came, on the clock of the calls.
	At int64
}

// alarmGap is the least time between two alarms about one node and lane.
const alarmGap = int64(10 * time.Second)

// SetAlarm has f called when a packet is over a budget, for one node and lane every
// ten seconds at most. f runs in the packet path: it must not wait, nor call the
// Engine. Nil ends it.
func (e *Engine) SetAlarm(f func(Alarm)) {
	if f == nil {
		e.alarm.Store(nil)
		return
	}
	e.alarm.Store(&f)
}

// Alarms returns the budgets that were exceeded since a time of the clock of the
// calls, this node's first.
func (e *Engine) Alarms(since int64) (out []Alarm) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := func(m *meters) {
		if m == nil {
			return
		}
		for _, x := range m {
			if x != nil && x.over.Load() > 0 && x.last.Load() >= since {
				out = append(out, x.report(x.packetsOrBits()))
			}
		}
	}
	list(e.own)
	for _, p := range e.peers.present {
		if v := p.table.Load(); v != nil {
			list(v.theirs)
		}
	}
	return out
}

func (m *meter) packetsOrBits() string {
	if m.packetsRule != "" {
		return m.packetsRule
	}
	return m.bitsRule
}

func (m *meter) report(rule string) Alarm {
	return Alarm{Rule: rule, Node: m.who, Lane: m.lane, Packets: m.over.Load(), Denied: m.denied.Load(), At: m.last.Load()}
}

// metersLocked returns meters for the budgets of who; those whose limit stays as it
// is keep what was spent.
func (e *Engine) metersLocked(old *meters, budgets *[packet.NumLanes]Budget, who identity.PeerID, receiver bool) *meters {
	if budgets == nil {
		return nil
	}
	out := new(meters)
	for lane := range Lane(packet.NumLanes) {
		b := &budgets[lane]
		if b.IsZero() {
			continue
		}
		m := &meter{limit: b.Limit, who: who, lane: lane}
		if b.PacketsRole != "" {
			m.packetsRule = budgetRule(b.PacketsRole)
			m.packets = e.index[m.packetsRule]
		}
		if b.BitsRole != "" {
			m.bitsRule = budgetRule(b.BitsRole)
			m.bits = e.index[m.bitsRule]
		}
		if old != nil && old[lane] != nil && old[lane].limit == b.Limit {
			was := old[lane]
			if was.packets == m.packets && was.bits == m.bits {
				out[lane] = was
				continue
			}
			m.soft, m.hard = was.soft, was.hard
		} else {
			m.fill(receiver)
		}
		out[lane] = m
	}
	return out
}

// fill makes full buckets. On the way queues gather packets and let them go at
// once, so a receiver takes a second's worth as one burst. What is twice as much
// comes from no node that keeps the policy: it would have demoted it. On Bulk
// nothing is denied, since demoted packets arrive there.
func (m *meter) fill(receiver bool) {
	l := m.limit.effective()
	if receiver {
		l.BurstPackets = min(max(l.BurstPackets, l.PacketsPerSecond), MaxBurst)
		l.BurstBits = min(max(l.BurstBits, l.BitsPerSecond), MaxBurst)
		if m.lane != Bulk {
			m.hard = NewBucket(Limit{
				PacketsPerSecond: 2 * l.PacketsPerSecond, BurstPackets: min(2*l.BurstPackets, MaxBurst),
				BitsPerSecond: 2 * l.BitsPerSecond, BurstBits: min(2*l.BurstBits, MaxBurst),
			})
		}
	}
	m.soft = NewBucket(l)
}

// spend takes a packet that v allows from the budget of the lane.
func (e *Engine) spend(ms *meters, v Verdict, lane Lane, size int, now int64) Verdict {
	if ms == nil || lane >= packet.NumLanes || ms[lane] == nil {
		return v
	}
	m := ms[lane]
	if m.hard != nil {
		if x := m.hard.Take(size, now); x != Within {
			m.denied.Add(1)
			return Verdict{Rule: e.exceeded(m, x, now)}
		}
	}
	if x := m.soft.Take(size, now); x != Within {
		v.Demote, v.Rule = true, e.exceeded(m, x, now)
	}
	return v
}

// exceeded counts a packet that is over the budget and raises the alarm.
func (e *Engine) exceeded(m *meter, x Exceeded, now int64) int32 {
	num, rule := m.packets, m.packetsRule
	if x == TooManyBits {
		num, rule = m.bits, m.bitsRule
	}
	(*e.denied.Load())[num].Add(1)
	m.over.Add(1)
	now = max(now, 1)
	m.last.Store(now)
	if f := e.alarm.Load(); f != nil {
		if told := m.told.Load(); (told == 0 || now-told >= alarmGap) && m.told.CompareAndSwap(told, now) {
			(*f)(m.report(rule))
		}
	}
	return num
}
