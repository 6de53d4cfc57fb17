// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// naive decides about a new flow by reading the document as it stands, with
// nothing of the compiled code.
func naive(d *Document, src, dst Subject, info *packet.Info, lane Lane) bool {
	who := func(words []string, s Subject) bool { return naiveWho(d, words, s) }
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
	sandboxed, may := false, false
	for _, r := range d.Roles {
		if r.Publish != nil && who(r.Members, src) {
			sandboxed = true
			may = may || slices.Contains(r.Publish, lane)
		}
	}
	if sandboxed && !may {
		return false
	}
	return slices.ContainsFunc(d.Allow, func(r Rule) bool { return hit(r, false) })
}

func naiveWho(d *Document, words []string, s Subject) bool {
	return slices.ContainsFunc(words, func(w string) bool {
		for _, r := range d.Roles {
			if w == "role:"+r.Name && naiveWho(d, r.Members, s) {
				return true
			}
		}
		return w == "*" || w == "name:"+s.Name || w == "node:"+s.ID.String() ||
			strings.HasPrefix(w, "tag:") && slices.Contains(s.Tags, w[4:])
	})
}

// naiveBudget is the most generous limit of all roles that open the lane, 0 for
// none.
func naiveBudget(d *Document, s Subject, lane Lane, of func(Limit) uint64) (most uint64) {
	for _, r := range d.Roles {
		if r.Publish == nil || !naiveWho(d, r.Members, s) || !slices.Contains(r.Publish, lane) {
			continue
		}
		if of(r.Budgets[lane]) == 0 {
			return 0
		}
		most = max(most, of(r.Budgets[lane]))
	}
	return most
}

func randomWho(r *rand.Rand) string {
	return pick(r, "*", "tag:a", "tag:b", "name:robot1", "name:robot2", "node:"+subject(byte(1+r.IntN(3))).ID.String())
}

func randomRole(r *rand.Rand, name string) Role {
	role := Role{Name: name, Members: []string{randomWho(r), randomWho(r)}}
	if r.IntN(3) == 0 {
		return role
	}
	role.Publish, role.Budgets = []Lane{}, map[Lane]Limit{}
	for lane := Critical; lane <= Bulk; lane++ {
		if r.IntN(4) == 0 {
			continue
		}
		role.Publish = append(role.Publish, lane)
		switch r.IntN(4) {
		case 0:
			role.Budgets[lane] = Limit{PacketsPerSecond: 1 + r.Uint64N(5)}
		case 1:
			role.Budgets[lane] = Limit{BitsPerSecond: 1 + r.Uint64N(5)}
		case 2:
			role.Budgets[lane] = Limit{PacketsPerSecond: 1 + r.Uint64N(5), BitsPerSecond: 1 + r.Uint64N(5)}
		}
	}
	return role
}

func randomNodes(r *rand.Rand) []Subject {
	nodes := []Subject{subject(1), subject(2), subject(3)}
	for i := range nodes {
		for _, tag := range []string{"a", "b"} {
			if r.IntN(2) == 0 {
				nodes[i].Tags = append(nodes[i].Tags, tag)
			}
		}
	}
	return nodes
}

