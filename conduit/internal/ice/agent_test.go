// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v2"
)

// peer is an agent that remembers what its callbacks got.
type peer struct {
	*Agent
	ufrag, pwd string
	paths      chan Path
	proven     chan Path
	failed     chan error

	mu    sync.Mutex
	cands []string
	other *peer
}

func newPeer(t *testing.T, m *Mux, controlling bool, servers ...string) *peer {
	t.Helper()
	p := &peer{paths: make(chan Path, 16), proven: make(chan Path, 256), failed: make(chan error, 1)}
	p.ufrag, p.pwd = NewCredentials()
	var err error
	p.Agent, err = NewAgent(AgentConfig{
		Mux: m, Controlling: controlling, LocalUfrag: p.ufrag, LocalPwd: p.pwd, STUNServers: servers,
		OnCandidate: p.candidate,
		OnPath:      func(q Path) { p.paths <- q },
		OnProven:    func(q Path) { p.proven <- q },
		OnFailed:    func(err error) { p.failed <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *peer) candidate(c string) {
	p.mu.Lock()
	p.cands = append(p.cands, c)
	other := p.other
	p.mu.Unlock()
	if other != nil {
		_ = other.AddRemote(c)
	}
}

// signal lets p's candidates, old and new, reach q, with p's credentials.
func (p *peer) signal(t *testing.T, q *peer) {
	t.Helper()
	if err := q.SetRemote(p.ufrag, p.pwd); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	old := append([]string(nil), p.cands...)
	p.other = q
	p.mu.Unlock()
	for _, c := range old {
		if err := q.AddRemote(c); err != nil {
			t.Error(err)
		}
	}
}

func (p *peer) start(t *testing.T) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
}

// path waits for the next OnPath.
func (p *peer) path(t *testing.T) Path {
	t.Helper()
	select {
	case q := <-p.paths:
		return q
	case err := <-p.failed:
		t.Fatalf("failed: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("no path")
	}
	return Path{}
}

func connect(t *testing.T, a, b *peer) {
	t.Helper()
	a.start(t)
	b.start(t)
	a.signal(t, b)
	b.signal(t, a)
}

func TestAddRemote(t *testing.T) {
	m := newMux(t, MuxConfig{ExcludePrefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00:b::/32")}})
	p := newPeer(t, m, true)
	line := func(addr string, port int) string {
		return fmt.Sprintf("1 1 udp 2130706431 %s %d typ host", addr, port)
	}
	tests := []struct {
		cand string
		want error
	}{
		{"", nil},
		{line("192.0.2.1", 1), nil},
		{line("192.0.2.1", 1), nil}, // again
		{"candidate:" + line("10.0.0.1", 1), nil},
		{line("2001:db8::1", 1), nil},
		{"1 1 UDP 1694498815 192.0.2.2 1 typ srflx raddr 10.0.0.1 rport 2", nil},
		{"1 1 udp 16777215 192.0.2.3 1 typ relay raddr 10.0.0.1 rport 2", nil},
		{line("127.0.0.1", 1), ErrForbidden},
		{line("::1", 1), ErrForbidden},
		{line("::ffff:127.0.0.1", 1), ErrForbidden},
		{line("64:ff9b::7f00:1", 1), ErrForbidden},
		{line("::127.0.0.1", 1), ErrForbidden},
		{line("0.0.0.0", 1), ErrForbidden},
		{line("0.1.2.3", 1), ErrForbidden},
		{line("::", 1), ErrForbidden},
		{line("224.0.0.251", 1), ErrForbidden},
		{line("ff02::1", 1), ErrForbidden},
		{line("255.255.255.255", 1), ErrForbidden},
		{line("169.254.169.254", 1), ErrForbidden},
		{line("fe80::1", 1), ErrForbidden},
		{line("100.64.0.5", 1), ErrForbidden},
		{line("::ffff:100.64.0.5", 1), ErrForbidden},
		{line("fd00:b::1", 1), ErrForbidden},
		{line("192.0.2.1", 0), ErrForbidden},
		{line("fe80::1%eth0", 1), ErrBadCandidate},
		{line("4c0c7b0e.local", 1), ErrBadCandidate},
		{line("example.com", 1), ErrBadCandidate},
		{line("192.0.2.1", 65536), ErrBadCandidate},
		{"1 2 udp 1 192.0.2.1 1 typ host", ErrBadCandidate},
		{"1 1 tcp 1 192.0.2.1 1 typ host tcptype passive", ErrBadCandidate},
		{"1 1 udp 0 192.0.2.1 1 typ host", ErrBadCandidate},
		{"1 1 udp 4294967295 192.0.2.1 1 typ host", ErrBadCandidate},
		{"1 1 udp 1 192.0.2.1 1 typ prflx", ErrBadCandidate},
		{"1 1 udp 1 192.0.2.1 1", ErrBadCandidate},
		{line("192.0.2.1", 1) + strings.Repeat(" x", 300), ErrBadCandidate},
		{line("192.0.2.1", 1) + "\n", ErrBadCandidate},
	}
	for _, tt := range tests {
		if err := p.AddRemote(tt.cand); !errors.Is(err, tt.want) {
			t.Errorf("AddRemote(%q) = %v, want %v", tt.cand, err, tt.want)
		}
	}
	var err error
	for i := range maxCandidates {
		err = p.AddRemote(line("192.0.2.9", 1000+i))
	}
	if !errors.Is(err, ErrTooMany) {
		t.Errorf("one more than %d: %v, want ErrTooMany", maxCandidates, err)
	}
}

// A check from inside the overlay would run ICE through the tunnel that ICE is
// to find a path for.
func TestForbiddenSource(t *testing.T) {
	m := newMux(t, MuxConfig{ExcludePrefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}})
	p := newPeer(t, m, true)
	for _, from := range []string{"100.64.0.9:1", "127.0.0.1:1", "[::ffff:100.64.0.9]:1", "192.0.2.1:0"} {
		m.Handle(0, check(p.ufrag+":bbbb", p.pwd), netip.MustParseAddrPort(from))
	}
	if s := m.Stats(); s.Forbidden != 4 {
		t.Errorf("stats = %+v, want 4 forbidden", s)
	}
}

func TestTombstone(t *testing.T) {
	m := newMux(t, MuxConfig{})
	p := newPeer(t, m, true)
	msg := check(p.ufrag+":bbbb", p.pwd, stun.RawAttribute{Type: stun.AttrUseCandidate})
	from := netip.MustParseAddrPort("192.0.2.1:1")
	m.Handle(0, msg, from)
	_ = p.Close()
	m.Handle(0, msg, from)
	if s := m.Stats(); s.NotReady != 1 || s.StaleUser != 1 {
		t.Errorf("stats = %+v, want one not ready and one stale", s)
	}
}

// stuckSocket is a Socket that breaks its promise not to block.
type stuckSocket struct {
	fakeSocket
	stuck   chan struct{} // closed at the first send
	release chan struct{}
	once    sync.Once
}

func (s *stuckSocket) SendSTUN([]byte, netip.AddrPort) {
	s.once.Do(func() { close(s.stuck) })
	<-s.release
}

func TestCloseBlockedSocket(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(0)
		s := &stuckSocket{fakeSocket: fakeSocket{w: w, local: netip.MustParseAddrPort("192.0.2.1:4000")}, stuck: make(chan struct{}), release: make(chan struct{})}
		m := newMux(t, MuxConfig{Sockets: []Socket{s}})
		ufrag, pwd := NewCredentials()
		a, err := NewAgent(AgentConfig{Mux: m, LocalUfrag: ufrag, LocalPwd: pwd})
		if err != nil {
			t.Fatal(err)
		}
		_ = a.Start()
		_ = a.SetRemote("ufrag", testPwd)
		_ = a.AddRemote("1 1 udp 1 192.0.2.2 1 typ host")
		<-s.stuck
		begin := time.Now()
		if err := a.Close(); !errors.Is(err, ErrCloseTimeout) {
			t.Errorf("Close = %v, want ErrCloseTimeout", err)
		}
		if d := time.Since(begin); d > closeLimit {
			t.Errorf("Close took %v", d)
		}
		close(s.release) // what Close left behind ends by itself
	})
}

// The mux may go first: nothing hangs, and what comes later is dropped.
func TestMuxClosedFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, ma, mb := fakePair(t)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		connect(t, a, b)
		a.path(t)
		begin := time.Now()
		if err := errors.Join(ma.Close(), ma.Close(), a.Close()); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 100*time.Millisecond {
			t.Errorf("Close took %v", d)
		}
		ma.Handle(0, check(a.ufrag+":"+b.ufrag, a.pwd), netip.MustParseAddrPort("192.0.2.2:4000"))
		ufrag, pwd := NewCredentials()
		if _, err := NewAgent(AgentConfig{Mux: ma, LocalUfrag: ufrag, LocalPwd: pwd}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("NewAgent on a closed mux: %v, want net.ErrClosed", err)
		}
	})
}

