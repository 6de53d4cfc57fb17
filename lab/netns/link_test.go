// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// roundTrip is the fastest of a few exchanges with a mirror.
func roundTrip(t *testing.T, c *net.UDPConn, to netip.AddrPort) time.Duration {
	t.Helper()
	best := time.Hour
	for range 5 {
		began := time.Now()
		ask(t, c, to)
		best = min(best, time.Since(began))
	}
	return best
}

// answers counts how many of n datagrams come back.
func answers(t *testing.T, c *net.UDPConn, to netip.AddrPort, n int, wait time.Duration) int {
	t.Helper()
	for range n {
		// A down interface refuses the datagram, which counts as lost.
		_, _ = c.WriteToUDPAddrPort([]byte("x"), to)
	}
	got, buf := 0, make([]byte, 64)
	_ = c.SetReadDeadline(time.Now().Add(wait))
	for got < n {
		if _, _, err := c.ReadFromUDPAddrPort(buf); err != nil {
			break
		}
		got++
	}
	return got
}

func TestDelay(t *testing.T) {
	t.Parallel()
	lab := New(t)
	wan := lab.WAN("wan")
	_, far := mirror(t, wan.Host("far", Link{}))
	shape := Shape{Delay: 20 * time.Millisecond}
	h := wan.Host("near", Link{Up: shape, Down: Shape{Delay: 10 * time.Millisecond}})
	t.Logf("\n%s", lab.Draw())
	c := udp(t, h, "")
	if rtt := roundTrip(t, c, far); rtt < 30*time.Millisecond || rtt > 60*time.Millisecond {
		t.Errorf("round trip = %v, want a little over 30ms", rtt)
	}
	h.Iface(0).SetShape(Shape{}, Shape{})
	if rtt := roundTrip(t, c, far); rtt > 20*time.Millisecond {
		t.Errorf("round trip after SetShape = %v, want almost nothing", rtt)
	}
}

