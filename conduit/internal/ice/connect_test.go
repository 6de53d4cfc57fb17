// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestConnectLoopback(t *testing.T) {
	ma, mb := newUDPMux(t, 1, net.IPv4(127, 0, 0, 1)), newUDPMux(t, 1, net.IPv4(127, 0, 0, 1))
	a, b := newPeer(t, ma, true), newPeer(t, mb, false)
	begin := time.Now()
	connect(t, a, b)
	pa, pb := a.path(t), b.path(t)
	if d := time.Since(begin); d > time.Second {
		t.Errorf("took %v, want well under the nomination wait", d)
	}
	if want := mb.HostAddrs()[0].Addr; pa.Remote != want || pa.Socket != 0 || pa.LocalType != TypeHost {
		t.Errorf("path of a = %+v, want to %v", pa, want)
	}
	if want := ma.HostAddrs()[0].Addr; pb.Remote != want {
		t.Errorf("path of b = %+v, want to %v", pb, want)
	}
}

// Two pairs of agents over the same two sockets: pion's own mux gives the second
// pair's messages to the first.
func TestTwoAgentsSameRemote(t *testing.T) {
	ma, mb := newUDPMux(t, 1, net.IPv4(127, 0, 0, 1)), newUDPMux(t, 1, net.IPv4(127, 0, 0, 1))
	a1, b1 := newPeer(t, ma, true), newPeer(t, mb, false)
	a2, b2 := newPeer(t, ma, false), newPeer(t, mb, true)
	connect(t, a1, b1)
	connect(t, a2, b2)
	for _, p := range []*peer{a1, b1, a2, b2} {
		p.path(t)
	}
}

// Sockets bound to no address: pion's label is 0.0.0.0, the peer gets the
// interface addresses.
func TestConnectWildcard(t *testing.T) {
	ma, mb := newUDPMux(t, 1, net.IPv4zero), newUDPMux(t, 1, net.IPv4zero)
	a, b := newPeer(t, ma, true), newPeer(t, mb, false)
	connect(t, a, b)
	pa := a.path(t)
	b.path(t)
	ok := slices.ContainsFunc(mb.HostAddrs(), func(h HostAddr) bool { return h.Addr == pa.Remote })
	if !ok {
		t.Errorf("path of a = %+v, want one of %v", pa, mb.HostAddrs())
	}
}

func TestConnectIPv6(t *testing.T) {
	c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no IPv6 on loopback: %v", err)
		}
		t.Skipf("no IPv6 on loopback: %v", err)
	}
	_ = c.Close()
	ma, mb := newUDPMux(t, 2, net.IPv6loopback), newUDPMux(t, 1, net.IPv6loopback)
	a, b := newPeer(t, ma, false), newPeer(t, mb, true)
	connect(t, a, b)
	if pa := a.path(t); pa.Remote != mb.HostAddrs()[0].Addr {
		t.Errorf("path of a = %+v", pa)
	}
	b.path(t)
}

// Thirty peers of one mux connect at the same time.
func TestManyPeers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(20 * time.Millisecond)
		sa := w.socket("192.0.2.1:4000", nil)
		ma := newMux(t, MuxConfig{Sockets: []Socket{sa}})
		w.attach(sa, ma, 0)
		var peers []*peer
		for i := range 30 {
			sb := w.socket(fmt.Sprintf("198.51.100.%d:4000", i+1), nil)
			mb := newMux(t, MuxConfig{Sockets: []Socket{sb}})
			w.attach(sb, mb, 0)
			a, b := newPeer(t, ma, i%2 == 0), newPeer(t, mb, i%2 == 1)
			connect(t, a, b)
			peers = append(peers, a, b)
		}
		for _, p := range peers {
			p.path(t)
		}
	})
}

// fakePair returns two muxes with public addresses in a world.
func fakePair(t *testing.T) (w *world, ma, mb *Mux) {
	t.Helper()
	w = newWorld(20 * time.Millisecond)
	sa, sb := w.socket("192.0.2.1:4000", nil), w.socket("192.0.2.2:4000", nil)
	ma, mb = newMux(t, MuxConfig{Sockets: []Socket{sa}}), newMux(t, MuxConfig{Sockets: []Socket{sb}})
	w.attach(sa, ma, 0)
	w.attach(sb, mb, 0)
	return w, ma, mb
}

