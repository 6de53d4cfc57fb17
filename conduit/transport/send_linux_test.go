// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// veth makes a pair whose first end has an address, a neighbour at .1 and a default
// route, in the namespace of the caller.
func veth(t *testing.T, name, cidr, gw string, mtu int) {
	t.Helper()
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
			runtime.Goexit()
		}
	}
	try(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu}, PeerName: "p" + name}))
	for _, n := range []string{"p" + name, name} {
		l, err := netlink.LinkByName(n)
		try(err)
		try(netlink.LinkSetUp(l))
	}
	l, err := netlink.LinkByName(name)
	try(err)
	a, err := netlink.ParseAddr(cidr)
	try(err)
	try(netlink.AddrAdd(l, a))
	i := l.Attrs().Index
	try(netlink.NeighSet(&netlink.Neigh{LinkIndex: i, State: netlink.NUD_PERMANENT, IP: net.ParseIP(gw), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}))
	try(netlink.RouteAdd(&netlink.Route{LinkIndex: i, Gw: net.ParseIP(gw), Priority: 10 + i}))
}

// What does not fit the interface is refused with its index, never fragmented, and
// takes nothing that fits with it, be it in the same run.
func TestTooBig(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		veth(t, "eth0", "192.0.2.2/24", "192.0.2.1", 1400)
		for _, noGSO := range []bool{false, true} {
			b := open(t, Config{Addr: netip.IPv4Unspecified(), NoGSO: noGSO})
			to := netip.MustParseAddrPort("198.51.100.1:9")
			var out []Message
			for i := range 24 {
				size := 1400 - 28
				if i >= 8 && i < 12 {
					size++
				}
				out = append(out, Message{Buf: make([]byte, size), Addr: to})
			}
			n, err := b.Send(2, out)
			var se *SendError
			if !errors.As(err, &se) || !errors.Is(err, syscall.EMSGSIZE) || errors.Is(err, ErrFull) || n != 20 {
				t.Errorf("send = %d, %v; want 20 and a SendError", n, err)
				return
			}
			if len(se.Refused) != 4 || se.Left != 0 {
				t.Errorf("error %+v, want 4 refused", se)
			}
			for i, r := range se.Refused {
				if r.Index != 8+i || !r.TooBig() || r.Unreachable() {
					t.Errorf("refused %+v, want index %d, too big", r, 8+i)
				}
			}
		}
	})
}

// A link that is down says so at each send, by index.
func TestLinkDown(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		veth(t, "eth0", "192.0.2.2/24", "192.0.2.1", 1500)
		b := open(t, Config{Addr: netip.IPv4Unspecified(), Interface: "eth0"})
		out := []Message{
			{Buf: []byte("a"), Addr: netip.MustParseAddrPort("198.51.100.1:9")},
			{Buf: []byte("b"), Addr: netip.MustParseAddrPort("198.51.100.2:9")},
		}
		if n, err := b.Send(0, out); n != 2 || err != nil {
			t.Errorf("send = %d, %v", n, err)
		}
		l, _ := netlink.LinkByName("eth0")
		if err := netlink.LinkSetDown(l); err != nil {
			t.Error(err)
			return
		}
		n, err := b.Send(0, out)
		var se *SendError
		if !errors.As(err, &se) || n != 0 || len(se.Refused) != 2 {
			t.Errorf("send = %d, %v; want two refused", n, err)
			return
		}
		for i, r := range se.Refused {
			if r.Index != i || !r.Unreachable() || r.TooBig() {
				t.Errorf("refused %+v, want index %d, unreachable", r, i)
			}
		}
	})
}

