// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// namespace is a fresh network namespace with a manager that follows it.
type namespace struct {
	t       *testing.T
	fd      int
	mgr     *Manager
	changes chan change
	removed chan int
	seen    [][]Bound // by await

	mu    sync.Mutex
	binds []transport.Bind
}

type change struct {
	list []Bound
	at   time.Time
}

// on runs f on a thread in the namespace; the thread ends with it.
func (n *namespace) on(f func()) (done <-chan struct{}) {
	c := make(chan struct{})
	go func() {
		defer close(c)
		runtime.LockOSThread() // never unlocked: the thread must not serve others
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			n.t.Errorf("enter namespace: %v", err)
			return
		}
		f()
	}()
	return c
}

// must fails the test on this thread of the namespace.
func (n *namespace) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Error(err)
		runtime.Goexit()
	}
}

// inNamespace runs f in a fresh namespace with lo, and ends the manager that f
// started.
func inNamespace(t *testing.T, f func(n *namespace)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root to make a network namespace")
		}
		t.Skip("needs root to make a network namespace")
	}
	n := &namespace{t: t, fd: -1, changes: make(chan change, 64), removed: make(chan int, 16)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		var err error
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		n.must(err)
		defer func() { _ = unix.Close(n.fd) }()
		lo, err := netlink.LinkByName("lo")
		n.must(err)
		n.must(netlink.LinkSetUp(lo))
		var run <-chan struct{}
		n.mgr, err = New(Config{
			Logger:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
			Exclude: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")},
			Rules:   []Rule{{Name: "cam*", Ignore: true}, {Name: "eth1", Metered: true, Budget: 7}},
			Add: func(b transport.Bind, _ Uplink) int {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.binds = append(n.binds, b)
				return len(n.binds) - 1
			},
			Remove:  func(i int) { _ = n.bind(i).Close(); n.removed <- i },
			Changed: func(l []Bound) { n.changes <- change{l, time.Now()} },
		})
		n.must(err)
		defer func() {
			cancel()
			if run != nil {
				<-run
			}
			for _, b := range n.binds {
				_ = b.Close()
			}
		}()
		n.link("eth0", "p0")
		n.addr("eth0", "10.1.0.2/24")
		n.link("eth1", "p1")
		n.addr("eth1", "10.2.0.2/24")
		n.gateway("eth0", "10.1.0.1", 100)
		n.gateway("eth1", "10.2.0.1", 200)
		n.must(n.mgr.Start(ctx))
		run = n.on(func() { n.mgr.Run(ctx) })
		f(n)
	}()
	<-done
}

func (n *namespace) bind(i int) transport.Bind {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.binds[i]
}

// link adds a veth pair whose ends are up.
func (n *namespace) link(name, peer string) {
	n.t.Helper()
	n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}))
	n.up(name, true)
	n.up(peer, true)
}

func (n *namespace) get(name string) netlink.Link {
	n.t.Helper()
	l, err := netlink.LinkByName(name)
	n.must(err)
	return l
}

func (n *namespace) up(name string, up bool) {
	n.t.Helper()
	if up {
		n.must(netlink.LinkSetUp(n.get(name)))
	} else {
		n.must(netlink.LinkSetDown(n.get(name)))
	}
}