func TestLateControlledSide(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, ma, mb := fakePair(t)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		a.start(t)
		b.start(t)
		synctest.Wait()
		b.signal(t, a)
		time.Sleep(5 * time.Second)
		a.signal(t, b)
		a.path(t)
		b.path(t)
	})
}

func TestPathBeforeNomination(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, ma, mb := fakePair(t)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		begin := time.Now()
		connect(t, a, b)
		a.path(t)
		b.path(t)
		// One round trip, with the crossing of the two checks.
		if d := time.Since(begin); d > 3*w.delay {
			t.Errorf("a path took %v, want at most 1.5 round trips (%v)", d, 3*w.delay)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		// Nomination chose the same pair: nothing new to say.
		if len(a.paths) != 0 || len(b.paths) != 0 {
			t.Errorf("a path was reported twice")
		}
		if got := len(a.proven); got == 0 {
			t.Error("OnProven was not called")
		}
		var last Path
		for len(a.proven) > 0 {
			last = <-a.proven
		}
		if !last.RoundTrip {
			t.Errorf("proven = %+v, want a round trip", last)
		}
	})
}

func TestNAT(t *testing.T) {
	tests := []struct {
		name       string
		symA, symB bool
		lose       int // requests that the STUN server does not see
		want       bool
	}{
		{"port-restricted", false, false, 0, true},
		{"stun-loss", false, false, 3, true},
		{"both-symmetric", true, true, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(20 * time.Millisecond)
				w.stunServer("203.0.113.1:3478", tt.lose)
				sa := w.socket("10.1.0.2:4000", w.newNAT("198.51.100.1", tt.symA))
				sb := w.socket("10.2.0.2:4000", w.newNAT("198.51.100.2", tt.symB))
				ma, mb := newMux(t, MuxConfig{Sockets: []Socket{sa}}), newMux(t, MuxConfig{Sockets: []Socket{sb}})
				w.attach(sa, ma, 0)
				w.attach(sb, mb, 0)
				a := newPeer(t, ma, true, "203.0.113.1:3478")
				b := newPeer(t, mb, false, "203.0.113.1")
				connect(t, a, b)
				if !tt.want {
					if err := <-a.failed; !errors.Is(err, ErrNoPath) {
						t.Errorf("OnFailed(%v), want ErrNoPath", err)
					}
					return
				}
				p := a.path(t)
				if p.Remote.Addr() != netip.MustParseAddr("198.51.100.2") || p.Type != TypeSrflx && p.Type != TypePrflx {
					t.Errorf("path = %+v, want the NAT of b", p)
				}
				b.path(t)
			})
		})
	}
}

// Over a bad link checks get lost; the next one is 200 ms away.
func TestLossyLink(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, ma, mb := fakePair(t)
		w.loss = 0.4
		var worst time.Duration
		for range 20 {
			a, b := newPeer(t, ma, true), newPeer(t, mb, false)
			begin := time.Now()
			connect(t, a, b)
			a.path(t)
			b.path(t)
			worst = max(worst, time.Since(begin))
		}
		if worst > 2*time.Second {
			t.Errorf("the slowest of 20 took %v", worst)
		}
		t.Logf("the slowest of 20 took %v", worst)
	})
}

// A symmetric NAT on one side is no obstacle when the other is open: the check
// makes a peer-reflexive candidate.
func TestPeerReflexive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(20 * time.Millisecond)
		sa := w.socket("10.1.0.2:4000", w.newNAT("198.51.100.1", true))
		sb := w.socket("192.0.2.2:4000", nil)
		ma, mb := newMux(t, MuxConfig{Sockets: []Socket{sa}}), newMux(t, MuxConfig{Sockets: []Socket{sb}})
		w.attach(sa, ma, 0)
		w.attach(sb, mb, 0)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		connect(t, a, b)
		if p := b.path(t); p.Type != TypePrflx || p.Remote.Addr() != netip.MustParseAddr("198.51.100.1") {
			t.Errorf("path of b = %+v, want peer-reflexive", p)
		}
		if p := a.path(t); p.Type != TypeHost {
			t.Errorf("path of a = %+v, want host", p)
		}
	})
}

