// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// passes tells whether a datagram of so many bytes of payload reaches to.
func passes(t *testing.T, from *Host, to *net.UDPConn, addr netip.AddrPort, size int) bool {
	t.Helper()
	c, err := from.ListenUDP("")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteToUDPAddrPort(make([]byte, size), addr); err != nil {
		t.Fatal(err)
	}
	_ = to.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	n, _, err := to.ReadFromUDPAddrPort(make([]byte, 2000))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil && n == size
}

func TestObstacles(t *testing.T) {
	lab := New(t)
	wan := lab.WAN("wan")
	link := Link{PerPacket: true}
	a, b, c := wan.Host("a", link), wan.Host("b", link), wan.Host("c", link)
	at := udp(t, b, net.JoinHostPort(b.Addr4().String(), "0"))
	addr := at.LocalAddr().(*net.UDPAddr).AddrPort()
	check := func(what string, from *Host, size int, want bool) {
		t.Helper()
		if got := passes(t, from, at, addr, size); got != want {
			t.Errorf("%s: %d bytes from %s arrive: %v, want %v", what, size, from.Name(), got, want)
		}
	}
	check("at first", a, 100, true)
	wan.BlockUDP(true, a.Iface(0), b.Iface(0))
	check("blocked", a, 100, false)
	check("blocked for others", c, 100, true)
	wan.BlockUDP(true)
	check("all blocked", c, 100, false)
	ln, err := b.ListenTCP(net.JoinHostPort(b.Addr4().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := a.DialTCP(ctx, ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatalf("TCP without UDP: %v", err)
	}
	conn.Close()
	wan.BlockUDP(false)
	wan.BlockUDP(false)
	check("open again", a, 100, true)
	wan.Narrow(b.Iface(0), 1280)
	check("narrow", a, 1252, true)
	check("narrow", a, 1253, false)
	wan.Narrow(b.Iface(0), 0)
	check("wide again", a, 1400, true)
}

func TestRenumber(t *testing.T) {
	lab := New(t)
	wan := lab.WAN("wan")
	a, b := wan.Host("a", Link{}), wan.Host("b", Link{})
	_, peer := mirror(t, b)
	old := a.Addr4()
	if got := ask(t, udp(t, a, ""), peer); got.Addr() != old {
		t.Fatalf("comes from %v, want %v", got, old)
	}
	for range 2 {
		before := a.Addr4()
		a.Iface(0).Renumber()
		if got := ask(t, udp(t, a, ""), peer); got.Addr() == before || got.Addr() != a.Addr4() {
			t.Errorf("comes from %v, was %v, want %v", got, before, a.Addr4())
		}
	}
	if a.Addr4() != old {
		t.Errorf("address after two changes is %v, want %v", a.Addr4(), old)
	}
}
