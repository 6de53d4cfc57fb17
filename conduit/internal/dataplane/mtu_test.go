// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

var (
	addrA6 = netip.MustParseAddr("fd66::1")
	addrB6 = netip.MustParseAddr("fd66::2")
)

func udp6(src, dst netip.Addr, n int) []byte {
	b := make([]byte, 48+n)
	b[0], b[6], b[7] = 0x60, packet.ProtoUDP, 64
	binary.BigEndian.PutUint16(b[4:], uint16(8+n))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return b
}

func tcpSYN(src, dst netip.Addr) []byte {
	b := udp(src, dst, 16)
	b[9], b[32], b[33] = packet.ProtoTCP, 6<<4, packet.TCPSYN
	copy(b[40:], []byte{2, 4, 0x05, 0xb4})
	return b
}

var testMTU = 1200 + grown // of datagrams

func newSmall(t *testing.T) *pair {
	p := newPair(t, 1)
	p.a.d.local = map[netip.Addr]struct{}{addrA: {}, addrA6: {}}
	p.b.d.local = map[netip.Addr]struct{}{addrB: {}, addrB6: {}}
	p.a.peer.Virtual6, p.b.peer.Virtual6 = addrB6, addrA6
	p.a.d.SetRoutes(map[netip.Addr]*Peer{addrB: p.a.peer, addrB6: p.a.peer})
	p.a.d.SetWays(p.a.peer, &Ways{Critical: p.paths, Bulk: p.paths, MTU: testMTU})
	return p
}

// What does not fit the paths is fragmented, or its sender is told.
func TestTooBigForThePaths(t *testing.T) {
	p := newSmall(t)
	p.a.dev.in <- udp(addrA, addrB, 1200-28)
	if got := <-p.b.dev.out; len(got) != 1200 {
		t.Errorf("a packet that fits came as %d bytes", len(got))
	}
	p.a.dev.in <- udp(addrA, addrB, 1300)
	x, y := <-p.b.dev.out, <-p.b.dev.out
	if len(x) > 1200 || len(x)+len(y) != 1328+20 || x[6]&0x20 == 0 || y[6]&0x20 != 0 {
		t.Errorf("fragments of %d and %d bytes", len(x), len(y))
	}
	df := udp(addrA, addrB, 1300)
	df[6] = 0x40
	for _, c := range []struct {
		pkt []byte
		mtu int
	}{{df, 1200}, {udp6(addrA6, addrB6, 1300), 1200}} {
		dropped := p.a.tx(TxTooBig)
		p.a.dev.in <- c.pkt
		msg := <-p.a.dev.out
		var info packet.Info
		if !packet.Parse(msg, &info) || info.Dst != addrA && info.Dst != addrA6 || !bytes.Contains(msg, c.pkt[:48]) {
			t.Errorf("told the sender %x", msg)
		}
		at := info.Transport + 6
		if got := int(binary.BigEndian.Uint16(msg[at:])); got != c.mtu {
			t.Errorf("told it %d, want %d", got, c.mtu)
		}
		if p.a.tx(TxTooBig) != dropped+1 {
			t.Error("not counted")
		}
		p.a.dev.in <- c.pkt
		until(t, "the flow is not told again at once", func() bool { return p.a.tx(TxTooBig) == dropped+2 })
	}
	if n := len(p.a.dev.out); n != 0 {
		t.Errorf("told %d times more", n)
	}
	// IPv6 cannot be asked for less than 1280.
	p.a.dev.in <- udp6(addrA6, addrB6, 1280-48)
	if got := <-p.b.dev.out; len(got) != 1280 {
		t.Errorf("came as %d bytes", len(got))
	}
}

func TestClampsBothWays(t *testing.T) {
	p := newSmall(t)
	p.a.dev.in <- tcpSYN(addrA, addrB)
	if got := binary.BigEndian.Uint16((<-p.b.dev.out)[42:]); got != 1160 {
		t.Errorf("outbound mss = %d, want 1160", got)
	}
	p.a.receive(p.a.from(wire.TypeData, packet.Critical, tcpSYN(addrB, addrA)))
	if got := binary.BigEndian.Uint16((<-p.a.dev.out)[42:]); got != 1160 {
		t.Errorf("inbound mss = %d, want 1160", got)
	}
}

// The lanes know the fragments that are made here as those that came in.
func TestRefitMarks(t *testing.T) {
	p := newSmall(t)
	b := packet.Get()
	b.N = copy(b.Raw()[packet.Headroom:], udp(addrA, addrB, 1300))
	clear(b.Bytes()[6:8]) // without DF
	var info packet.Info
	if !packet.Parse(b.Bytes(), &info) {
		t.Fatal("refused")
	}
	ready := p.a.d.refit(nil, b, &info, 600, 1)
	if len(ready) != 3 {
		t.Fatalf("%d fragments", len(ready))
	}
	key := ready[0].Datagram
	for i, f := range ready {
		if f.Datagram == 0 || f.Datagram != key || f.FirstFragment != (i == 0) || f.LastFragment != (i == 2) {
			t.Errorf("fragment %d: datagram %x, first %v, last %v", i, f.Datagram, f.FirstFragment, f.LastFragment)
		}
		f.Release()
	}
}

func TestOverhead(t *testing.T) {
	if a, b := overhead(wire.SuiteChaCha), overhead(wire.SuiteFIPS); a != 32 || b != 44 {
		t.Errorf("overhead = %d and %d, want 32 and 44", a, b)
	}
}