// The better of two uplinks answers late; once it is nominated, OnPath says so,
// and both were given to OnProven.
func TestTwoSockets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(20 * time.Millisecond)
		s0, s1 := w.socket("192.0.2.1:4000", nil), w.socket("192.0.2.1:5000", nil)
		s0.bound, s1.bound = netip.MustParseAddrPort("0.0.0.0:4000"), netip.MustParseAddrPort("0.0.0.0:4000") // told apart by device
		sb := w.socket("192.0.2.2:4000", nil)
		ma, mb := newMux(t, MuxConfig{Sockets: []Socket{s0, s1}}), newMux(t, MuxConfig{Sockets: []Socket{sb}})
		ma.interfaces = func() ([]ifaceAddr, error) { return []ifaceAddr{{"eth0", s0.local.Addr()}}, nil }
		w.attach(s0, ma, 0)
		w.attach(s1, ma, 1)
		w.attach(sb, mb, 0)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		connect(t, a, b)
		a.path(t)
		b.path(t)
		time.Sleep(5 * time.Second)
		socks := make(map[int]bool)
		for len(a.proven) > 0 {
			p := <-a.proven
			socks[p.Socket] = socks[p.Socket] || p.RoundTrip
		}
		if !socks[0] || !socks[1] {
			t.Errorf("round trips by socket: %v, want both", socks)
		}
	})
}

func TestGarbage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, ma, mb := fakePair(t)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		from := netip.MustParseAddrPort("192.0.2.66:1")
		junk := [][]byte{
			check(a.ufrag+":"+b.ufrag, "a password that is not the peer's"), check("nobody:"+b.ufrag, testPwd),
			raw(typeSuccess, attr(attrXORMappedAddress, 0, 1, 2, 3, 4, 5, 6, 7)), raw(typeRequest, attr(0x7000)),
			raw(typeRequest, attr(attrUsername, []byte(a.ufrag+":"+b.ufrag)...)),
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // 10,000 a second
			for {
				for i := range 10 {
					ma.Handle(0, junk[i%len(junk)], from)
					mb.Handle(0, junk[i%len(junk)], from)
				}
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
		begin := time.Now()
		connect(t, a, b)
		a.path(t)
		b.path(t)
		if d := time.Since(begin); d > 100*time.Millisecond {
			t.Errorf("took %v under garbage", d)
		}
		time.Sleep(time.Second)
		close(stop)
		wg.Wait()
		if s := ma.Stats(); s.BadIntegrity < 1000 || s.UnknownUser < 1000 || s.UnknownTransaction < 1000 || s.Malformed < 1000 || s.Evicted != 0 {
			t.Errorf("stats = %+v", s)
		}
	})
}

func TestWrongPassword(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, ma, mb := fakePair(t)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		a.start(t)
		b.start(t)
		synctest.Wait()
		if err := b.SetRemote(a.ufrag, a.pwd); err != nil {
			t.Fatal(err)
		}
		if err := a.SetRemote(b.ufrag, b.pwd[1:]+"x"); err != nil {
			t.Fatal(err)
		}
		for _, c := range b.cands {
			_ = a.AddRemote(c)
		}
		if err := <-a.failed; !errors.Is(err, ErrNoPath) {
			t.Errorf("OnFailed(%v), want ErrNoPath", err)
		}
		if len(a.paths) != 0 || len(b.paths) != 0 {
			t.Error("a path was proven with a wrong password")
		}
		if s := mb.Stats(); s.BadIntegrity == 0 || s.Requests != 0 {
			t.Errorf("stats of b = %+v", s)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.sent > 2*maxChecks+20 {
			t.Errorf("%d messages sent, want the checks to end", w.sent)
		}
	})
}

// A forged response must neither prove a path nor use up the transaction.
func TestForgedResponse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, ma, mb := fakePair(t)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		genuine := netip.MustParseAddrPort("192.0.2.2:4000")
		w.mu.Lock()
		next := w.hosts[genuine]
		w.hosts[genuine] = func(msg []byte, from netip.AddrPort) {
			ma.Handle(0, stunAnswer(msg, from), genuine)                                // no integrity
			ma.Handle(0, stunAnswer(msg, from), netip.MustParseAddrPort("192.0.2.3:1")) // from elsewhere
			next(msg, from)
		}
		w.mu.Unlock()
		connect(t, a, b)
		a.path(t)
		time.Sleep(time.Second)
		if s := ma.Stats(); s.BadIntegrity == 0 || s.UnknownTransaction == 0 || s.Responses == 0 {
			t.Errorf("stats = %+v", s)
		}
	})
}
