// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// uplinkSocket is a socket that is bound to an interface, or the fallback.
type uplinkSocket struct {
	*fakeSocket
	iface string
	rank  int
}

func (s uplinkSocket) Interface() string { return s.iface }
func (s uplinkSocket) Rank() int         { return s.rank }
func (s uplinkSocket) Fallback() bool    { return s.iface == "" }

// twoUplinks is a mux with the sockets of two uplinks behind NATs (wlan0 with
// IPv6 besides) and the fallback, at scattered indexes.
func twoUplinks(t *testing.T) (w *world, m *Mux) {
	t.Helper()
	w = newWorld(10 * time.Millisecond)
	w.stunServer("203.0.113.1:3478", 0)
	w.stunServer("203.0.113.2:3478", 0)
	w.stunServer("[2001:db8:5::1]:3478", 0)
	m = newMux(t, MuxConfig{})
	var addrs []ifaceAddr
	add := func(i int, iface, addr string, rank int, n *nat) {
		s := w.socket(addr, n)
		s.bound = netip.MustParseAddrPort("0.0.0.0:4000")
		if s.local.Addr().Is6() {
			s.bound = netip.MustParseAddrPort("[::]:4000")
		}
		if err := m.SetSocket(i, uplinkSocket{s, iface, rank}); err != nil {
			t.Fatal(err)
		}
		w.attach(s, m, i)
		if iface != "" {
			addrs = append(addrs, ifaceAddr{iface, s.local.Addr()})
		}
	}
	add(2, "", "10.1.0.2:4001", 9, nil)
	add(5, "lte0", "10.7.0.2:4000", 1, w.newNAT("198.51.100.7", false))
	add(7, "wlan0", "10.1.0.2:4000", 0, w.newNAT("198.51.100.1", false))
	add(9, "wlan0", "[2001:db8::2]:4000", 0, nil)
	m.interfaces = func() ([]ifaceAddr, error) {
		return append(addrs, ifaceAddr{"cam0", netip.MustParseAddr("10.8.0.1")}), nil
	}
	return w, m
}

func TestGatherUplinks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, m := twoUplinks(t)
		var got []string
		seen := make(map[string]bool)
		last := map[string]uint32{TypeHost: 1 << 31, TypeSrflx: 1 << 31}
		var all []Candidate
		servers := []string{"203.0.113.1:3478", "203.0.113.2:3478", "[2001:db8:5::1]:3478"}
		if err := m.Gather(t.Context(), servers, nil, func(c Candidate) { all = append(all, c) }); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(all[3:], func(a, b Candidate) int { return a.Rank - b.Rank }) // those come as servers answer
		for _, c := range all {
			got = append(got, fmt.Sprintf("%s %d %v", c.Type, c.Sock, c.Addr))
			p, err := parseCandidate(c.String())
			if err != nil {
				t.Fatal(err)
			}
			if seen[p.foundation] {
				t.Errorf("%v has the foundation of another", c)
			}
			seen[p.foundation] = true
			if p.priority >= last[c.Type] {
				t.Errorf("%v has a priority that is not below the one before", c)
			}
			last[c.Type] = p.priority
		}
		want := []string{
			"host 7 10.1.0.2:4000", "host 9 [2001:db8::2]:4000", "host 5 10.7.0.2:4000",
			"srflx 7 198.51.100.1:40001", "srflx 5 198.51.100.7:40001",
		}
		if !slices.Equal(got, want) {
			t.Errorf("gathered\n%q\nwant\n%q", got, want)
		}
	})
}

// After a change of one uplink only it is asked, and asked anew.
func TestGatherAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, m := twoUplinks(t)
		gather := func(only func(int) bool) (got []string) {
			t.Helper()
			if err := m.Gather(t.Context(), []string{"203.0.113.1:3478"}, only, func(c Candidate) { got = append(got, c.Addr.String()) }); err != nil {
				t.Fatal(err)
			}
			return got
		}
		gather(nil)
		w.mu.Lock()
		w.nats[netip.MustParseAddr("198.51.100.7")].out = make(map[natKey]netip.AddrPort) // another lease
		sent := w.sent
		w.mu.Unlock()
		lte := func(i int) bool { return i == 5 }
		if got, want := gather(lte), []string{"10.7.0.2:4000", "198.51.100.7:40001"}; !slices.Equal(got, want) || w.sent != sent {
			t.Errorf("from memory: %q, want %q, %d sent", got, want, w.sent-sent)
		}
		m.FlushSocket(5)
		if got, want := gather(lte), []string{"10.7.0.2:4000", "198.51.100.7:40002"}; !slices.Equal(got, want) || w.sent != sent+1 {
			t.Errorf("anew: %q, want %q, %d sent", got, want, w.sent-sent)
		}
		m.RemoveSocket(5)
		if got := gather(lte); len(got) != 0 {
			t.Errorf("a removed socket gave %q", got)
		}
		// The fallback counts where nothing else has the family.
		m.RemoveSocket(7)
		if got := gather(func(i int) bool { return i == 2 }); len(got) != 4 || got[3] != "10.1.0.2:4001" { // no NAT: seen as it is
			t.Errorf("the fallback gave %q", got)
		}
	})
}

func TestGatherEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, m := twoUplinks(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		none := func(Candidate) {}
		dead := []string{"203.0.113.99"}
		if err := m.Gather(ctx, dead, nil, none); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Gather = %v, want DeadlineExceeded", err)
		}
		begin := time.Now()
		m.Flush()
		if err := m.Gather(t.Context(), dead, nil, none); err != nil {
			t.Errorf("Gather = %v", err)
		}
		if d := time.Since(begin); d != 3*time.Second {
			t.Errorf("a dead server took %v", d)
		}
		_ = m.Close()
		if err := m.Gather(t.Context(), nil, nil, none); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Gather after Close = %v", err)
		}
	})
}

// A machine with very many addresses leaves room for reflexive ones.
func TestGatherCaps(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(time.Millisecond)
		m := newMux(t, MuxConfig{})
		var servers []string
		for i := range 20 {
			addr := fmt.Sprintf("203.0.113.%d:3478", i+1)
			w.stunServer(addr, 0)
			servers = append(servers, addr)
		}
		s := w.socket("10.0.0.2:4000", w.newNAT("198.51.100.1", true)) // another mapping for each server
		s.bound = netip.MustParseAddrPort("0.0.0.0:4000")
		if err := m.SetSocket(0, s); err != nil {
			t.Fatal(err)
		}
		w.attach(s, m, 0)
		m.interfaces = func() (out []ifaceAddr, err error) {
			for i := range 100 {
				out = append(out, ifaceAddr{"eth0", netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)})})
			}
			return out, nil
		}
		n := map[string]int{}
		if err := m.Gather(t.Context(), servers, nil, func(c Candidate) { n[c.Type]++ }); err != nil {
			t.Fatal(err)
		}
		if n[TypeHost] != maxHosts || n[TypeSrflx] != maxCandidates-maxHosts {
			t.Errorf("gathered %v", n)
		}
	})
}

func TestSetSocket(t *testing.T) {
	m := newMux(t, MuxConfig{})
	ok := &fakeSocket{local: netip.MustParseAddrPort("192.0.2.1:1")}
	for name, err := range map[string]error{
		"nil": m.SetSocket(0, nil), "no port": m.SetSocket(0, &fakeSocket{local: netip.MustParseAddrPort("192.0.2.1:0")}),
		"negative": m.SetSocket(-1, ok), "huge": m.SetSocket(maxSockets, ok),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := m.SetSocket(40, ok); err != nil {
		t.Fatal(err)
	}
	if m.socket(40) != ok || m.socket(39) != nil || m.socket(41) != nil || m.socket(-1) != nil {
		t.Error("the socket is not at its index, or elsewhere too")
	}
	m.RemoveSocket(40)
	m.RemoveSocket(40)
	m.RemoveSocket(4000)
	if m.socket(40) != nil || len(m.order()) != 0 {
		t.Error("the socket is still there")
	}
}

// Both uplinks of one side reach the peer, each from its own index, and the
// fallback takes no part.
func TestConnectUplinks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, ma := twoUplinks(t)
		sb := w.socket("192.0.2.2:4000", nil)
		mb := newMux(t, MuxConfig{Sockets: []Socket{sb}})
		w.attach(sb, mb, 0)
		a, b := newPeer(t, ma, true, "203.0.113.1"), newPeer(t, mb, false)
		connect(t, a, b)
		a.path(t)
		b.path(t)
		pass(5 * time.Second)
		socks := make(map[int]bool)
		for len(a.proven) > 0 {
			p := <-a.proven
			socks[p.Socket] = socks[p.Socket] || p.RoundTrip
		}
		if len(socks) != 2 || !socks[5] || !socks[7] {
			t.Errorf("round trips by socket: %v, want 5 and 7", socks)
		}
	})
}