func (n *namespace) parse(addr string) *netlink.Addr {
	n.t.Helper()
	a, err := netlink.ParseAddr(addr)
	n.must(err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func (n *namespace) addr(name, addr string) {
	n.t.Helper()
	n.must(netlink.AddrAdd(n.get(name), n.parse(addr)))
}

// gateway makes gw the default route of an interface, with a neighbour that
// answers no ARP.
func (n *namespace) gateway(name, gw string, metric int) {
	n.t.Helper()
	i := n.get(name).Attrs().Index
	n.must(netlink.NeighSet(&netlink.Neigh{
		LinkIndex: i, State: netlink.NUD_PERMANENT, IP: net.ParseIP(gw), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}))
	n.must(netlink.RouteReplace(&netlink.Route{LinkIndex: i, Gw: net.ParseIP(gw), Priority: metric}))
}

// await returns the first list for which ok is true, and how long after since it
// came.
func (n *namespace) await(what string, since time.Time, ok func([]Bound) bool) ([]Bound, time.Duration) {
	n.t.Helper()
	var last []Bound
	limit := time.After(5 * time.Second)
	for {
		select {
		case c := <-n.changes:
			last = c.list
			n.seen = append(n.seen, last)
			if ok(last) {
				d := c.at.Sub(since)
				n.t.Logf("%s: after %v", what, d.Round(10*time.Microsecond))
				return last, d
			}
		case <-limit:
			n.t.Errorf("%s: not seen; the last list was %+v", what, last)
			runtime.Goexit()
		}
	}
}

// find returns the socket of an interface and family.
func find(list []Bound, name string, v6 bool) (Bound, bool) {
	i := slices.IndexFunc(list, func(b Bound) bool { return b.Uplink.Name == name && b.V6 == v6 })
	if i < 0 {
		return Bound{}, false
	}
	return list[i], true
}

func has(name string, v6 bool) func([]Bound) bool {
	return func(l []Bound) bool { _, ok := find(l, name, v6); return ok }
}

func lacks(name string) func([]Bound) bool {
	return func(l []Bound) bool { return !has(name, false)(l) && !has(name, true)(l) }
}

// leaves sends from a socket and returns the device and source of the datagram.
func (n *namespace) leaves(bind int) (device string, src netip.Addr) {
	n.t.Helper()
	type tap struct {
		name string
		fd   int
	}
	const allIP = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
	var taps []tap
	for _, p := range []string{"p0", "p1"} {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, allIP)
		n.must(err)
		defer func() { _ = unix.Close(fd) }()
		n.must(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allIP, Ifindex: n.get(p).Attrs().Index}))
		taps = append(taps, tap{strings.Replace(p, "p", "eth", 1), fd})
	}
	to := netip.MustParseAddrPort("203.0.113.7:9")
	if _, err := n.bind(bind).Send(0, []transport.Message{{Buf: []byte("hello"), Addr: to}}); err != nil {
		n.t.Errorf("send from bind %d: %v", bind, err)
		return "", netip.Addr{}
	}
	polls := []unix.PollFd{{Fd: int32(taps[0].fd), Events: unix.POLLIN}, {Fd: int32(taps[1].fd), Events: unix.POLLIN}}
	buf := make([]byte, 2048)
	for range 20 {
		if k, err := unix.Poll(polls, 3000); err == nil && k == 0 {
			break
		}
		for _, tp := range taps {
			k, _, err := unix.Recvfrom(tp.fd, buf, 0)
			if err == nil && k >= 20 && netip.AddrFrom4([4]byte(buf[16:20])) == to.Addr() {
				return tp.name, netip.AddrFrom4([4]byte(buf[12:16]))
			}
		}
	}
	n.t.Errorf("nothing left from bind %d", bind)
	return "", netip.Addr{}
}

func (n *namespace) wantLeaves(b Bound, device, src string) {
	n.t.Helper()
	if d, s := n.leaves(b.Bind); d != device || s != netip.MustParseAddr(src) {
		n.t.Errorf("socket of %q left by %q from %v, want %q from %s", b.Uplink.Name, d, s, device, src)
	}
}

const (
	lossLimit = 50 * time.Millisecond
	gainLimit = 150 * time.Millisecond // settle, DAD-free, on two busy cores
)

func (n *namespace) within(what string, d, limit time.Duration) {
	n.t.Helper()
	if d > limit {
		n.t.Errorf("%s: seen after %v, want at most %v", what, d, limit)
	}
}

func TestNamespaceTwoDefaultRoutes(t *testing.T) {
	inNamespace(t, func(n *namespace) {
		list, _ := n.await("start", time.Now(), func([]Bound) bool { return true })
		eth0, ok0 := find(list, "eth0", false)
		eth1, ok1 := find(list, "eth1", false)
		any4, ok4 := find(list, "", false)
		if !ok0 || !ok1 || !ok4 || !any4.Fallback || eth0.Fallback || any4.Uplink.Number != 0 ||
			eth0.Uplink.Number == 0 || eth0.Uplink.Number == eth1.Uplink.Number || eth1.Uplink.Rule.Budget != 7 {
			n.t.Errorf("list %+v", list)
			return
		}
		n.wantLeaves(eth0, "eth0", "10.1.0.2")
		n.wantLeaves(eth1, "eth1", "10.2.0.2")
		n.wantLeaves(any4, "eth0", "10.1.0.2")
		for _, b := range list {
			if p := int(n.bind(b.Bind).LocalAddr().Port()); p != n.mgr.Port() || p == 0 {
				n.t.Errorf("bind %d has port %d, want %d", b.Bind, p, n.mgr.Port())
			}
		}
		// Nobody else gets the port, even one who is willing to share it.
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		for _, a := range []string{"0.0.0.0", "10.1.0.2", "127.0.0.1"} {
			addr := netip.AddrPortFrom(netip.MustParseAddr(a), uint16(n.mgr.Port()))
			if c, err := lc.ListenPacket(context.Background(), "udp4", addr.String()); !errors.Is(err, syscall.EADDRINUSE) {
				if c != nil {
					_ = c.Close()
				}
				n.t.Errorf("listen on %v: %v, want EADDRINUSE", addr, err)
			}
		}
		// The cut of one default route leaves the other uplink alone.
		n.up("eth0", false)
		n.await("eth0 down", time.Now(), lacks("eth0"))
		n.wantLeaves(eth1, "eth1", "10.2.0.2")
	})
}

