// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

const patience = 2 * time.Second

// mirror answers each datagram with the address it came from, as STUN does.
func mirror(t *testing.T, h *Host) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := h.ListenUDP(net.JoinHostPort(h.Addr4().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort([]byte(from.String()), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// ask sends one datagram and returns the address that the answer names.
func ask(t *testing.T, c *net.UDPConn, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte("who am I"), to); err != nil {
		t.Fatal(err)
	}
	text, from := receive(t, c)
	if from != to {
		t.Fatalf("answer from %v, want %v", from, to)
	}
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		t.Fatal(err)
	}
	return ap
}

func receive(t *testing.T, c *net.UDPConn) (string, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 64)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func udp(t *testing.T, h *Host, addr string) *net.UDPConn {
	t.Helper()
	c, err := h.ListenUDP(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestNATKinds(t *testing.T) {
	for _, tt := range []struct {
		kind            NATKind
		sameMapping     bool // for two destinations
		letsStrangersIn bool
	}{
		{PortRestricted, true, false},
		{EndpointIndependent, true, true},
		{Symmetric, false, false},
	} {
		t.Run(tt.kind.String(), func(t *testing.T) {
			lab := New(t)
			wan := lab.WAN("wan")
			one, two, three := wan.Host("one", Link{}), wan.Host("two", Link{}), wan.Host("three", Link{})
			box := lab.NAT("box", NATConfig{Kind: tt.kind, Upstream: wan})
			robot := box.Host("robot", Link{})
			t.Logf("\n%s", lab.Draw())

			oneConn, oneAddr := mirror(t, one)
			_, twoAddr := mirror(t, two)
			c := udp(t, robot, "")
			first, second := ask(t, c, oneAddr), ask(t, c, twoAddr)
			if first.Addr() != box.Box().Addr4() {
				t.Errorf("mapped to %v, want the box's %v", first, box.Box().Addr4())
			}
			if again := ask(t, c, oneAddr); again != first {
				t.Errorf("mapping changed from %v to %v", first, again)
			}
			if same := first == second; same != tt.sameMapping {
				t.Errorf("mappings %v and %v: same = %v, want %v", first, second, same, tt.sameMapping)
			}

			// Strangers: another host, and another port of a known host. What
			// the box lets in arrives before the known peer's last word.
			for _, h := range []*Host{three, one} {
				if _, err := udp(t, h, "").WriteToUDPAddrPort([]byte("stranger"), first); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := oneConn.WriteToUDPAddrPort([]byte("friend"), first); err != nil {
				t.Fatal(err)
			}
			strangers := 0
			for {
				text, _ := receive(t, c)
				if text == "friend" {
					break
				}
				strangers++
			}
			want := 0
			if tt.letsStrangersIn {
				want = 2
			}
			if strangers != want {
				t.Errorf("%d of 2 strangers got in, want %d", strangers, want)
			}
		})
	}
}

// TestHolePunch has two robots behind port-restricted boxes talk over the
// mappings that a third party told them. The first datagram of one hits the
// other's box before that has sent any, and must not occupy its port.
func TestHolePunch(t *testing.T) {
	lab := New(t)
	wan := lab.WAN("wan")
	lan := netip.MustParsePrefix("192.168.1.0/24") // the same behind both boxes
	a := lab.NAT("home-a", NATConfig{Upstream: wan, LAN: lan}).Host("a", Link{})
	b := lab.NAT("home-b", NATConfig{Upstream: wan, LAN: lan}).Host("b", Link{})
	if a.Addr4() != b.Addr4() {
		t.Errorf("hosts have %v and %v, want the same address", a.Addr4(), b.Addr4())
	}
	_, hub := mirror(t, wan.Host("hub", Link{}))
	t.Logf("\n%s", lab.Draw())

	ca, cb := udp(t, a, ""), udp(t, b, "")
	mappedA := ask(t, ca, hub)
	// b has not spoken yet; its box maps this port when it does.
	guess := netip.AddrPortFrom(b.Iface(0).network.Addr4(), uint16(cb.LocalAddr().(*net.UDPAddr).Port))
	if _, err := ca.WriteToUDPAddrPort([]byte("knock"), guess); err != nil {
		t.Fatal(err)
	}
	if mappedB := ask(t, cb, hub); mappedB != guess {
		t.Fatalf("b is mapped to %v, want %v: the early datagram took the port", mappedB, guess)
	}
	if _, err := cb.WriteToUDPAddrPort([]byte("hello a"), mappedA); err != nil {
		t.Fatal(err)
	}
	if text, from := receive(t, ca); text != "hello a" || from != guess {
		t.Errorf("a got %q from %v, want hello a from %v", text, from, guess)
	}
	if _, err := ca.WriteToUDPAddrPort([]byte("hello b"), guess); err != nil {
		t.Fatal(err)
	}
	if text, from := receive(t, cb); text != "hello b" || from != mappedA {
		t.Errorf("b got %q from %v, want hello b from %v", text, from, mappedA)
	}
}

// TestNATIPv6 reaches out over a routed prefix whose firewall keeps strangers
// out.
func TestNATIPv6(t *testing.T) {
	lab := New(t)
	wan := lab.WAN("wan")
	hub := wan.Host("hub", Link{})
	robot := lab.NAT("box", NATConfig{Upstream: wan, IPv6: true}).Host("robot", Link{})
	in := udp(t, robot, "[::]:7000")
	out := udp(t, hub, "[::]:7000")
	robotAddr, hubAddr := netip.AddrPortFrom(robot.Addr6(), 7000), netip.AddrPortFrom(hub.Addr6(), 7000)

	if _, err := udp(t, hub, "[::]:7001").WriteToUDPAddrPort([]byte("stranger"), robotAddr); err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteToUDPAddrPort([]byte("hello"), hubAddr); err != nil {
		t.Fatal(err)
	}
	if text, from := receive(t, out); text != "hello" || from != robotAddr {
		t.Errorf("hub got %q from %v, want hello from %v: no translation", text, from, robotAddr)
	}
	if _, err := out.WriteToUDPAddrPort([]byte("answer"), robotAddr); err != nil {
		t.Fatal(err)
	}
	if text, _ := receive(t, in); text != "answer" {
		t.Errorf("robot got %q, want answer only", text)
	}
}