// A socket whose datagrams wait (for an answer to ARP) is full soon: what is left
// is told, at once or after the wait.
func TestFull(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		veth(t, "eth0", "192.0.2.2/24", "192.0.2.1", 1500)
		for _, noGSO := range []bool{false, true} {
			b := open(t, Config{Addr: netip.IPv4Unspecified(), SendBuffer: 20 << 10, NoGSO: noGSO})
			b.(Waiter).SetSendWait(-1)
			out := make([]Message, 200)
			for i := range out {
				out[i] = Message{Buf: make([]byte, 1000), Addr: netip.MustParseAddrPort("192.0.2.77:9")}
			}
			begin := time.Now()
			n, err := b.Send(2, out)
			var se *SendError
			if !errors.Is(err, ErrFull) || !errors.As(err, &se) || n+se.Left+len(se.Refused) != len(out) || len(se.Refused) != 0 || n == 0 {
				t.Errorf("noGSO=%v: send = %d, %+v, %v; want the rest left", noGSO, n, se, err)
				return
			}
			if d := time.Since(begin); d > 50*time.Millisecond {
				t.Errorf("noGSO=%v: gave up after %v, want at once", noGSO, d)
			}
			b.(Waiter).SetSendWait(30 * time.Millisecond)
			begin = time.Now()
			if n, err = b.Send(2, out); !errors.Is(err, ErrFull) || n > 5 {
				t.Errorf("noGSO=%v: send = %d, %v; want ErrFull", noGSO, n, err)
			}
			if d := time.Since(begin); d < 30*time.Millisecond {
				t.Errorf("noGSO=%v: gave up after %v, want 30ms", noGSO, d)
			}
		}
	})
}

// DF is set on what leaves: read by a packet socket at the other end.
func TestDontFragment(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		veth(t, "eth0", "192.0.2.2/24", "192.0.2.1", 1500)
		const allIP = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, allIP)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		p, _ := netlink.LinkByName("peth0")
		if err := errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allIP, Ifindex: p.Attrs().Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}),
		); err != nil {
			t.Error(err)
			return
		}
		b := open(t, Config{Addr: netip.IPv4Unspecified()})
		to := netip.MustParseAddrPort("198.51.100.1:9")
		if _, err := b.Send(0, []Message{{Buf: []byte("x"), Addr: to}}); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				t.Errorf("nothing arrived: %v", err)
				return
			}
			if n >= 20 && netip.AddrFrom4([4]byte(buf[16:20])) == to.Addr() {
				if buf[6]&0x40 == 0 {
					t.Error("DF is not set")
				}
				return
			}
		}
	})
}

// Sockets of two devices and the one that is bound to none share a port; what
// arrives goes to the one of its device.
func TestBeside(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		veth(t, "eth0", "192.0.2.2/24", "192.0.2.1", 1500)
		veth(t, "eth1", "198.51.100.2/24", "198.51.100.1", 1500)
		lo, _ := netlink.LinkByName("lo")
		if err := netlink.LinkSetUp(lo); err != nil {
			t.Error(err)
			return
		}
		for _, network := range []string{"udp4", "udp6"} {
			ip, loop := netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.1")
			if network == "udp6" {
				ip, loop = netip.IPv6Unspecified(), netip.IPv6Loopback()
			}
			all := open(t, Config{Network: network, Addr: ip})
			port := int(all.LocalAddr().Port())
			e0 := open(t, Config{Network: network, Addr: ip, Port: port, Interface: "eth0", Beside: all})
			open(t, Config{Network: network, Addr: ip, Port: port, Interface: "eth1", Beside: all})
			if e0.(interface{ Interface() string }).Interface() != "eth0" {
				t.Error("Interface() is not eth0")
			}
			onLo := open(t, Config{Network: network, Addr: ip, Port: port, Interface: "lo", Beside: all})
			if _, err := Listen(Config{Network: network, Addr: ip, Port: port, Interface: "eth0", Beside: all}); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("a second socket on eth0: %v, want EADDRINUSE", err)
			}
			lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			}}
			if c, err := lc.ListenPacket(context.Background(), network, netip.AddrPortFrom(ip, uint16(port)).String()); !errors.Is(err, syscall.EADDRINUSE) {
				if c != nil {
					_ = c.Close()
				}
				t.Errorf("a stranger who shares: %v, want EADDRINUSE", err)
			}
			from := open(t, Config{Network: network, Addr: loop})
			if _, err := from.Send(0, []Message{{Buf: []byte("hi"), Addr: netip.AddrPortFrom(loop, uint16(port))}}); err != nil {
				t.Error(err)
			}
			if got := collect(t, onLo, 1); !bytes.Equal(got[0], []byte("hi")) {
				t.Errorf("got %q", got[0])
			}
		}
	})
}
