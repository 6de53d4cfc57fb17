// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// fleet is 1,000 rules for 10,000 nodes: rules by tag as people write them, or
// each about ten nodes by their names, which is the worst case.
func fleet(byName bool) (*Document, []Subject) {
	const rules, nodes = 1000, 10_000
	d := &Document{Version: 1, Roles: []Role{
		{Name: "camera", Members: []string{"tag:kind3"}, Publish: []Lane{Telemetry, Bulk}, Budgets: map[Lane]Limit{Bulk: {BitsPerSecond: 20_000_000}}},
		{Name: "operator", Members: []string{"tag:kind0"}},
	}}
	subjects := make([]Subject, nodes)
	for i := range subjects {
		subjects[i] = Subject{
			ID: idOf(uint32(i)), Name: fmt.Sprintf("robot-%d", i),
			Tags: []string{fmt.Sprintf("site%d", i%50), fmt.Sprintf("kind%d", i%7), fmt.Sprintf("serial-%d", i)},
		}
	}
	for i := range rules {
		r := Rule{Proto: "tcp", Ports: []string{strconv.Itoa(1000 + i), "7400-7500"}}
		switch {
		case byName:
			r.Src = []string{"*"}
			for n := range 10 {
				r.Dst = append(r.Dst, fmt.Sprintf("name:robot-%d", (i*10+n)%nodes))
			}
		case i%5 == 0:
			r.Src, r.Dst = []string{"role:operator"}, []string{fmt.Sprintf("tag:site%d", i%50)}
		default:
			r.Src, r.Dst = []string{fmt.Sprintf("tag:site%d", i%50)}, []string{fmt.Sprintf("tag:kind%d", i%7), fmt.Sprintf("tag:site%d", i*3%50)}
		}
		if i%20 == 0 {
			d.Guards = append(d.Guards, r)
		} else {
			d.Allow = append(d.Allow, r)
		}
	}
	return d, subjects
}

func BenchmarkApply(b *testing.B) {
	for name, byName := range map[string]bool{"tags": false, "names": true} {
		b.Run(name, func(b *testing.B) {
			d, nodes := fleet(byName)
			e := NewEngine(nodes[0])
			b.ReportAllocs()
			for b.Loop() {
				e.Apply(d, nodes[1:])
			}
			b.ReportMetric(float64(e.plan.compiled), "tables")
		})
	}
}

func BenchmarkJoin(b *testing.B) {
	d, nodes := fleet(false)
	e := NewEngine(nodes[0])
	e.Apply(d, nodes[1:9999])
	before := e.plan.compiled
	for b.Loop() {
		e.SetPeers(nodes[1:])
		e.SetPeers(nodes[1:9999])
	}
	b.ReportMetric(float64(e.plan.compiled-before), "tables")
}

func BenchmarkOutboundLarge(b *testing.B) {
	d, nodes := fleet(false)
	e := NewEngine(nodes[3])
	e.Apply(d, nodes)
	p := e.Peer(nodes[10].ID)
	i := pkt(packet.ProtoTCP, 5000, 7400)
	b.ReportAllocs()
	for b.Loop() {
		e.Send(p, nil, i, Bulk, 1)
	}
}

// A join costs no compilation: neither for those that are there nor, where nodes
// like it are known, for itself.
func TestJoinCompilesNothing(t *testing.T) {
	d, nodes := fleet(false)
	e := NewEngine(nodes[0])
	e.Apply(d, nodes[1:9000])
	// 350 kinds by site and kind, with a table each at most.
	if n := e.plan.compiled; n == 0 || n > 350 {
		t.Fatalf("%d tables for 350 kinds of nodes", n)
	}
	before := e.plan.compiled
	e.SetPeers(nodes[1:])
	if n := e.plan.compiled - before; n != 0 {
		t.Errorf("1,000 joins compiled %d tables", n)
	}
	e.SetPeers(nodes[1:5000])
	e.SetPeers(nodes[1:])
	if n := e.plan.compiled - before; n != 0 {
		t.Errorf("coming back compiled %d tables", n)
	}
	// Neither the order of tags nor one that is there twice makes another kind.
	other := nodes[1]
	other.Tags = []string{other.Tags[1], other.Tags[0], other.Tags[1]}
	e.SetPeers(append([]Subject{other}, nodes[2:]...))
	if n := e.plan.compiled - before; n != 0 || len(e.plan.byClass) > 350 {
		t.Errorf("the order of tags compiled %d tables, %d kinds", n, len(e.plan.byClass))
	}
	// A node that is named nowhere costs nothing, even with tags of its own.
	e.SetPeers(append([]Subject{{ID: idOf(77777), Name: "new", Tags: []string{"site1", "kind1", "other"}}}, nodes[1:]...))
	if n := e.plan.compiled - before; n != 0 {
		t.Errorf("a node with a new tag compiled %d tables", n)
	}
}