func TestLoss(t *testing.T) {
	t.Parallel()
	lab := New(t)
	wan, sw := lab.WAN("wan"), lab.Switch("lan")
	_, public := mirror(t, wan.Host("public", Link{}))
	_, local := mirror(t, sw.Host("local", Link{}))
	lossy := Link{Up: Shape{Loss: 0.3}}
	t.Logf("\n%s", lab.Draw())
	for name, tt := range map[string]struct {
		h  *Host
		to netip.AddrPort
	}{
		"nft":      {wan.Host("nft", lossy), public},
		"delaybox": {sw.Host("box", lossy), local},
	} {
		t.Run(name, func(t *testing.T) {
			got := 0
			for range 10 { // in portions that fit the receive buffer
				got += answers(t, udp(t, tt.h, ""), tt.to, 50, 100*time.Millisecond)
			}
			if got < 280 || got > 420 {
				t.Errorf("%d of 500 answered, want about 350", got)
			}
		})
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	for name, link := range map[string]Link{
		"tbf":      {Up: Shape{Rate: 20e6}},
		"delaybox": {Up: Shape{Rate: 20e6, Delay: time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			lab := New(t)
			wan := lab.WAN("wan")
			server := wan.Host("server", Link{})
			client := wan.Host("client", link)
			ln, err := server.ListenTCP(net.JoinHostPort(server.Addr4().String(), "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			go func() {
				defer ln.Close()
				c, err := client.DialTCP(ctx, ln.Addr().(*net.TCPAddr).AddrPort())
				if err != nil {
					return
				}
				_, _ = c.Write(make([]byte, 2<<20))
				_ = c.Close()
			}()
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			began := time.Now()
			n, err := io.Copy(io.Discard, c)
			if err != nil || n != 2<<20 {
				t.Fatalf("received %d bytes, %v, want %d", n, err, 2<<20)
			}
			mbit := float64(n) * 8 / time.Since(began).Seconds() / 1e6
			if mbit < 12 || mbit > 24 {
				t.Errorf("throughput = %.1f Mbit/s, want a little under 20", mbit)
			}
		})
	}
}

func TestLinkSwitches(t *testing.T) {
	t.Parallel()
	lab := New(t)
	wan := lab.WAN("wan")
	box := lab.NAT("box", NATConfig{Upstream: wan})
	_, far := mirror(t, wan.Host("far", Link{}))
	for name, h := range map[string]*Host{
		"routed":          wan.Host("routed", Link{}),
		"bridged":         box.Host("bridged", Link{}),
		"routed delayed":  wan.Host("routed-dly", Link{Up: Shape{Delay: time.Millisecond}}),
		"bridged delayed": box.Host("bridged-dly", Link{Up: Shape{Delay: time.Millisecond}}),
	} {
		t.Run(name, func(t *testing.T) {
			i := h.Iface(0)
			for _, sw := range []struct {
				name    string
				off, on func()
			}{
				{"down", i.Down, i.Up},
				{"unplug", i.Unplug, i.Plug},
				{"blackhole", func() { i.Blackhole(true) }, func() { i.Blackhole(false) }},
			} {
				c := udp(t, h, "")
				ask(t, c, far)
				sw.off()
				if n := answers(t, c, far, 1, 50*time.Millisecond); n != 0 {
					t.Errorf("%s: still through", sw.name)
				}
				sw.on()
				// The kernel may take a moment to see the carrier again.
				deadline := time.Now().Add(patience)
				for answers(t, c, far, 1, 100*time.Millisecond) == 0 {
					if time.Now().After(deadline) {
						t.Fatalf("%s: not through again after %v", sw.name, patience)
					}
				}
			}
		})
	}
	t.Logf("\n%s", lab.Draw())
}

func TestDoRestoresThreads(t *testing.T) {
	lab := New(t)
	h := lab.WAN("wan").Host("host", Link{})
	names := func() (s []string) {
		ifs, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range ifs {
			s = append(s, i.Name)
		}
		return s
	}
	var inside []string
	if err := h.Do(func() error { inside = names(); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(inside) != 2 || inside[1] != "eth0" {
		t.Errorf("interfaces inside = %v, want lo and eth0", inside)
	}
	for range 20 {
		for _, n := range names() {
			if n == "eth0" && len(names()) == 2 {
				t.Fatal("a thread came back from Do in the host's namespace")
			}
		}
	}
	want := errors.New("mine")
	if err := h.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do returned %v, want the function's error", err)
	}
	func() {
		defer func() {
			if recover() != "mine" {
				t.Error("a panic inside Do did not reach the caller")
			}
		}()
		_ = h.Do(func() error { panic("mine") })
	}()
}

func TestSetRate(t *testing.T) {
	t.Parallel()
	lab := New(t)
	wan := lab.WAN("wan")
	slow := Shape{Rate: 5e6, Queue: 64 << 10, Burst: 1600}
	client, server := wan.Host("client", Link{Up: slow, Down: slow}), wan.Host("server", Link{})
	sink := udp(t, server, "")
	out := udp(t, client, "")
	to := netip.AddrPortFrom(server.Addr4(), sink.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	// bits fills the link for a while and returns what has left a second.
	bits := func() float64 {
		t.Helper()
		before, _, err := client.Iface(0).Traffic()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for time.Since(began) < 500*time.Millisecond {
			_, _ = out.WriteToUDPAddrPort(make([]byte, 1400), to)
		}
		took := time.Since(began)
		after, _, err := client.Iface(0).Traffic()
		if err != nil {
			t.Fatal(err)
		}
		if after.Dropped == before.Dropped {
			t.Error("a link that is full dropped nothing")
		}
		return float64(after.Bytes-before.Bytes) * 8 / took.Seconds()
	}
	if got := bits(); got < 4e6 || got > 5.5e6 {
		t.Errorf("%.0f bits a second, want 5,000,000", got)
	}
	fast := slow
	fast.Rate = 20e6
	client.Iface(0).SetShape(fast, slow)
	if got := bits(); got < 16e6 || got > 22e6 {
		t.Errorf("%.0f bits a second after the change, want 20,000,000", got)
	}
	fast.Loss = 1
	client.Iface(0).SetShape(fast, slow)
	_, far := mirror(t, server)
	if n := answers(t, udp(t, client, ""), far, 5, 50*time.Millisecond); n > 0 {
		t.Errorf("%d of 5 answered over a link that loses all", n)
	}
	fast.Loss = 0
	client.Iface(0).SetShape(fast, slow)
	if rtt := roundTrip(t, udp(t, client, ""), far); rtt > 2*time.Second {
		t.Errorf("round trip = %v over a link that loses nothing again", rtt)
	}
}
