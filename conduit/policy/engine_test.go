// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func TestMain(m *testing.M) {
	// Which flows share a place is the same each time.
	hashKeys = [5]uint64{0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb, 0x2545f4914f6cdd1d, 0xd6e8feb86659fd93}
	goleak.VerifyTestMain(m)
}

const second = int64(1e9)

var (
	addrA = netip.MustParseAddr("10.66.0.1")
	addrB = netip.MustParseAddr("10.66.0.2")
)

// pkt is a packet from node 1 to node 2.
func pkt(proto uint8, src, dst uint16) *packet.Info {
	i := &packet.Info{Src: addrA, Dst: addrB, Proto: proto, SrcPort: src, DstPort: dst, Len: 100}
	switch proto {
	case packet.ProtoTCP:
		i.TCPFlags = 0x10
	case packet.ProtoICMP:
		i.ICMPType = 8
	case packet.ProtoICMPv6:
		i.ICMPType = 128
	}
	return i
}

// reply is the answer to i.
func reply(i *packet.Info) *packet.Info {
	r := *i
	r.Src, r.Dst, r.SrcPort, r.DstPort = i.Dst, i.Src, i.DstPort, i.SrcPort
	switch i.ICMPType {
	case 8:
		r.ICMPType = 0
	case 128:
		r.ICMPType = 129
	}
	return &r
}

// end is one node's engine and its handle of the other node.
type end struct {
	*Engine
	peer *PeerRules
}

func (e end) out(i *packet.Info, now int64) bool { return e.Outbound(e.peer, i, Bulk, now).Allow }
func (e end) in(i *packet.Info, now int64) bool  { return e.Inbound(e.peer, i, Bulk, now).Allow }

// ends returns the engines of nodes 1 and 2 under one policy.
func ends(tb testing.TB, d *Document) (a, b end) {
	tb.Helper()
	if err := d.Validate(); err != nil {
		tb.Fatal(err)
	}
	s1, s2 := subject(1, "one"), subject(2, "two")
	ea, eb := NewEngine(s1), NewEngine(s2)
	ea.Apply(d, []Subject{s2})
	eb.Apply(d, []Subject{s1})
	return end{ea, ea.Peer(s2.ID)}, end{eb, eb.Peer(s1.ID)}
}

func oneWay(proto string, ports ...string) *Document {
	return &Document{Version: 1, Allow: []Rule{{ID: "r", Src: []string{"tag:one"}, Dst: []string{"tag:two"}, Proto: proto, Ports: ports}}}
}

func TestDenyBeforeApply(t *testing.T) {
	e := NewEngine(subject(1))
	for _, p := range []*PeerRules{e.Peer(subject(2).ID), new(PeerRules)} {
		e.SetPeers([]Subject{subject(2)})
		if e.Outbound(p, pkt(6, 1, 2), Bulk, 0).Allow || e.Inbound(p, pkt(6, 1, 2), Bulk, 0).Allow {
			t.Error("allowed before Apply")
		}
	}
	if diff := cmp.Diff(map[string]uint64{NoRule: 4}, e.Counters()); diff != "" {
		t.Error(diff)
	}
}

func TestApplyInvalidDenies(t *testing.T) {
	d := Default()
	d.Guards = []Rule{{Src: []string{"nonsense"}, Dst: []string{"*"}}}
	e := NewEngine(subject(1))
	e.Apply(d, []Subject{subject(2)})
	if e.Outbound(e.Peer(subject(2).ID), pkt(6, 1, 2), Bulk, 0).Allow {
		t.Error("a document with a bad guard allows")
	}
}

func TestDefaultIsFree(t *testing.T) {
	a, b := ends(t, Default())
	frag := pkt(packet.ProtoUDP, 0, 0)
	frag.Fragment = packet.LaterFragment
	for _, i := range []*packet.Info{pkt(6, 1, 2), pkt(17, 1, 2), pkt(1, 0, 0), pkt(132, 0, 0), frag} {
		if !a.out(i, 0) || !b.in(i, 0) || !a.in(reply(i), 0) || !b.out(reply(i), 0) {
			t.Errorf("%+v denied", i)
		}
	}
	if !a.peer.table.Load().free {
		t.Error("the default policy takes the slow path")
	}
	for i := range a.flows {
		if a.flows[i].sets != nil {
			t.Fatal("the default policy remembers flows")
		}
	}
}

