// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// Each policy allows tcp and udp under a rule of its own, or neither. A packet
// that saw a mix would be allowed by a rule that its policy has not.
func TestConcurrentSwap(t *testing.T) {
	two := subject(2, "two")
	docs := []*Document{{Version: 1}, {Version: 1}}
	for n, id := range []string{"even", "odd"} {
		port := []string{"22", "23"}[n]
		docs[n].Allow = []Rule{{ID: id, Src: []string{"*"}, Dst: []string{"tag:two"}, Proto: "tcp", Ports: []string{port}}}
		// What the one allows the other guards.
		docs[1-n].Guards = []Rule{{ID: "not-" + id, Src: []string{"*"}, Dst: []string{"*"}, Proto: "tcp", Ports: []string{port}}}
	}
	e := NewEngine(subject(1, "one"))
	e.Apply(docs[0], []Subject{two})
	p := e.Peer(two.ID)
	names := func(rule int32) string {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.names[max(rule, 0)]
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for n := int64(0); !stop.Load(); n++ {
				for port, id := range map[uint16]string{22: "even", 23: "odd"} {
					i := pkt(6, uint16(5000+w), port)
					v := e.Outbound(p, i, Bulk, n)
					got := names(v.Rule)
					if v.Allow && got != id || !v.Allow && got != "guard:not-"+id && got != NoRule {
						t.Errorf("port %d: %v by %q", port, v.Allow, got)
					}
					e.Inbound(p, reply(i), Bulk, n)
				}
				e.Counters()
			}
		})
	}
	for n := range 2000 {
		switch n % 4 {
		case 0, 2:
			e.Apply(docs[n/2%2], []Subject{two})
		case 1:
			e.SetPeers([]Subject{two, subject(byte(3 + n%50))})
			e.SetSelf(subject(1, "one", fmt.Sprintf("t%d", n)))
		case 3:
			e.SetPeers(nil)
			e.Peer(subject(byte(n)).ID)
		}
	}
	stop.Store(true)
	wg.Wait()
}

// TestConcurrentBudget swaps two policies: one allows port 22 within a budget of
// nothing to speak of, the other port 23 without one. A packet whose rule and
// whose budget came from different policies would pass port 22 without being
// demoted, or be demoted on port 23.
func TestConcurrentBudget(t *testing.T) {
	one, two := subject(1, "one"), subject(2, "two")
	docs := []*Document{oneWay("tcp", "22"), oneWay("tcp", "23")}
	docs[0].Roles = []Role{{
		Name: "r", Members: []string{"*"}, Publish: []Lane{Critical, Telemetry, Bulk},
		Budgets: map[Lane]Limit{Bulk: {PacketsPerSecond: 1, BurstPackets: 1}},
	}}
	a, b := NewEngine(one), NewEngine(two)
	ap, bp := a.Peer(two.ID), b.Peer(one.ID)
	apply := func(d *Document) {
		a.Apply(d, []Subject{two})
		b.Apply(d, []Subject{one})
	}
	apply(docs[0])
	var stop atomic.Bool
	var wg sync.WaitGroup
	var demoted, within, passed atomic.Int64
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				for port := uint16(22); port <= 23; port++ {
					i := pkt(6, 5000, port)
					for end, v := range map[string]Verdict{"sender": a.Send(ap, nil, i, Bulk, 1), "receiver": b.Receive(bp, nil, i, Bulk, 1)} {
						switch {
						case !v.Allow:
						case port == 23 && v.Demote:
							t.Errorf("%s: the budget of the other policy", end)
						case port == 22 && v.Demote:
							demoted.Add(1)
						case port == 22:
							within.Add(1) // one in each new bucket
						case port == 23:
							passed.Add(1)
						}
					}
				}
			}
		})
	}
	const swaps = 3000
	for n := range swaps {
		apply(docs[(n+1)%2])
	}
	stop.Store(true)
	wg.Wait()
	if n := within.Load(); n > swaps+2 {
		t.Errorf("%d packets within budgets of %d", n, swaps+2)
	}
	if demoted.Load() == 0 || passed.Load() == 0 {
		t.Errorf("%d demoted, %d passed: the test tests nothing", demoted.Load(), passed.Load())
	}
}
