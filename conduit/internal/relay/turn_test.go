// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/turn/v3"

	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// turnServer is pion's server on loopback.
type turnServer struct {
	addr netip.AddrPort
	srv  *turn.Server
	conn *gate
}

// gate is the server's socket; it can be made deaf.
type gate struct {
	net.PacketConn

	mu   sync.Mutex // guards the following
	deaf bool
	from map[string]bool // clients, by address
}

func (g *gate) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, a, err := g.PacketConn.ReadFrom(b)
		g.mu.Lock()
		deaf := g.deaf
		if a != nil {
			g.from[a.String()] = true
		}
		g.mu.Unlock()
		if err != nil || !deaf {
			return n, a, err
		}
	}
}

func (g *gate) setDeaf() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.deaf = true
}

func startTurn(t *testing.T, permit func(peer net.IP) bool) *turnServer {
	t.Helper()
	pc, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{PacketConn: pc, from: make(map[string]bool)}
	cfg := turn.ServerConfig{
		Realm: "test", LoggerFactory: ice.NewLoggerFactory(nil),
		AuthHandler: func(user, realm string, _ net.Addr) ([]byte, bool) {
			return turn.GenerateAuthKey(user, realm, "secret"), user == "robot"
		},
		PacketConnConfigs: []turn.PacketConnConfig{{
			PacketConn:            g,
			RelayAddressGenerator: &turn.RelayAddressGeneratorStatic{RelayAddress: net.IPv4(127, 0, 0, 1), Address: "127.0.0.1"},
			PermissionHandler:     func(_ net.Addr, ip net.IP) bool { return permit == nil || permit(ip) },
		}},
	}
	var srv *turn.Server
	fips140.WithoutEnforcement(func() { srv, err = turn.NewServer(cfg) }) // and its goroutines
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	return &turnServer{addr: pc.LocalAddr().(*net.UDPAddr).AddrPort(), srv: srv, conn: g}
}

func dialTurn(t *testing.T, s *turnServer, change func(*TurnConfig)) *TurnBind {
	t.Helper()
	cfg := TurnConfig{Server: s.addr, Username: "robot", Password: "secret", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := DialTurn(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// meshPacket makes a packet of a lane with a text in it.
func meshPacket(lane int, text string) []byte {
	b := make([]byte, minPacket+len(text))
	b[0], b[1] = meshByte, byte(lane)
	copy(b[minPacket:], text)
	return b
}

func sendText(t *testing.T, b transport.Bind, lane int, to netip.AddrPort, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if n, err := b.Send(lane, []transport.Message{{Buf: meshPacket(lane, s), Addr: to}}); n != 1 || err != nil {
			t.Fatalf("Send = %d, %v", n, err)
		}
	}
}

// receiver reads a bind in a goroutine of its own.
func receiver(t *testing.T, b transport.Bind) <-chan string {
	t.Helper()
	out := make(chan string, 10_000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		msgs := make([]transport.Message, b.BatchSize())
		for i := range msgs {
			msgs[i].Buf = make([]byte, b.RecvBufSize())
		}
		for {
			n, err := b.Receive(0, msgs)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("Receive = %v", err)
				}
				return
			}
			for _, m := range msgs[:n] {
				out <- fmt.Sprint(m.Addr, " ", string(m.Buf[minPacket:m.N]))
			}
		}
	}()
	t.Cleanup(func() { _ = b.Close(); <-done })
	return out
}

