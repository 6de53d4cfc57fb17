// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func TestEvictionNeverAllows(t *testing.T) {
	a, _ := ends(t, oneWay("udp", "7400"))
	const flows = 4 * flowShards * shardSets * setWays // each place several times over
	info := func(n int) *packet.Info {
		i := pkt(17, uint16(n), 7400)
		i.Src = netip.AddrFrom4([4]byte{10, 67, byte(n >> 16), 1})
		return i
	}
	for n := range flows {
		if !a.out(info(n), int64(n)) {
			t.Fatal("denied")
		}
	}
	kept := 0
	for n := range flows {
		if a.in(reply(info(n)), flows) {
			kept++
		}
		never := info(n)
		never.Dst = netip.MustParseAddr("10.66.0.3")
		if a.in(reply(never), flows) {
			t.Fatal("reply to a flow that never was")
		}
	}
	if kept == 0 || kept > flowShards*shardSets*maxPeerShare {
		t.Errorf("%d flows kept, want at most the peer's share of %d", kept, flowShards*shardSets*maxPeerShare)
	}
	if !a.out(info(0), flows) || !a.in(reply(info(0)), flows) {
		t.Error("a flow that was pushed out cannot come back")
	}
}

func TestOldestGivesWay(t *testing.T) {
	e := NewEngine(subject(1, "one"))
	var peers []Subject
	for n := range setWays + 1 {
		peers = append(peers, subject(byte(2+n), "two"))
	}
	e.Apply(oneWay("udp", "7400"), peers)
	var infos []*packet.Info // all of one place, one per peer
	var shard, set int
	for n := 0; len(infos) < len(peers); n++ {
		i := pkt(17, uint16(n), 7400)
		i.Dst = netip.AddrFrom4([4]byte{10, 66, byte(n >> 16), 3})
		k := keyOf(nil, i, true)
		sh, s := place(&k)
		if len(infos) == 0 {
			shard, set = sh, s
		}
		if sh == shard && s == set {
			infos = append(infos, i)
		}
	}
	const oldest = 2
	for n, i := range infos[:setWays] {
		e.Outbound(e.Peer(peers[n].ID), i, Bulk, second+int64((n+setWays-oldest)%setWays))
	}
	e.Outbound(e.Peer(peers[setWays].ID), infos[setWays], Bulk, 2*second)
	for n, i := range infos {
		if got := e.Inbound(e.Peer(peers[n].ID), reply(i), Bulk, 2*second).Allow; got != (n != oldest) {
			t.Errorf("flow %d known %v, want only %d pushed out", n, got, oldest)
		}
	}
}

func TestPeerShare(t *testing.T) {
	d := oneWay("udp", "7400")
	e := NewEngine(subject(1, "one"))
	e.Apply(d, []Subject{subject(2, "two"), subject(3, "two")})
	quiet, loud := e.Peer(subject(2).ID), e.Peer(subject(3).ID)
	i := pkt(17, 5000, 7400)
	if !e.Outbound(quiet, i, Bulk, second).Allow {
		t.Fatal("denied")
	}
	for n := range 1 << 19 {
		j := pkt(17, uint16(n), 7400)
		j.Dst = netip.AddrFrom4([4]byte{10, 66, 1 + byte(n>>16), 3})
		e.Outbound(loud, j, Bulk, second+int64(n))
	}
	if !e.Inbound(quiet, reply(i), Bulk, 2*second).Allow {
		t.Error("one peer pushed out another's flow")
	}
}

func TestNoAllocs(t *testing.T) {
	d := oneWay("tcp", "22")
	d.Guards = []Rule{{Src: []string{"*"}, Dst: []string{"*"}, Proto: "udp"}}
	slow, _ := ends(t, d)
	free, _ := ends(t, Default())
	i := pkt(6, 5000, 22)
	r := reply(i)
	slow.out(i, 0) // makes the shard
	port := uint16(0)
	for name, f := range map[string]func(){
		"free":  func() { free.out(i, 1) },
		"hit":   func() { slow.out(i, 1) },
		"flow":  func() { slow.in(r, 1) },
		"guard": func() { slow.out(pktUDP, 1) },
		"deny":  func() { slow.in(i, 1) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations per packet, want 0", name, n)
		}
	}
	fresh := *i
	for range 1 << 12 { // all shards
		fresh.SrcPort++
		slow.out(&fresh, 1)
	}
	if n := testing.AllocsPerRun(1000, func() { port++; fresh.SrcPort = 9000 + port; slow.out(&fresh, 1) }); n != 0 {
		t.Errorf("new flow: %v allocations per packet, want 0", n)
	}
}

var pktUDP = pkt(17, 1, 2)

func BenchmarkOutbound(b *testing.B) {
	for _, rules := range []int{1, 64} {
		d := &Document{Version: 1}
		for n := range rules {
			d.Allow = append(d.Allow, oneWay("tcp", fmt.Sprint(n+1)).Allow[0])
			d.Allow[n].ID = ""
		}
		a, _ := ends(b, d)
		i := pkt(6, 5000, uint16(rules))
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a.out(i, 1)
			}
		})
	}
}
