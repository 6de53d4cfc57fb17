// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	pion "github.com/pion/ice/v3"
)

var _ pion.UDPMux = (*view)(nil)

type boundSocket struct {
	fakeSocket
	iface string
}

func (s *boundSocket) Interface() string { return s.iface }

func TestHostAddrs(t *testing.T) {
	ap, a := netip.MustParseAddrPort, netip.MustParseAddr
	m := newMux(t, MuxConfig{
		Sockets: []Socket{
			&fakeSocket{local: ap("0.0.0.0:1")},
			&fakeSocket{local: ap("[::]:2")},
			&fakeSocket{local: ap("192.0.2.7:3")},
			&fakeSocket{local: ap("127.0.0.1:4")},
			&boundSocket{fakeSocket{local: ap("0.0.0.0:5")}, "lte0"},
		},
		ExcludePrefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/10")},
		InterfaceFilter: func(name string) bool { return name != "tun3" },
	})
	addrs := []ifaceAddr{
		{"lo", a("127.0.0.1")},
		{"lo", a("::1")},
		{"veth0", a("10.0.0.2")},
		{"veth0", a("fe80::2")},
		{"veth0", a("2001:db8::2")},
		{"lte0", a("10.9.0.2")},
		{"lte0", a("169.254.3.4")},
		{"bauxite0", a("10.5.0.1")},
		{"docker0", a("172.17.0.1")},
		{"br-abc", a("172.18.0.1")},
		{"wg0", a("10.6.0.1")},
		{"tailscale0", a("10.7.0.1")},
		{"zt1", a("10.8.0.1")},
		{"utun4", a("10.8.1.1")},
		{"tun3", a("10.8.2.1")},
		{"eth9", a("100.64.0.9")},
	}
	m.interfaces = func() ([]ifaceAddr, error) { return addrs, nil }
	want := []HostAddr{
		{0, ap("10.0.0.2:1")},
		{0, ap("10.9.0.2:1")},
		{1, ap("[2001:db8::2]:2")},
		{2, ap("192.0.2.7:3")},
		{4, ap("10.9.0.2:5")},
	}
	byAddr := cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })
	if d := cmp.Diff(want, m.HostAddrs(), byAddr); d != "" {
		t.Errorf("HostAddrs (-want +got):\n%s", d)
	}
	addrs = append(addrs, ifaceAddr{"wlan0", a("10.1.1.1")}) // seen at the next call
	if got := m.HostAddrs(); !slices.Contains(got, HostAddr{0, ap("10.1.1.1:1")}) {
		t.Errorf("HostAddrs = %v, want the new address too", got)
	}
	m.RemoveSocket(0)
	if got := m.HostAddrs(); len(got) != 3 {
		t.Errorf("HostAddrs = %v, want those of three sockets", got)
	}
}

func TestSystemAddrs(t *testing.T) {
	addrs, err := systemAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if !a.addr.IsValid() || a.addr.Is4In6() || a.iface == "" {
			t.Errorf("address %+v", a)
		}
	}
}