func next[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

// TestTurnBetweenTwo is the case of two nodes behind symmetric NATs: each knows
// nothing but the other's relayed address.
func TestTurnBetweenTwo(t *testing.T) {
	s := startTurn(t, nil)
	a, b := dialTurn(t, s, nil), dialTurn(t, s, nil)
	ra, rb := receiver(t, a), receiver(t, b)
	if a.RelayedAddr() == b.RelayedAddr() || !a.RelayedAddr().Addr().IsLoopback() {
		t.Fatalf("relayed addresses %v and %v", a.RelayedAddr(), b.RelayedAddr())
	}
	// b's permission opens the way for a, as a NAT would.
	sendText(t, b, 0, a.RelayedAddr(), "b0")
	// Until b has the permission, what a sends is lost.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for open := false; !open; {
		sendText(t, a, 0, b.RelayedAddr(), "first")
		select {
		case got := <-rb:
			if want := a.RelayedAddr().String() + " first"; got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
			open = true
		case <-tick.C:
		}
	}
	for i := range 20 { // over Send indications, then over a channel
		want := fmt.Sprint(a.RelayedAddr(), " ", i)
		sendText(t, a, 0, b.RelayedAddr(), fmt.Sprint(i))
		got := next(t, "packet", rb)
		for strings.HasSuffix(got, " first") {
			got = next(t, "packet", rb)
		}
		if got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	channels := func() int {
		a.conn.mu.Lock()
		defer a.conn.mu.Unlock()
		return len(a.conn.channels)
	}
	for deadline := time.Now().Add(10 * time.Second); channels() != 1; {
		if time.Now().After(deadline) {
			t.Fatalf("%d channels are bound, want 1", channels())
		}
	}
	for len(ra) > 0 {
		<-ra
	}
	sendText(t, b, 2, a.RelayedAddr(), "back")
	if got, want := next(t, "answer", ra), b.RelayedAddr().String()+" back"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTurnKeepsTheOrderWhileItOpens(t *testing.T) {
	s := startTurn(t, nil)
	a := dialTurn(t, s, nil)
	peer, err := transport.Listen(transport.Config{Network: "udp4", Addr: netip.MustParseAddr("127.0.0.1"), NoGRO: true})
	if err != nil {
		t.Fatal(err)
	}
	got := receiver(t, peer)
	var want []string
	for i := range peerPending {
		want = append(want, fmt.Sprint(a.RelayedAddr(), " ", i))
		sendText(t, a, 1, peer.LocalAddr(), fmt.Sprint(i))
	}
	for _, w := range want {
		if g := next(t, "packet", got); g != w {
			t.Errorf("got %q, want %q", g, w)
		}
	}
}

func TestTurnRefusedPeer(t *testing.T) {
	asked := make(chan struct{}, 100)
	s := startTurn(t, func(ip net.IP) bool { asked <- struct{}{}; return !ip.Equal(net.IPv4(127, 0, 0, 9)) })
	a := dialTurn(t, s, nil)
	bad := netip.MustParseAddrPort("127.0.0.9:9")
	sendText(t, a, 0, bad, "x")
	next(t, "request", asked)
	state := func() peerState {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.peers[bad].state
	}
	for deadline := time.Now().Add(10 * time.Second); state() != peerRefused; {
		if time.Now().After(deadline) {
			t.Fatal("the refusal did not come")
		}
	}
	for range 20 {
		before := a.Counters().Refused
		for sendText(t, a, 0, bad, "x"); a.Counters().Refused == before; {
			if state() != peerRefused {
				t.Fatal("it asks again")
			}
		}
	}
	if len(asked) > 0 {
		t.Errorf("the server was asked %d times more", len(asked))
	}
	a.mu.Lock()
	a.peers[bad].until = time.Now()
	a.mu.Unlock()
	sendText(t, a, 0, bad, "x")
	next(t, "request after a while", asked)
}

func TestTurnUnreachable(t *testing.T) {
	for _, tc := range []struct {
		server, peer string
		want         bool
	}{
		{"192.0.2.1:3478", "198.51.100.1:1", true},
		{"192.0.2.1:3478", "10.0.0.1:1", false},
		{"192.0.2.1:3478", "100.64.0.1:1", false},
		{"192.0.2.1:3478", "127.0.0.1:1", false},
		{"192.0.2.1:3478", "169.254.0.1:1", false},
		{"192.0.2.1:3478", "224.0.0.1:1", false},
		{"192.0.2.1:3478", "0.0.0.0:1", false},
		{"192.0.2.1:3478", "198.51.100.1:0", false},
		{"192.0.2.1:3478", "[2001:db8::1]:1", false},
		{"10.1.0.1:3478", "10.0.0.1:1", true},
	} {
		b := &TurnBind{cfg: TurnConfig{Server: netip.MustParseAddrPort(tc.server)}}
		if got := b.reachable(netip.MustParseAddrPort(tc.peer)); got != tc.want {
			t.Errorf("%s from %s: %v, want %v", tc.peer, tc.server, got, tc.want)
		}
	}
}

func TestTurnPeersAreBounded(t *testing.T) {
	s := startTurn(t, nil)
	lost := make(chan error, 1)
	a := dialTurn(t, s, func(c *TurnConfig) { c.Lost = func(err error) { lost <- err } })
	for i := range turnPeers + 1 {
		sendText(t, a, 0, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(1000+i)), "x") //nolint:gosec // a port
		if i%8 == 0 {
			for { // the queue is shorter than the test
				a.mu.Lock()
				n := a.queue.Len()
				a.mu.Unlock()
				if n == 0 {
					break
				}
			}
		}
	}
	if err := next(t, "news", lost); !errors.Is(err, errTurnFull) {
		t.Errorf("lost: %v", err)
	}
}

func TestTurnRefusesCredentials(t *testing.T) {
	s := startTurn(t, nil)
	_, err := DialTurn(t.Context(), TurnConfig{Server: s.addr, Username: "robot", Password: "wrong"})
	if err == nil {
		t.Fatal("DialTurn with a wrong password succeeds")
	}
	t.Log(err)
}

func TestTurnDialEnds(t *testing.T) {
	s := startTurn(t, nil)
	s.conn.setDeaf()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := DialTurn(ctx, TurnConfig{Server: s.addr, Username: "robot", Password: "secret"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("DialTurn = %v, want a timeout", err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestTurnSilentServerIsLost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for _, open := range []bool{true, false} { // whether a peer was reached before
		t.Run(fmt.Sprint("open=", open), func(t *testing.T) {
			t.Parallel()
			s := startTurn(t, nil)
			lost := make(chan error, 1)
			a := dialTurn(t, s, func(c *TurnConfig) { c.Lost = func(err error) { lost <- err } })
			to := netip.MustParseAddrPort("127.0.0.1:9")
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ok := !open; !ok; <-tick.C {
				sendText(t, a, 0, to, "x")
				a.mu.Lock()
				ok = a.peers[to] != nil && a.peers[to].state == peerOpen
				a.mu.Unlock()
			}
			s.conn.setDeaf()
			begin := time.Now()
			for {
				select {
				case err := <-lost:
					t.Logf("lost after %v", time.Since(begin))
					if !errors.Is(err, errTurnSilent) {
						t.Errorf("lost: %v", err)
					}
					begin = time.Now()
					if err := a.Close(); err != nil || time.Since(begin) > time.Second {
						t.Errorf("Close = %v after %v", err, time.Since(begin))
					}
					return
				case <-tick.C:
					sendText(t, a, 0, to, "y")
				}
				if time.Since(begin) > 15*time.Second {
					t.Fatal("nobody noticed")
				}
			}
		})
	}
}

// TestTurnCloseGivesBack looks whether the server's socket for peers is closed.
func TestTurnCloseGivesBack(t *testing.T) {
	s := startTurn(t, nil)
	a := dialTurn(t, s, nil)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); s.srv.AllocationCount() > 0; {
		if time.Now().After(deadline) {
			t.Fatal("the allocation is still there")
		}
	}
	if _, err := a.Send(0, []transport.Message{{Buf: meshPacket(0, "x"), Addr: s.addr}}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send after Close = %v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
