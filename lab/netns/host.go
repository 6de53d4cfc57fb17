// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is one network namespace: a computer, or the inside of a router, a
// switch or a NAT box, all of which can run programs.
type Host struct {
	lab    *Lab
	name   string
	note   string // what Draw says about it
	nsName string
	ns     netns.NsHandle

	ifaces []*Iface // owned by the topology goroutine
	ports  int      // number of attachments it serves
}

// Name is the name given when the host was made.
func (h *Host) Name() string { return h.name }

// Namespace is the name that `ip netns exec` takes.
func (h *Host) Namespace() string { return h.nsName }

// Iface returns the i-th attachment, in the order of making; 0 is the first.
func (h *Host) Iface(i int) *Iface { return h.ifaces[i] }

// Addr4 is the IPv4 address of the first attachment.
func (h *Host) Addr4() netip.Addr { return h.ifaces[0].Addr4.Addr() }

// Addr6 is the IPv6 address of the first attachment.
func (h *Host) Addr6() netip.Addr { return h.ifaces[0].Addr6.Addr() }

// Do runs f on a thread inside the namespace and returns its error. Sockets
// that f opens stay there for good; goroutines that f starts do not. A panic
// in f reaches the caller; f must not end its goroutine with t.Fatal.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(h.ns); err != nil {
			return fmt.Errorf("enter namespace of %s: %w", h.name, err)
		}
		return f()
	})
}

// ListenUDP opens a UDP socket on addr ("ip:port", "" for any).
func (h *Host) ListenUDP(addr string) (*net.UDPConn, error) {
	if addr == "" {
		addr = "0.0.0.0:0"
	}
	var c *net.UDPConn
	err := h.Do(func() error {
		pc, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp", addr)
		if err == nil {
			c = pc.(*net.UDPConn)
		}
		return err
	})
	return c, err
}

// DialUDP opens a UDP socket connected to addr, which must be numeric.
func (h *Host) DialUDP(addr netip.AddrPort) (*net.UDPConn, error) {
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
		return err
	})
	return c, err
}

// ListenTCP opens a TCP listener on addr ("ip:port").
func (h *Host) ListenTCP(addr string) (net.Listener, error) {
	var ln net.Listener
	err := h.Do(func() (err error) {
		ln, err = (&net.ListenConfig{Control: cubic}).Listen(context.Background(), "tcp", addr)
		return err
	})
	return ln, err
}

// DialTCP connects to addr, which must be numeric, until ctx ends.
func (h *Host) DialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		// A single numeric address is dialled on the calling goroutine.
		c, err = (&net.Dialer{Control: cubic}).DialContext(ctx, "tcp", addr.String())
		return err
	})
	return c, err
}

// cubic gives a TCP socket, and those that a listener accepts, the congestion control
// that Linux has by default: the machine that runs the lab may prefer another one.
func cubic(_, _ string, c syscall.RawConn) error {
	var setErr error
	err := c.Control(func(fd uintptr) {
		setErr = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	})
	return errors.Join(err, setErr)
}

// Network is something that hosts attach to: a WAN, a switch, a NAT box.
type Network interface {
	// Host makes a host and attaches it with a cable as link says.
	Host(name string, link Link) *Host

	// owner is the namespace at the other end of the cable.
	owner() *Host
	// place says where the next attachment lands.
	place() placement
}

// placement is what a network decides about a new attachment.
type placement struct {
	v4, v6     netip.Prefix // of the host
	gw4, gw6   netip.Addr   // default routes, if any
	own4, own6 netip.Prefix // of the owner's end, if it is routed
	bridge     string       // the owner's bridge, if it is not
}

// WAN is the public internet: one router with a subnet of its own for each
// attachment. Every attachment reaches every other over IPv4 and IPv6. What
// leads elsewhere, such as a query to the machine's own DNS server, vanishes
// without an answer.
type WAN struct{ host *Host }

// WAN makes the router. One lab needs one at most.
func (l *Lab) WAN(name string) *WAN {
	l.tb.Helper()
	h := l.host(name, "router")
	l.check(h.Do(func() error {
		if err := setRouter(); err != nil {
			return err
		}
		return addBlackholes()
	}), "router %s", name)
	return &WAN{host: h}
}

// Host makes a public host.
func (w *WAN) Host(name string, link Link) *Host {
	w.host.lab.tb.Helper()
	return hostOn(w, name, link)
}

func (w *WAN) owner() *Host { return w.host }

func (w *WAN) place() placement {
	s := w.host.lab.nextWAN()
	var p placement
	p.own4, p.own6 = s.addr(1)
	p.v4, p.v6 = s.addr(2)
	p.gw4, p.gw6 = p.own4.Addr(), p.own6.Addr()
	return p
}

// Switch is a LAN that leads nowhere else.
type Switch struct {
	host *Host
	net  subnet
	next int
}

// Switch makes a LAN on a bridge in a namespace of its own.
func (l *Lab) Switch(name string) *Switch {
	l.tb.Helper()
	s := &Switch{host: l.host(name, "switch"), net: l.nextLAN(), next: 2}
	l.check(s.host.Do(func() error { return makeBridge("lan0", netip.Prefix{}, netip.Prefix{}) }), "switch %s", name)
	return s
}

// Host makes a host on the LAN.
func (s *Switch) Host(name string, link Link) *Host {
	s.host.lab.tb.Helper()
	return hostOn(s, name, link)
}

func (s *Switch) owner() *Host { return s.host }

func (s *Switch) place() placement {
	p := placement{bridge: "lan0"}
	p.v4, p.v6 = s.net.addr(s.next)
	s.next++
	return p
}

func hostOn(n Network, name string, link Link) *Host {
	l := n.owner().lab
	l.tb.Helper()
	h := l.host(name, "")
	h.Attach(n, link)
	return h
}

// setRouter turns the calling thread's namespace into a router.
func setRouter() error {
	for key, v := range routerSysctls {
		if err := sysctl(key, v); err != nil {
			return err
		}
	}
	return nil
}

// makeBridge makes a bridge in the calling thread's namespace.
func makeBridge(name string, v4, v6 netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	off := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	if err := linkUp(name); err != nil {
		return err
	}
	return addAddrs(name, v4, v6)
}

// addAddrs gives an interface of the calling thread's namespace its addresses.
func addAddrs(name string, addrs ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		na := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			na.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, na); err != nil {
			return fmt.Errorf("add %v to %s: %w", a, name, err)
		}
	}
	return nil
}

// addRoute routes dst over gw in the calling thread's namespace.
func addRoute(name string, dst netip.Prefix, gw netip.Addr, metric int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Gw: gw.AsSlice(), Priority: metric}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route %v via %v: %w", dst, gw, err)
	}
	return nil
}

// addBlackholes drops what no other route of the calling thread's namespace
// takes, where the kernel would send an ICMP error.
func addBlackholes() error {
	for _, dst := range []netip.Prefix{default4, default6} {
		r := &netlink.Route{Dst: ipNet(dst), Type: unix.RTN_BLACKHOLE, Priority: 1 << 20}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("add blackhole for %v: %w", dst, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

var (
	default4 = netip.MustParsePrefix("0.0.0.0/0")
	default6 = netip.MustParsePrefix("::/0")
)
