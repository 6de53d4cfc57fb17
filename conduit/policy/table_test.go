// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// manyRules is a policy of n rules, each about other ports, one in ten a guard.
func manyRules(n int) *Document {
	d := &Document{Version: 1}
	for i := range n {
		lo := i * (65536 / max(n, 1))
		r := Rule{ID: fmt.Sprintf("r%d", i), Src: []string{"tag:one"}, Dst: []string{"tag:two"}, Proto: "udp", Ports: []string{fmt.Sprintf("%d-%d", lo, lo+3)}}
		switch i % 10 {
		case 3:
			d.Guards = append(d.Guards, r)
		case 5:
			r.Lanes = []Lane{Critical, Telemetry}
			fallthrough
		default:
			d.Allow = append(d.Allow, r)
		}
	}
	return d
}

// TestCostOfRules counts steps, which time cannot: the port of a packet is found
// in nine comparisons at most, whatever the number of rules.
func TestCostOfRules(t *testing.T) {
	worst := map[int]int{}
	for _, n := range []int{0, 1, 10, 100, 1000, MaxRules} {
		a, _ := ends(t, manyRules(n))
		for lane := range Lane(packet.NumLanes + 1) {
			c := a.peer.table.Load().out[protoUDP][lane]
			for port := range 65536 {
				lo, hi := c.ports.window(uint16(port))
				worst[n] = max(worst[n], bits.Len(uint(hi-lo-1)))
			}
			if size := 8*len(c.ports.spans) + 2*len(c.ports.pages); size > 8*3*max(n, 1)+2*257+16 {
				t.Errorf("%d rules, lane %d: %d bytes", n, lane, size)
			}
		}
	}
	if worst[MaxRules] > 9 || worst[MaxRules] > worst[1]+8 {
		t.Errorf("steps by rules: %v", worst)
	}
	t.Log("steps by rules:", worst)
}

// TestPortTable compares tables with the rules read one by one.
func TestPortTable(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 8))
		var guards, allow []*numbered
		for i := range r.IntN(40) {
			b := body{proto: pick(r, protoUDP, protoUDP, protoTCP, protoAny), lanes: uint8(1 + r.IntN(7))}
			for range r.IntN(4) {
				lo := uint16(r.IntN(65536))
				b.ports = append(b.ports, portRange{lo, max(lo, pick(r, lo, lo+uint16(r.IntN(1000)), 65535, lo|255))})
			}
			if b.proto == protoAny {
				b.ports = nil
			}
			if n := (&numbered{b, int32(i + 1)}); r.IntN(3) == 0 && len(b.ports) > 0 {
				guards = append(guards, n)
			} else if len(b.ports) > 0 || r.IntN(8) == 0 {
				allow = append(allow, n)
			}
		}
		linear := func(kind proto, port uint16, lane Lane) (int32, bool) {
			for _, g := range guards {
				if g.body.matches(kind, port, lane) {
					return g.num, false
				}
			}
			for _, a := range allow {
				if a.body.matches(kind, port, lane) {
					return a.num, true
				}
			}
			return ruleNone, false
		}
		var s ruleSet
		new(painter).compile(&s, guards, allow)
		for range 3000 {
			port := uint16(r.IntN(65536))
			if list := append(guards, allow...); len(list) > 0 && r.IntN(2) == 0 {
				if b := list[r.IntN(len(list))].body; len(b.ports) > 0 {
					port = pick(r, b.ports[0].lo, b.ports[0].hi, b.ports[0].hi+1, b.ports[0].lo-1)
				}
			}
			kind, some := pick(r, protoUDP, protoTCP), false
			for lane := range Lane(packet.NumLanes) {
				wantRule, want := linear(kind, port, lane)
				if rule, allowed := s.judge(kind, port, true, lane); rule != wantRule || allowed != want {
					t.Fatalf("seed %d: port %d lane %s: %d %v, want %d %v", seed, port, lane, rule, allowed, wantRule, want)
				}
				some = some || want
			}
			if _, allowed := s.judge(kind, port, true, anyLane); allowed != some {
				t.Fatalf("seed %d: port %d on any lane: %v, want %v", seed, port, allowed, some)
			}
		}
	}
}

// BenchmarkDecide is one packet of a flow, in and out of the policy, under few and
// many rules.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		b.Run("rules="+strconv.Itoa(n), func(b *testing.B) {
			a, _ := ends(b, manyRules(min(n, MaxRules)))
			var infos [64]*packet.Info
			r := rand.New(rand.NewPCG(1, 9))
			for i := range infos {
				rule := r.IntN(n)
				for rule%10 == 3 || rule%10 == 5 {
					rule = r.IntN(n)
				}
				infos[i] = pkt(packet.ProtoUDP, uint16(40000+i), uint16(rule*(65536/n)+r.IntN(4)))
			}
			for _, info := range infos { // the table of flows is made
				a.Send(a.peer, nil, info, Bulk, 0)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if !a.Send(a.peer, nil, infos[i%64], Bulk, int64(i)).Allow {
					b.Fatal("denied")
				}
				i++
			}
		})
	}
}
