// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// naive decides about a new flow by reading the document as it stands, with
// nothing of the compiled code.
func naive(d *Document, src, dst Subject, info *packet.Info, lane Lane) bool {
	who := func(words []string, s Subject) bool {
		return slices.ContainsFunc(words, func(w string) bool {
			return w == "*" || w == "name:"+s.Name || w == "node:"+s.ID.String() ||
				strings.HasPrefix(w, "tag:") && slices.Contains(s.Tags, w[4:])
		})
	}
	name := map[uint8]string{1: "icmp", 58: "icmp", 6: "tcp", 17: "udp"}[info.Proto]
	later := info.Fragment == packet.LaterFragment
	hit := func(r Rule, guard bool) bool {
		if !who(r.Src, src) || !who(r.Dst, dst) {
			return false
		}
		if len(r.Lanes) > 0 && !slices.Contains(r.Lanes, lane) {
			return false
		}
		if r.Proto != "" && r.Proto != "any" && r.Proto != name {
			return false
		}
		if len(r.Ports) == 0 {
			return true
		}
		if later {
			return guard
		}
		return slices.ContainsFunc(r.Ports, func(s string) bool {
			lo, hi, ok := strings.Cut(s, "-")
			if !ok {
				hi = lo
			}
			l, _ := strconv.Atoi(lo)
			h, _ := strconv.Atoi(hi)
			return l <= int(info.DstPort) && int(info.DstPort) <= h
		})
	}
	if slices.ContainsFunc(d.Guards, func(r Rule) bool { return hit(r, true) }) {
		return false
	}
	return slices.ContainsFunc(d.Allow, func(r Rule) bool { return hit(r, false) })
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func randomRule(r *rand.Rand) Rule {
	sel := func() (out []string) {
		for range 1 + r.IntN(2) {
			out = append(out, pick(r, "*", "tag:a", "tag:b", "name:robot1", "name:robot2", "node:"+subject(byte(1+r.IntN(3))).ID.String()))
		}
		return out
	}
	rule := Rule{Src: sel(), Dst: sel(), Proto: pick(r, "", "any", "icmp", "tcp", "udp")}
	if (rule.Proto == "tcp" || rule.Proto == "udp") && r.IntN(2) == 0 {
		for range 1 + r.IntN(2) {
			lo := r.IntN(6)
			rule.Ports = append(rule.Ports, pick(r, strconv.Itoa(lo), fmt.Sprintf("%d-%d", lo, lo+r.IntN(3))))
		}
	}
	for lane := Critical; lane <= Bulk; lane++ {
		if r.IntN(3) == 0 {
			rule.Lanes = append(rule.Lanes, lane)
		}
	}
	return rule
}

func randomInfo(r *rand.Rand) *packet.Info {
	i := pkt(pick[uint8](r, 1, 58, 6, 17, 132), 0, 0)
	if i.Proto == 6 || i.Proto == 17 {
		// Source ports apart from destination ports: no packet looks like a reply.
		i.SrcPort, i.DstPort = uint16(1000+r.IntN(1000)), uint16(r.IntN(8))
		i.Fragment = pick(r, packet.NotFragment, packet.NotFragment, packet.FirstFragment, packet.LaterFragment)
		if i.Fragment == packet.LaterFragment {
			i.SrcPort, i.DstPort, i.TCPFlags = 0, 0, 0
		}
	}
	return i
}

func TestAgainstNaive(t *testing.T) {
	allowed, total := 0, 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		nodes := []Subject{subject(1), subject(2), subject(3)}
		for i := range nodes {
			for _, tag := range []string{"a", "b"} {
				if r.IntN(2) == 0 {
					nodes[i].Tags = append(nodes[i].Tags, tag)
				}
			}
		}
		d := &Document{Version: 1}
		for range r.IntN(5) {
			d.Allow = append(d.Allow, randomRule(r))
		}
		for range r.IntN(3) {
			d.Guards = append(d.Guards, randomRule(r))
		}
		doc, err := Parse(d.Marshal())
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		var es []*Engine
		for i := range nodes {
			e := NewEngine(nodes[i])
			e.Apply(doc, nodes)
			es = append(es, e)
		}
		for range 40 {
			s, o := r.IntN(3), r.IntN(3)
			if s == o {
				continue
			}
			info, lane := randomInfo(r), Lane(r.IntN(3))
			want := naive(d, nodes[s], nodes[o], info, lane)
			out := es[s].Outbound(es[s].Peer(nodes[o].ID), info, lane, 0)
			in := es[o].Inbound(es[o].Peer(nodes[s].ID), info, lane, 0)
			if out.Allow != want || in.Allow != want {
				t.Fatalf("seed %d: %s to %s, %+v, lane %s: out %v, in %v, want %v\n%s",
					seed, nodes[s].Name, nodes[o].Name, *info, lane, out.Allow, in.Allow, want, d.Marshal())
			}
			name := map[uint8]string{1: "icmp", 58: "icmp", 6: "tcp", 17: "udp"}[info.Proto]
			if name != "" && info.Fragment != packet.LaterFragment {
				if got := doc.Explain(nodes[s], nodes[o], name, info.DstPort, lane); got.Allow != want {
					t.Fatalf("seed %d: Explain = %+v, want %v", seed, got, want)
				}
			}
			if want && name != "" && info.Fragment != packet.LaterFragment {
				ans := reply(info)
				if !es[s].Inbound(es[s].Peer(nodes[o].ID), ans, lane, 0).Allow || !es[o].Outbound(es[o].Peer(nodes[s].ID), ans, lane, 0).Allow {
					t.Fatalf("seed %d: reply to %+v denied\n%s", seed, *info, d.Marshal())
				}
			}
			total++
			if want {
				allowed++
			}
		}
	}
	if allowed < total/10 || allowed > total*9/10 {
		t.Errorf("%d of %d allowed: the documents test little", allowed, total)
	}
}

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