func TestMapped(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(10 * time.Millisecond)
		w.stunServer("203.0.113.1:3478", 2)
		s := w.socket("10.1.0.2:4000", w.newNAT("198.51.100.1", false))
		m := newMux(t, MuxConfig{Sockets: []Socket{s}})
		w.attach(s, m, 0)
		server := netip.MustParseAddrPort("203.0.113.1:3478")
		begin := time.Now()
		got, err := m.Mapped(t.Context(), 0, server)
		if want := netip.MustParseAddrPort("198.51.100.1:40001"); err != nil || got != want {
			t.Fatalf("Mapped = %v, %v, want %v", got, err, want)
		}
		if d := time.Since(begin); d != 320*time.Millisecond { // lost, lost after 100, answered after 300
			t.Errorf("took %v, want 320ms", d)
		}
		sent := w.sent
		if _, err := m.Mapped(t.Context(), 0, server); err != nil || w.sent != sent {
			t.Errorf("the second call was not answered from memory: %v", err)
		}
		synctest.Wait()
		time.Sleep(mappedLife)
		if _, err := m.Mapped(t.Context(), 0, server); err != nil || w.sent != sent+1 {
			t.Errorf("an old answer was not renewed: %v, %d sent", err, w.sent-sent)
		}
		m.Flush()
		if _, err := m.Mapped(t.Context(), 0, server); err != nil || w.sent != sent+2 {
			t.Errorf("Flush left the answer: %v", err)
		}
		begin = time.Now()
		if _, err := m.Mapped(t.Context(), 0, netip.MustParseAddrPort("203.0.113.9:1")); !errors.Is(err, ErrNoAnswer) {
			t.Errorf("a dead server: %v, want ErrNoAnswer", err)
		}
		if d := time.Since(begin); d != 3*time.Second {
			t.Errorf("gave up after %v, want 3s", d)
		}
		if _, err := m.Mapped(t.Context(), 0, netip.MustParseAddrPort("127.0.0.1:1")); !errors.Is(err, ErrForbidden) {
			t.Errorf("a loopback server: %v, want ErrForbidden", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.Mapped(ctx, 0, netip.MustParseAddrPort("203.0.113.8:1")); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if _, err := m.Mapped(t.Context(), 0, server); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v, want net.ErrClosed", err)
		}
	})
}