func TestNamespaceEvents(t *testing.T) {
	inNamespace(t, func(n *namespace) {
		list, _ := n.await("start", time.Now(), has("eth1", false))
		eth0, _ := find(list, "eth0", false)
		eth1, _ := find(list, "eth1", false)

		at := time.Now()
		n.up("eth0", false)
		list, d := n.await("link down", at, lacks("eth0"))
		n.within("link down", d, lossLimit)
		if b, ok := find(list, "eth1", false); !ok || b.Moved {
			n.t.Errorf("eth1 = %+v, %v", b, ok)
		}
		moved := func(name string) func([]Bound) bool {
			return func(l []Bound) bool { b, _ := find(l, name, false); return b.Moved }
		}
		if !slices.ContainsFunc(n.seen, moved("")) { // by chance it comes with the loss, or before
			n.await("another default route", at, moved(""))
		}

		n.up("eth0", true)
		n.gateway("eth0", "10.1.0.1", 100)
		at = time.Now()
		list, d = n.await("link up", at, has("eth0", false))
		n.within("link up", d, gainLimit)
		if b, _ := find(list, "eth0", false); b.Bind != eth0.Bind || b.Moved {
			n.t.Errorf("eth0 came back as %+v, want bind %d, not moved", b, eth0.Bind)
		}
		n.wantLeaves(eth0, "eth0", "10.1.0.2")

		at = time.Now()
		n.up("p1", false)
		_, d = n.await("carrier lost", at, lacks("eth1"))
		n.within("carrier lost", d, lossLimit)
		n.up("p1", true)
		n.await("carrier back", time.Now(), has("eth1", false))

		// A new address on the same network: the same socket, from the new address.
		at = time.Now()
		n.must(netlink.AddrDel(n.get("eth1"), n.parse("10.2.0.2/24")))
		_, d = n.await("address gone", at, lacks("eth1"))
		n.within("address gone", d, lossLimit)
		n.addr("eth1", "10.2.0.9/24")
		n.gateway("eth1", "10.2.0.1", 200)
		at = time.Now()
		list, d = n.await("address back", at, has("eth1", false))
		n.within("address back", d, gainLimit)
		b, _ := find(list, "eth1", false)
		if b.Bind != eth1.Bind || !b.Moved || b.Uplink.Number != eth1.Uplink.Number {
			n.t.Errorf("eth1 came back as %+v, want bind %d, moved", b, eth1.Bind)
		}
		n.wantLeaves(b, "eth1", "10.2.0.9")

		// The same interface in another network: only the gateway differs.
		at = time.Now()
		n.gateway("eth1", "10.2.0.254", 200)
		_, d = n.await("another gateway", at, moved("eth1"))
		n.within("another gateway", d, gainLimit)

		at = time.Now()
		n.addr("eth0", "2001:db8::2/64")
		list, d = n.await("IPv6", at, has("eth0", true))
		n.within("IPv6", d, gainLimit)
		if b, _ := find(list, "eth0", true); b.Moved || !b.Uplink.V4 || !b.Uplink.V6 || b.V4 {
			n.t.Errorf("IPv6 of eth0 = %+v", b)
		}

		// A deprecated address is none.
		for i, a := range []string{"2001:db8::3/64", "2001:db8::4/64"} {
			x := n.parse(a)
			x.ValidLft, x.PreferedLft = 1000, 1000*i
			x.Flags = unix.IFA_F_NODAD
			n.must(netlink.AddrAdd(n.get("eth0"), x))
		}
		list, _ = n.await("more IPv6", time.Now(), func(l []Bound) bool { b, _ := find(l, "eth0", true); return len(b.Uplink.Addrs) > 2 })
		if b, _ := find(list, "eth0", true); slices.Contains(b.Uplink.Addrs, netip.MustParseAddr("2001:db8::3")) || len(b.Uplink.Addrs) != 3 {
			n.t.Errorf("addresses of eth0: %v, want no deprecated one", b.Uplink.Addrs)
		}

		// Not every interface: ignored by rule, by name, by prefix, link-local only.
		n.link("cam0", "pc")
		n.addr("cam0", "10.3.0.2/24")
		n.link("docker0", "pd")
		n.addr("docker0", "172.17.0.1/16")
		n.link("mesh0", "pm")
		n.addr("mesh0", "10.9.0.1/16")
		n.link("eth2", "p2")
		n.addr("eth2", "10.4.0.2/24")
		list, _ = n.await("new interface", time.Now(), has("eth2", false))
		for _, name := range []string{"cam0", "docker0", "mesh0", "p2", "lo"} {
			if !lacks(name)(list) {
				n.t.Errorf("%s is an uplink", name)
			}
		}
		eth2, _ := find(list, "eth2", false)
		at = time.Now()
		n.must(netlink.LinkDel(n.get("eth2")))
		_, d = n.await("interface removed", at, lacks("eth2"))
		n.within("interface removed", d, lossLimit)
		select {
		case i := <-n.removed:
			if i != eth2.Bind {
				n.t.Errorf("bind %d was given back, want %d", i, eth2.Bind)
			}
		case <-time.After(5 * time.Second):
			n.t.Error("the socket of a removed interface was not given back")
		}
	})
}