// The kinds that are kept are bounded, and forgetting them changes no decision.
func TestKindsAreBounded(t *testing.T) {
	d := &Document{Version: 1}
	for n := range 16 {
		d.Allow = append(d.Allow, Rule{Src: []string{"*"}, Dst: []string{fmt.Sprintf("tag:t%d", n)}, Proto: "tcp", Ports: []string{strconv.Itoa(n)}})
	}
	e := NewEngine(subject(1))
	e.Apply(d, nil)
	var peers []Subject
	for n := range uint32(maxKinds + 500) {
		s := Subject{ID: idOf(n)}
		for bit := range 16 {
			if n>>bit&1 == 1 {
				s.Tags = append(s.Tags, fmt.Sprintf("t%d", bit))
			}
		}
		peers = append(peers, s)
	}
	e.SetPeers(peers)
	if n := len(e.plan.byClass); n > maxKinds {
		t.Errorf("%d kinds kept, at most %d wanted", n, maxKinds)
	}
	for _, n := range []uint32{0, 1, 5, 300, maxKinds - 1, maxKinds + 3} {
		for bit := range uint16(16) {
			if got, want := e.Outbound(e.Peer(idOf(n)), pkt(6, 1, bit), Bulk, 0).Allow, n>>bit&1 == 1; got != want {
				t.Errorf("peer %d port %d: %v", n, bit, got)
			}
		}
	}
}

func TestSpendAllocs(t *testing.T) {
	d := sandboxes()
	cam := subject(3, "cam")
	e := NewEngine(subject(1, "cam"))
	e.Apply(d, []Subject{cam})
	p := e.Peer(cam.ID)
	now := int64(0)
	for name, f := range map[string]func(){
		"out":         func() { e.SpendOutbound(Bulk, 100, now) },
		"in":          func() { e.SpendInbound(p, Bulk, 100, now) },
		"denied lane": func() { e.Outbound(p, pkt17, Critical, now) },
		"allowed":     func() { e.Outbound(p, pkt17, Bulk, now) },
	} {
		if n := testing.AllocsPerRun(1000, func() { now += 1e6; f() }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

var pkt17 = pkt(packet.ProtoUDP, 5000, 9)

// Summaries of the large fleet end, and are bounded.
func TestReachIsBounded(t *testing.T) {
	d, nodes := fleet(true)
	flows, truncated, err := d.Reach(nodes)
	if err != nil || !truncated || len(flows) != MaxFlows {
		t.Errorf("%d flows, truncated %v, %v", len(flows), truncated, err)
	}
	after, _ := fleet(true)
	after.Allow = after.Allow[:500]
	diff, err := Diff(d, after, nodes)
	if err != nil || !diff.Truncated || len(diff.Reach) != MaxFlows || len(diff.Rules) != len(d.Allow)-500 {
		t.Errorf("%d changes of reach, %d of rules, truncated %v, %v", len(diff.Reach), len(diff.Rules), diff.Truncated, err)
	}
	d.Tests = make([]Test, 100)
	for i := range d.Tests {
		d.Tests[i] = Test{Src: "*", Dst: "*", Proto: "tcp", Port: 1000, Lane: Bulk, Want: "deny"}
	}
	r, err := d.RunTests(nodes)
	if err != nil || !r[0].OK() || r[0].Pairs != 10_000*9_999 {
		t.Errorf("%+v, %v", r[0], err)
	}
}

// Work that has no end is refused, not done and not passed.
func TestRunTestsIsBounded(t *testing.T) {
	d, nodes := &Document{Version: 1}, make([]Subject, 1024)
	for i := range 10 {
		for _, way := range []string{"tag:a%d", "tag:b%d"} {
			d.Allow = append(d.Allow, Rule{Src: []string{fmt.Sprintf(way, i)}, Dst: []string{fmt.Sprintf("tag:b%d", i)}})
		}
	}
	for i := range nodes {
		nodes[i] = Subject{ID: idOf(uint32(i))}
		for bit := range 10 {
			if i>>bit&1 == 1 {
				nodes[i].Tags = append(nodes[i].Tags, fmt.Sprintf("a%d", bit), fmt.Sprintf("b%d", bit))
			}
		}
	}
	for range 200 {
		d.Tests = append(d.Tests, Test{Src: "*", Dst: "*", Lane: Bulk, Want: "deny"})
	}
	if _, err := d.RunTests(nodes); err == nil {
		t.Error("200 million pairs were tested")
	}
	d.Tests = d.Tests[:1]
	if r, err := d.RunTests(nodes); err != nil || r[0].Pairs != 1024*1023 || r[0].Failed == 0 || r[0].Failed == r[0].Pairs {
		t.Errorf("%+v, %v", r, err)
	}
}