// A dead or unresolvable STUN server delays neither host candidates nor those of
// the other servers.
func TestGatherOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(10 * time.Millisecond)
		w.stunServer("203.0.113.1:3478", 0)
		s := w.socket("10.1.0.2:4000", w.newNAT("198.51.100.1", false))
		m := newMux(t, MuxConfig{
			Sockets: []Socket{s},
			LookupHost: func(ctx context.Context, host string) ([]netip.Addr, error) {
				if host == "good.test" {
					return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("203.0.113.1")}, nil
				}
				<-ctx.Done()
				return nil, ctx.Err()
			},
		})
		w.attach(s, m, 0)
		p := newPeer(t, m, true, "slow.test:3478", "203.0.113.200:3478", "good.test:3478", "[2001:db8::5]:3478")
		begin := time.Now()
		p.start(t)
		var got []string
		var when []time.Duration
		for len(got) == 0 || got[len(got)-1] != "" {
			p.mu.Lock()
			for _, c := range p.cands[len(got):] {
				got, when = append(got, c), append(when, time.Since(begin))
			}
			p.mu.Unlock()
			time.Sleep(time.Millisecond)
		}
		if len(got) != 3 || !strings.HasSuffix(got[0], "10.1.0.2 4000 typ host") || !strings.HasSuffix(got[1], "198.51.100.1 40001 typ srflx") {
			t.Fatalf("candidates %q", got)
		}
		if when[0] > 2*time.Millisecond || when[1] > 25*time.Millisecond || when[2] > 3100*time.Millisecond {
			t.Errorf("candidates after %v", when)
		}
		for _, c := range got[:2] { // what we say, the other side takes
			if _, err := parseCandidate(c); err != nil {
				t.Error(err)
			}
			if _, err := pion.UnmarshalCandidate(c); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestSplitServer(t *testing.T) {
	tests := []struct {
		in, host string
		port     uint16
	}{
		{"stun.example:19302", "stun.example", 19302},
		{"stun:stun.example", "stun.example", 3478},
		{"10.0.0.1", "10.0.0.1", 3478},
		{"10.0.0.1:99", "10.0.0.1", 99},
		{"[2001:db8::1]:99", "2001:db8::1", 99},
		{"[2001:db8::1]", "2001:db8::1", 3478},
		{"2001:db8::1", "2001:db8::1", 3478},
		{"", "", 0},
		{":1", "", 0},
		{"host:0", "", 0},
		{"host:70000", "", 0},
		{"a:b:c", "", 0},
		{"host/path", "", 0},
	}
	for _, tt := range tests {
		host, port, err := splitServer(tt.in)
		if host != tt.host || port != tt.port || (err != nil) != (tt.port == 0) {
			t.Errorf("splitServer(%q) = %q, %d, %v", tt.in, host, port, err)
		}
	}
}

func TestMuxConn(t *testing.T) {
	m := newMux(t, MuxConfig{})
	e, err := m.register("aaaa", testPwd, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.register("aaaa", testPwd, nil); err == nil {
		t.Error("a ufrag was registered twice")
	}
	c, err := e.conn(m, 0, &net.UDPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	from := netip.MustParseAddrPort("192.0.2.1:5")
	for i := range ringSize + 2 {
		if evicted := c.push([]byte{byte(i)}, from); evicted != (i >= ringSize) {
			t.Errorf("push %d: evicted = %v", i, evicted)
		}
	}
	b := make([]byte, 8)
	n, addr, err := c.ReadFrom(b)
	if err != nil || n != 1 || b[0] != 2 {
		t.Errorf("ReadFrom = %d %v, %v, want the oldest that is left", n, b[:n], err)
	}
	if u, ok := addr.(*net.UDPAddr); !ok || len(u.IP) != 4 || u.Port != 5 {
		t.Errorf("from %#v, want a *net.UDPAddr with 4 bytes", addr)
	}
	done := make(chan error)
	go func() {
		for {
			if _, _, err := c.ReadFrom(b); err != nil {
				done <- err
				return
			}
		}
	}()
	m.unregister(e)
	m.unregister(e)
	if err := <-done; !errors.Is(err, io.EOF) {
		t.Errorf("ReadFrom after Close = %v, want io.EOF", err)
	}
	if _, err := c.WriteTo(b, &net.UDPAddr{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("WriteTo after Close = %v, want io.ErrClosedPipe", err)
	}
}

// The table of transactions forgets: neither time nor number makes it grow.
func TestTransactionsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		m := newMux(t, MuxConfig{})
		for i := range 3 * maxTransactions {
			m.remember(txID{byte(i), byte(i >> 8), byte(i >> 16)}, transaction{})
		}
		if n := len(m.txNew) + len(m.txOld); n > 2*maxTransactions {
			t.Errorf("%d transactions are kept", n)
		}
		for range 2 {
			time.Sleep(transactionLife + time.Second)
			m.remember(txID{1}, transaction{})
		}
		if n := len(m.txNew) + len(m.txOld); n > 2 {
			t.Errorf("%d transactions are kept after a while", n)
		}
	})
}

func TestNewMux(t *testing.T) {
	for name, cfg := range map[string]MuxConfig{
		"nil socket": {Sockets: []Socket{nil}},
		"no port":    {Sockets: []Socket{&fakeSocket{local: netip.MustParseAddrPort("0.0.0.0:0")}}},
		"bad prefix": {ExcludePrefixes: []netip.Prefix{{}}},
	} {
		if _, err := NewMux(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func BenchmarkHandle(b *testing.B) {
	m, err := NewMux(MuxConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	e, err := m.register("aaaa", testPwd, nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := e.conn(m, 0, &net.UDPAddr{}); err != nil {
		b.Fatal(err)
	}
	from := netip.MustParseAddrPort("192.0.2.1:5")
	for _, bb := range []struct {
		name string
		msg  []byte
	}{
		{"malformed", raw(typeRequest, attr(0x7000))},
		{"unknown", check("zzzz:bbbb", testPwd)},
		{"forged", check("aaaa:bbbb", testPwd+"x")},
		{"good", check("aaaa:bbbb", testPwd)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Handle(0, bb.msg, from)
			}
		})
	}
}

func FuzzCandidate(f *testing.F) {
	f.Add("1 1 udp 2130706431 192.0.2.1 4000 typ host")
	f.Add("candidate:a/b 1 UDP 1 2001:db8::1 65535 typ srflx raddr 0.0.0.0 rport 9")
	f.Add("1 1 udp 1 ::ffff:192.0.2.1 1 typ relay")
	f.Add("1 1 tcp 1 x.local 1 typ host tcptype active")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCandidate(s)
		if err != nil {
			return
		}
		again, err := parseCandidate(c.String())
		if err != nil || !cmp.Equal(c, again, cmp.AllowUnexported(candidate{}), cmpopts.EquateComparable(netip.AddrPort{})) {
			t.Fatalf("%q became %+v, then %+v, %v", s, c, again, err)
		}
		if _, err := c.pion(); err != nil {
			t.Fatalf("pion refuses %q: %v", s, err)
		}
	})
}