func TestOneWay(t *testing.T) {
	for name, tc := range map[string]struct {
		doc         *Document
		ok          *packet.Info
		not         []*packet.Info
		afterwards  *packet.Info // from 2 to 1: begins something while the flow lives
		idle, alive int64
	}{
		"tcp": {
			oneWay("tcp", "22"), pkt(6, 5000, 22),
			[]*packet.Info{pkt(6, 5000, 23), pkt(17, 5000, 22), pkt(1, 0, 0), pkt(6, 22, 5000)},
			reply(&packet.Info{Src: addrA, Dst: addrB, Proto: 6, SrcPort: 5000, DstPort: 22, TCPFlags: 0x02}),
			flowLife + 1, flowLife,
		},
		"udp range": {
			oneWay("udp", "7400-7500"), pkt(17, 5000, 7450),
			[]*packet.Info{pkt(17, 5000, 7399), pkt(17, 5000, 7501), pkt(6, 5000, 7450)},
			reply(pkt(17, 5001, 7450)),
			flowLife + 1, flowLife,
		},
		"icmp": {
			oneWay("icmp"), pkt(1, 0, 0),
			[]*packet.Info{pkt(6, 1, 2), pkt(17, 1, 2), pkt(132, 0, 0)},
			&packet.Info{Src: addrB, Dst: addrA, Proto: 1, ICMPType: 8},
			icmpLife + 1, icmpLife,
		},
		"icmp6": {
			oneWay("icmp"), pkt(58, 0, 0), nil,
			&packet.Info{Src: addrB, Dst: addrA, Proto: 58, ICMPType: 128},
			icmpLife + 1, icmpLife,
		},
		"any, unknown protocol one way only": {
			oneWay(""), pkt(17, 1, 2), nil, reply(pkt(132, 0, 0)), flowLife + 1, flowLife,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := ends(t, tc.doc)
			for _, i := range tc.not {
				if a.out(i, 0) || b.in(i, 0) {
					t.Errorf("%+v allowed", i)
				}
			}
			if a.in(reply(tc.ok), 0) || b.out(reply(tc.ok), 0) {
				t.Error("reply without a flow allowed")
			}
			if b.out(tc.ok, 0) || a.in(tc.ok, 0) {
				t.Error("allowed in the other direction")
			}
			if !a.out(tc.ok, 0) || !b.in(tc.ok, 0) {
				t.Fatal("denied")
			}
			if !b.out(reply(tc.ok), tc.alive) || !a.in(reply(tc.ok), tc.alive) {
				t.Error("reply denied")
			}
			if b.out(tc.afterwards, tc.alive) || a.in(tc.afterwards, tc.alive) {
				t.Error("the flow lets the other side begin one")
			}
			later := tc.alive + tc.idle
			if b.out(reply(tc.ok), later) || a.in(reply(tc.ok), later) {
				t.Error("reply allowed after the flow's end")
			}
		})
	}
}

func TestGuards(t *testing.T) {
	d := Default()
	d.Guards = []Rule{
		{ID: "no-ssh", Src: []string{"tag:one"}, Dst: []string{"*"}, Proto: "tcp", Ports: []string{"22"}},
		{Src: []string{"*"}, Dst: []string{"*"}, Lanes: []Lane{Critical}},
	}
	a, b := ends(t, d)
	if a.out(pkt(6, 1, 22), 0) || b.in(pkt(6, 1, 22), 0) {
		t.Error("guard does not deny")
	}
	if !a.out(pkt(6, 1, 23), 0) || !b.out(reply(pkt(6, 22, 9)), 0) {
		t.Error("guard denies what it does not match")
	}
	if v := a.Outbound(a.peer, pkt(17, 1, 2), Critical, 0); v.Allow {
		t.Error("lane guard does not deny")
	}
	if diff := cmp.Diff(map[string]uint64{"guard:no-ssh": 1, "guard:2": 1}, a.Counters()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]uint64{"guard:no-ssh": 1}, b.Counters()); diff != "" {
		t.Error(diff)
	}
}

