// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func errorAbout(q *spec, typ uint8) *spec {
	e := &spec{src: q.dst, dst: q.src, proto: packet.ProtoICMP, typ: typ, quote: q}
	if q.src.Is6() {
		e.proto = packet.ProtoICMPv6
	}
	return e
}

// An ICMP error about a flow passes without a rule for icmp, in both directions
// and at both ends; about anything else it does not.
func TestErrorsOfFlows(t *testing.T) {
	a6, b6 := netip.MustParseAddr("fd66::1"), netip.MustParseAddr("fd66::2")
	for name, flow := range map[string]*spec{
		"udp4": {src: addrA, dst: addrB, proto: 17, sport: 5000, dport: 7400},
		"udp6": {src: a6, dst: b6, proto: 17, sport: 5000, dport: 7400, ext: []uint8{0, 60}},
		"tcp4": {src: addrA, dst: addrB, proto: 6, sport: 5000, dport: 7400, flags: 2},
		"tcp6": {src: a6, dst: b6, proto: 6, sport: 5000, dport: 7400, flags: 2},
	} {
		t.Run(name, func(t *testing.T) {
			d := oneWay(map[uint8]string{6: "tcp", 17: "udp"}[flow.proto], "7400")
			d.Allow[0].Lanes = []Lane{Telemetry} // while errors are Critical
			a, b := ends(t, d)
			now := int64(1)
			send := func(from, to end, s *spec, lane Lane) (sent, received bool) {
				pkt := s.bytes(nil)
				var info packet.Info
				if !packet.Parse(pkt, &info) {
					t.Fatalf("does not parse: %s", s)
				}
				return from.Send(from.peer, pkt, &info, lane, now).Allow, to.Receive(to.peer, pkt, &info, lane, now).Allow
			}
			check := func(what string, from, to end, s *spec, lane Lane, want bool) {
				t.Helper()
				if sent, received := send(from, to, s, lane); sent != want || received != want {
					t.Errorf("%s: sent %v, received %v, want %v", what, sent, received, want)
				}
			}
			typ := uint8(3)
			if flow.src.Is6() {
				typ = 1
			}
			check("before the flow", b, a, errorAbout(flow, typ), Critical, false)
			check("the flow", a, b, flow, Telemetry, true)
			check("about the flow", b, a, errorAbout(flow, typ), Critical, true)
			check("about its answer", a, b, errorAbout(flow.answer(), typ), Critical, true)
			check("redirect", b, a, errorAbout(flow, 5), Critical, false)
			other := *flow
			other.dport++
			check("another flow", b, a, errorAbout(&other, typ), Critical, false)
			mine := errorAbout(flow, typ)
			mine.src, mine.dst = mine.dst, mine.src
			check("what its own sender sent", a, b, mine, Critical, false)
			for spoil, want := range map[uint8]bool{cutOff: true, cutPort: false, tooLong: false, noQuote: false} {
				e := errorAbout(flow, typ)
				e.spoil = spoil
				check("spoilt", b, a, e, Critical, want)
			}
			for _, e := range []end{a, b} {
				e.Apply(&Document{Version: 1}, []Subject{subject(1, "one"), subject(2, "two")})
			}
			check("after the policy forbids the flow", b, a, errorAbout(flow, typ), Critical, false)
			for _, e := range []end{a, b} {
				e.Apply(d, []Subject{subject(1, "one"), subject(2, "two")})
			}
			now += flowLife + 1
			check("after the flow", b, a, errorAbout(flow, typ), Critical, false)
		})
	}
}