func randomDocument(r *rand.Rand) *Document {
	d := &Document{Version: 1, Roles: []Role{randomRole(r, "x"), {Name: "y", Members: []string{"name:robot3"}}}}
	if r.IntN(2) == 0 {
		d.Roles[1] = randomRole(r, "y")
	}
	for range r.IntN(5) {
		d.Allow = append(d.Allow, randomRule(r))
	}
	for range r.IntN(3) {
		d.Guards = append(d.Guards, randomRule(r))
	}
	return d
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func randomRule(r *rand.Rand) Rule {
	sel := func() (out []string) {
		for range 1 + r.IntN(2) {
			out = append(out, pick(r, randomWho(r), randomWho(r), randomWho(r), "role:x", "role:y"))
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
		i.FragmentID = r.Uint32() // a datagram of its own
	}
	return i
}

func TestAgainstNaive(t *testing.T) {
	allowed, total := 0, 0
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		nodes := randomNodes(r)
		d := randomDocument(r)
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
			// On Bulk also arrives what was demoted.
			arrives := want || lane == Bulk && (naive(d, nodes[s], nodes[o], info, Critical) || naive(d, nodes[s], nodes[o], info, Telemetry))
			if out.Allow != want || in.Allow != arrives {
				t.Fatalf("seed %d: %s to %s, %+v, lane %s: out %v, in %v, want %v\n%s",
					seed, nodes[s].Name, nodes[o].Name, *info, lane, out.Allow, in.Allow, want, d.Marshal())
			}
			name := map[uint8]string{1: "icmp", 58: "icmp", 6: "tcp", 17: "udp"}[info.Proto]
			if name != "" && info.Fragment != packet.LaterFragment {
				got := doc.Explain(nodes[s], nodes[o], name, info.DstPort, lane)
				if got.Allow != want {
					t.Fatalf("seed %d: Explain = %+v, want %v", seed, got, want)
				}
				if denied := es[s].names[max(out.Rule, 0)]; !want && denied != got.Rule {
					t.Fatalf("seed %d: the engine says %q, Explain %+v", seed, denied, got)
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

func TestBudgetsAgainstNaive(t *testing.T) {
	limited := 0
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 2))
		nodes, d := randomNodes(r), randomDocument(r)
		for _, n := range nodes {
			for lane := Critical; lane <= Bulk; lane++ {
				got, err := d.BudgetFor(n, lane)
				if err != nil {
					t.Fatal(err)
				}
				packets := naiveBudget(d, n, lane, func(l Limit) uint64 { return l.PacketsPerSecond })
				bits := naiveBudget(d, n, lane, func(l Limit) uint64 { return l.BitsPerSecond })
				if got.PacketsPerSecond != packets || got.BitsPerSecond != bits {
					t.Fatalf("seed %d: %s %s: %+v, want %d packets, %d bits\n%s", seed, n.Name, lane, got, packets, bits, d.Marshal())
				}
				if (packets > 0) != (got.PacketsRole != "") || (bits > 0) != (got.BitsRole != "") {
					t.Fatalf("seed %d: no role named: %+v", seed, got)
				}
				if packets > 0 || bits > 0 {
					limited++
				}
			}
		}
	}
	if limited < 500 {
		t.Errorf("only %d budgets: the documents test little", limited)
	}
}

// Reach and Diff say of each pair, protocol, port and lane what naive says.
func TestReachAndDiffAgainstNaive(t *testing.T) {
	names := map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "other": 132}
	covers := func(f Flow, src, dst, proto string, port int, lane Lane) bool {
		if !slices.Contains(strings.Split(f.Src, ", "), src) || !slices.Contains(strings.Split(f.Dst, ", "), dst) ||
			f.Proto != "any" && f.Proto != proto || !slices.Contains(f.Lanes, lane) {
			return false
		}
		return f.Ports == "" || slices.ContainsFunc(strings.Split(f.Ports, ","), func(s string) bool {
			lo, hi, ok := strings.Cut(s, "-")
			if !ok {
				hi = lo
			}
			l, _ := strconv.Atoi(lo)
			h, _ := strconv.Atoi(hi)
			return l <= port && port <= h
		})
	}
	open, changed := 0, 0
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 3))
		nodes, d, after := randomNodes(r), randomDocument(r), randomDocument(r)
		flows, truncated, err := d.Reach(nodes)
		if err != nil || truncated {
			t.Fatal(err, truncated)
		}
		diff, err := Diff(d, after, nodes)
		if err != nil || diff.Truncated {
			t.Fatal(err, diff.Truncated)
		}
		ev, err := NewEvaluator(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, src := range nodes {
			for _, dst := range nodes {
				if src.ID == dst.ID {
					continue
				}
				some := false
				for name, num := range names {
					ports := []int{0}
					if name == "tcp" || name == "udp" {
						ports = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 65535}
					}
					for _, port := range ports {
						for lane := Critical; lane <= Bulk; lane++ {
							i := pkt(num, 1000, uint16(port))
							was, is := naive(d, src, dst, i, lane), naive(after, src, dst, i, lane)
							got := slices.ContainsFunc(flows, func(f Flow) bool { return covers(f, src.Name, dst.Name, name, port, lane) })
							if got != was {
								t.Fatalf("seed %d: %s to %s %s %d %s: %v, want %v\n%s%v", seed, src.Name, dst.Name, name, port, lane, got, was, d.Marshal(), flows)
							}
							for _, way := range []bool{true, false} {
								got := slices.ContainsFunc(diff.Reach, func(c ReachChange) bool {
									return c.Allowed == way && covers(c.Flow, src.Name, dst.Name, name, port, lane)
								})
								if want := is != was && is == way; got != want {
									t.Fatalf("seed %d: %s to %s %s %d %s: changed to %v is %v, want %v", seed, src.Name, dst.Name, name, port, lane, way, got, want)
								}
							}
							if was {
								open++
								some = true
							}
							if was != is {
								changed++
							}
						}
					}
				}
				if got := ev.MayBegin(&src, &dst); got != some {
					t.Fatalf("seed %d: %s may begin with %s: %v, want %v", seed, src.Name, dst.Name, got, some)
				}
			}
		}
	}
	if open == 0 || changed == 0 {
		t.Error("nothing was open or changed")
	}
}

// RunTests decides as naive does, pair by pair.
func TestRunTestsAgainstNaive(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 4))
		nodes, d := randomNodes(r), randomDocument(r)
		nodes = append(nodes, subject(4, "a"), subject(5, "a"), subject(6))
		for range 10 {
			test := Test{Src: pick(r, randomWho(r), "role:x"), Dst: randomWho(r), Lane: Lane(r.IntN(3)), Want: pick(r, "allow", "deny")}
			if r.IntN(2) == 0 {
				test.Proto, test.Port = "udp", uint16(1+r.IntN(6))
			} else {
				test.Proto = "icmp"
			}
			d.Tests = append(d.Tests, test)
		}
		results, err := d.RunTests(nodes)
		if err != nil {
			t.Fatal(err)
		}
		for n, test := range d.Tests {
			pairs, failed := 0, 0
			for _, src := range nodes {
				for _, dst := range nodes {
					if src.ID == dst.ID || !naiveWho(d, []string{test.Src}, src) || !naiveWho(d, []string{test.Dst}, dst) {
						continue
					}
					pairs++
					num := map[string]uint8{"udp": 17, "icmp": 1}[test.Proto]
					if naive(d, src, dst, pkt(num, 1000, test.Port), test.Lane) != (test.Want == "allow") {
						failed++
					}
				}
			}
			got := results[n]
			if got.Pairs != pairs || got.Failed != failed || (failed > 0) != (len(got.Failures) > 0) || len(d.Failures(&got)) == 0 != got.OK() {
				t.Fatalf("seed %d: test %v: %+v, want %d of %d failed\n%s", seed, test, got, failed, pairs, d.Marshal())
			}
		}
	}
}