// A guard too speaks of who begins: it must not cut the answers of flows that go
// the other way, or the hub would say "allowed" of what never works.
func TestGuardLetsReplies(t *testing.T) {
	d := oneWay("tcp", "80")
	d.Guards = []Rule{{ID: "back", Src: []string{"tag:two"}, Dst: []string{"tag:one"}}}
	a, b := ends(t, d)
	i := pkt(6, 5000, 80)
	if b.out(reply(i), 0) || a.in(reply(i), 0) {
		t.Error("guard does not deny")
	}
	if !a.out(i, 0) || !b.in(i, 0) || !b.out(reply(i), 0) || !a.in(reply(i), 0) {
		t.Error("guard cuts replies")
	}
	// A guard on the flow itself cuts both directions, remembered or not.
	d2 := oneWay("tcp", "80")
	d2.Guards = []Rule{{ID: "fwd", Src: []string{"tag:one"}, Dst: []string{"*"}, Proto: "tcp"}}
	a.Apply(d2, []Subject{subject(2, "two")})
	if a.out(i, 0) || a.in(reply(i), 0) {
		t.Error("a guard does not cut a flow that lives")
	}
}

func TestReplyLane(t *testing.T) {
	d := oneWay("udp", "7400")
	d.Allow[0].Lanes = []Lane{Telemetry}
	a, _ := ends(t, d)
	i := pkt(17, 1, 7400)
	if !a.Outbound(a.peer, i, Telemetry, 0).Allow || a.Outbound(a.peer, i, Critical, 0).Allow {
		t.Fatal("lane of the rule")
	}
	if !a.Inbound(a.peer, reply(i), Telemetry, 0).Allow {
		t.Error("reply denied")
	}
	if a.Inbound(a.peer, reply(i), Critical, 0).Allow {
		t.Error("a reply gets on a lane that no rule allows")
	}
}

func TestFragmentsAndUnknown(t *testing.T) {
	frag := func(proto uint8) *packet.Info {
		i := pkt(proto, 0, 0)
		i.Fragment, i.TCPFlags, i.ICMPType = packet.LaterFragment, 0, 0
		return i
	}
	first := pkt(17, 5000, 7400)
	first.Fragment = packet.FirstFragment
	guarded := Default()
	guarded.Guards = []Rule{{Src: []string{"*"}, Dst: []string{"*"}, Proto: "udp", Ports: []string{"53"}}}
	for name, tc := range map[string]struct {
		doc  *Document
		info *packet.Info
		want bool
	}{
		"first, ports":           {oneWay("udp", "7400"), first, true},
		"later, ports":           {oneWay("udp", "7400"), frag(17), false},
		"later, port 0":          {oneWay("udp", "0-65535"), frag(17), false},
		"later, proto":           {oneWay("udp"), frag(17), true},
		"later, other proto":     {oneWay("tcp"), frag(17), false},
		"later, any":             {oneWay(""), frag(17), true},
		"later, guard on a port": {guarded, frag(17), false},
		"later tcp, udp guard":   {guarded, frag(6), true},
		"unknown, any":           {oneWay("any"), pkt(132, 0, 0), true},
		"unknown, tcp":           {oneWay("tcp"), pkt(132, 0, 0), false},
		"unknown, icmp":          {oneWay("icmp"), pkt(47, 0, 0), false},
		"unknown, udp guard":     {guarded, pkt(132, 0, 0), true},
	} {
		a, b := ends(t, tc.doc)
		if got := a.out(tc.info, 0); got != tc.want {
			t.Errorf("%s: out %v, want %v", name, got, tc.want)
		}
		if got := b.in(tc.info, 0); got != tc.want {
			t.Errorf("%s: in %v, want %v", name, got, tc.want)
		}
		if tc.info.Fragment == packet.LaterFragment && tc.doc != guarded && (a.in(reply(tc.info), 0) || b.out(reply(tc.info), 0)) {
			t.Errorf("%s: a later fragment made a flow", name)
		}
	}
}