// A new agent over a new socket finds a path while the old agent keeps its own.
func TestRoam(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w, ma, mb := fakePair(t)
		a, b := newPeer(t, ma, true), newPeer(t, mb, false)
		connect(t, a, b)
		a.path(t)
		b.path(t)
		s2 := w.socket("203.0.113.7:4000", nil)
		i, err := 1, ma.SetSocket(1, s2)
		if err != nil {
			t.Fatal(err)
		}
		w.attach(s2, ma, i)
		ma.RemoveSocket(0)
		a2, b2 := newPeer(t, ma, true), newPeer(t, mb, false)
		connect(t, a2, b2)
		if p := a2.path(t); p.Socket != i {
			t.Errorf("path = %+v, want socket %d", p, i)
		}
		if p := b2.path(t); p.Remote != s2.local {
			t.Errorf("path = %+v, want to %v", p, s2.local)
		}
	})
}

func TestNewAgent(t *testing.T) {
	m := newMux(t, MuxConfig{})
	ufrag, pwd := NewCredentials()
	if len(ufrag) != 16 || len(pwd) != 32 {
		t.Errorf("NewCredentials = %q, %q", ufrag, pwd)
	}
	for name, cfg := range map[string]AgentConfig{
		"no mux":      {LocalUfrag: ufrag, LocalPwd: pwd},
		"ufrag":       {Mux: m, LocalUfrag: "a:b:c", LocalPwd: pwd},
		"password":    {Mux: m, LocalUfrag: ufrag, LocalPwd: "short"},
		"STUN server": {Mux: m, LocalUfrag: ufrag, LocalPwd: pwd, STUNServers: []string{"a:b:c"}},
	} {
		if _, err := NewAgent(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	p := newPeer(t, m, true)
	p.start(t)
	if p.Start() == nil {
		t.Error("second Start = nil")
	}
	if p.SetRemote("x", testPwd) == nil || p.SetRemote("aaaa", "short") == nil {
		t.Error("bad credentials were taken")
	}
	if err := p.SetRemote("aaaa", testPwd); err != nil {
		t.Error(err)
	}
	if p.SetRemote("aaaa", testPwd) == nil {
		t.Error("second SetRemote = nil")
	}
}

// A network that swallows everything is the usual blocked socket.
func TestCloseBlackhole(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(0)
		m := newMux(t, MuxConfig{Sockets: []Socket{w.socket("192.0.2.1:4000", nil)}})
		p := newPeer(t, m, true, "203.0.113.1:3478", "203.0.113.2:3478")
		p.start(t)
		_ = p.SetRemote("ufrag", testPwd)
		_ = p.AddRemote("1 1 udp 1 192.0.2.2 1 typ host")
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		begin := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _ = p.Close() })
		}
		wg.Wait()
		if d := time.Since(begin); d > 100*time.Millisecond {
			t.Errorf("Close took %v, want under 100ms", d)
		}
		if err := p.Start(); err == nil {
			t.Error("Start after Close = nil")
		}
	})
}