func TestFragmentsFollow(t *testing.T) {
	d := oneWay("udp", "7400")
	d.Guards = []Rule{{ID: "g", Src: []string{"*"}, Dst: []string{"*"}, Proto: "udp", Ports: []string{"53"}}}
	a, b := ends(t, d)
	first := &packet.Info{Src: addrA, Dst: addrB, Proto: 17, SrcPort: 5, DstPort: 7400, Fragment: packet.FirstFragment, FragmentID: 7, Len: 1400}
	later := &packet.Info{Src: addrA, Dst: addrB, Proto: 17, Fragment: packet.LaterFragment, FragmentID: 7, Len: 1400}
	if a.out(later, 0) || b.in(later, 0) {
		t.Error("it passes before its first")
	}
	if !a.out(first, 0) || !b.in(first, 0) || !a.out(later, fragLife) || !b.in(later, fragLife) {
		t.Error("it does not follow its first")
	}
	if a.out(later, fragLife+1) || b.in(later, fragLife+1) {
		t.Error("it follows for ever")
	}
	a.out(first, 10*second)
	for name, change := range map[string]func(*packet.Info){
		"id":        func(i *packet.Info) { i.FragmentID++ },
		"protocol":  func(i *packet.Info) { i.Proto = 6 },
		"source":    func(i *packet.Info) { i.Src = netip.MustParseAddr("10.66.0.9") },
		"direction": func(i *packet.Info) { i.Src, i.Dst = i.Dst, i.Src },
	} {
		i := *later
		change(&i)
		if a.out(&i, 10*second) {
			t.Errorf("it follows a first of another %s", name)
		}
	}
	// The policy in force judges it, as what its first was.
	a.Apply(oneWay("udp", "7401"), []Subject{subject(2, "two")})
	if a.out(later, 10*second) {
		t.Error("it follows a first that is now denied")
	}
	// Pieces of answers as well.
	a, b = ends(t, d)
	a.out(&packet.Info{Src: addrA, Dst: addrB, Proto: 17, SrcPort: 5, DstPort: 7400}, 0)
	b.in(&packet.Info{Src: addrA, Dst: addrB, Proto: 17, SrcPort: 5, DstPort: 7400}, 0)
	if f, l := reply(first), reply(later); !b.out(f, 0) || !a.in(f, 0) || !b.out(l, 0) || !a.in(l, 0) {
		t.Error("pieces of an answer are denied")
	}
	// A peer may not push out all of others.
	var table fragTable
	mine, others := new(PeerRules), new(PeerRules)
	table.note(mine, first, 0, true)
	for n := range uint32(100_000) {
		i := *first
		i.FragmentID = n
		table.note(others, &i, 1, true)
	}
	if !table.find(mine, later, new(packet.Info), 1, true) {
		t.Error("another peer pushed it out")
	}
}

func FuzzQuoted(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 10))
	for _, flow := range []*spec{
		{src: addrA, dst: addrB, proto: 17, sport: 5000, dport: 7400},
		{src: netip.MustParseAddr("fd66::1"), dst: netip.MustParseAddr("fd66::2"), proto: 6, sport: 5000, dport: 7400, ext: []uint8{0, 43}},
	} {
		f.Add(errorAbout(flow, 3).bytes(nil))
		f.Add(errorAbout(randomSpec(r, flow.src, flow.dst, nil), 1).bytes(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var info, q, parsed packet.Info
		if !packet.Parse(b, &info) || !isError(&info) || !quoted(b, &info, &q) {
			return
		}
		if q.Src != info.Dst || q.Dst != info.Src || len(b) > maxError {
			t.Fatalf("%+v quotes %+v", info, q)
		}
		// What is whole must be read as any packet is.
		if packet.Parse(b[info.Transport+quoteAt:], &parsed) && (parsed.Proto != q.Proto || parsed.SrcPort != q.SrcPort ||
			parsed.DstPort != q.DstPort || parsed.ICMPType != q.ICMPType || parsed.Fragment == packet.LaterFragment) {
			t.Fatalf("quoted %+v, parsed %+v", q, parsed)
		}
	})
}

func TestErrorAllocs(t *testing.T) {
	flow := &spec{src: addrA, dst: addrB, proto: 17, sport: 5000, dport: 7400}
	a, b := ends(t, oneWay("udp", "7400"))
	frag := &packet.Info{Src: addrA, Dst: addrB, Proto: 17, SrcPort: 5000, DstPort: 7400, Fragment: packet.FirstFragment, FragmentID: 7}
	later := &packet.Info{Src: addrA, Dst: addrB, Proto: 17, Fragment: packet.LaterFragment, FragmentID: 7}
	e := errorAbout(flow, 3).bytes(nil)
	var info packet.Info
	packet.Parse(e, &info)
	if n := testing.AllocsPerRun(100, func() {
		if !a.Send(a.peer, nil, frag, Bulk, 1).Allow || !a.Send(a.peer, nil, later, Bulk, 1).Allow || !a.Receive(a.peer, e, &info, Critical, 1).Allow {
			t.Fatal("denied")
		}
		b.Send(b.peer, e, &info, Critical, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