func TestMembership(t *testing.T) {
	a, _ := ends(t, oneWay("tcp", "22"))
	i := pkt(6, 5000, 22)
	two := subject(2, "two")
	a.out(i, 0)
	before := a.peer.table.Load()

	// A join touches nobody else.
	a.SetPeers([]Subject{two, subject(3)})
	if a.peer.table.Load() != before {
		t.Error("a join recompiles the rules of others")
	}
	if !a.in(reply(i), 1) {
		t.Error("a join interrupts a flow")
	}
	// Nor does another's change or the order of the list.
	a.SetPeers([]Subject{subject(3, "new"), two})
	if a.peer.table.Load() != before || !a.in(reply(i), 2) {
		t.Error("another's change interrupts a flow")
	}
	// Its own tags decide at once.
	a.SetPeers([]Subject{subject(2)})
	if a.out(i, 3) || a.in(reply(i), 3) {
		t.Error("allowed after the tag is gone")
	}
	a.SetPeers([]Subject{two})
	if !a.out(i, 4) {
		t.Error("denied with the tag")
	}
	a.SetPeers(nil)
	if a.out(i, 5) || a.in(reply(i), 5) {
		t.Error("a removed peer is allowed")
	}
	if a.Peer(two.ID) != a.peer {
		t.Error("the handle changed")
	}
	// A changed list of the caller's is not ours.
	tags := []string{"two"}
	a.SetPeers([]Subject{{ID: two.ID, Name: two.Name, Tags: tags}})
	tags[0] = "other"
	a.SetPeers([]Subject{{ID: two.ID, Name: two.Name, Tags: tags}})
	if a.out(i, 6) {
		t.Error("a change of tags went unseen")
	}
	// The last of two entries counts.
	a.SetPeers([]Subject{subject(2), two})
	a.SetPeers([]Subject{subject(2), two})
	if !a.out(i, 7) {
		t.Error("repeated entry")
	}
}

func TestSetSelf(t *testing.T) {
	e := NewEngine(subject(1))
	e.Apply(oneWay("tcp", "22"), []Subject{subject(2, "two")})
	p, i := e.Peer(subject(2).ID), pkt(6, 1, 22)
	out := func() bool { return e.Outbound(p, i, Bulk, 0).Allow }
	if out() {
		t.Error("allowed without the tag")
	}
	e.SetSelf(subject(1, "one"))
	if !out() {
		t.Error("denied with the tag")
	}
	e.SetSelf(subject(9))
	if !out() {
		t.Error("SetSelf of another node counts")
	}
	e.SetSelf(subject(1))
	if out() {
		t.Error("allowed without the tag again")
	}
	// The same by the list of peers.
	e.SetPeers([]Subject{subject(2, "two"), subject(1, "one")})
	if !out() {
		t.Error("denied with the tag from the list")
	}
}

func TestSwapJudgesAnew(t *testing.T) {
	a, b := ends(t, oneWay("tcp", "22"))
	peersA, peersB := []Subject{subject(2, "two")}, []Subject{subject(1, "one")}
	i := pkt(6, 5000, 22)
	if !a.out(i, 0) || !b.in(i, 0) || !a.in(reply(i), 0) || !b.out(reply(i), 0) {
		t.Fatal("denied")
	}
	for _, d := range []*Document{oneWay("tcp", "23"), oneWay("udp"), {Version: 1}} {
		a.Apply(d, peersA)
		b.Apply(d, peersB)
		if a.out(i, 1) || b.in(i, 1) || a.in(reply(i), 1) || b.out(reply(i), 1) {
			t.Errorf("flow of the old policy lives under %+v", d)
		}
	}
	wide := oneWay("tcp", "1-100")
	a.Apply(wide, peersA)
	b.Apply(wide, peersB)
	if !a.in(reply(i), 1) || !b.out(reply(i), 1) {
		t.Error("a flow that the new policy allows is cut")
	}
}

func TestCounters(t *testing.T) {
	d := oneWay("tcp", "22")
	d.Guards = []Rule{{ID: "g", Src: []string{"*"}, Dst: []string{"*"}, Proto: "udp"}, {Src: []string{"*"}, Dst: []string{"*"}, Proto: "icmp"}}
	a, _ := ends(t, d)
	if len(a.Counters()) != 0 {
		t.Error("counters at the start")
	}
	for range 3 {
		a.out(pkt(17, 1, 2), 0)
	}
	a.out(pkt(1, 0, 0), 0)
	a.in(pkt(6, 1, 2), 0)
	a.out(pkt(6, 1, 22), 0) // allowed
	want := map[string]uint64{"guard:g": 3, "guard:2": 1, NoRule: 1}
	if diff := cmp.Diff(want, a.Counters()); diff != "" {
		t.Error(diff)
	}
	// Counts outlive the policy, the names of which come back.
	a.Apply(&Document{Version: 1}, []Subject{subject(2, "two")})
	a.Apply(d, []Subject{subject(2, "two")})
	a.out(pkt(17, 1, 2), 0)
	want["guard:g"]++
	if diff := cmp.Diff(want, a.Counters()); diff != "" {
		t.Error(diff)
	}
}
