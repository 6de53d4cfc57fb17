// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	pstun "github.com/pion/stun/v3"
	"github.com/pion/turn/v4"
	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errRevoked = errors.New("revoked")

// admission is a fake of the hub's list of nodes.
type admission struct {
	mu      sync.Mutex
	revoked map[identity.PeerID]bool
	asked   int
}

func (a *admission) admit(_ context.Context, id identity.PeerID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	if a.revoked[id] {
		return errRevoked
	}
	return nil
}

func (a *admission) revoke(id identity.PeerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked[id] = true
}

func serve(t *testing.T, change func(*Config)) (*Server, *admission) {
	t.Helper()
	adm := &admission{revoked: make(map[identity.PeerID]bool)}
	cfg := Config{
		Listen: "127.0.0.1:0", Host: "127.0.0.1", RelayAddrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		MinPort: 52000, MaxPort: 52999, Admit: adm.admit,
		Own: func() []netip.Prefix { return nil }, // wherever the test runs
	}
	if change != nil {
		change(&cfg)
	}
	s, err := Listen(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if st := s.Stats(); st.Allocations != 0 || st.Nodes != 0 {
			t.Errorf("after Close: %+v", st)
		}
	})
	return s, adm
}

// dial returns a client of a node, its own socket and nothing allocated.
func dial(t *testing.T, s *Server, id identity.PeerID, spoil func(*turn.ClientConfig)) *turn.Client {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cred := s.Credentials(id)
	cfg := &turn.ClientConfig{
		TURNServerAddr: s.Addr().String(), STUNServerAddr: s.Addr().String(), Conn: pc,
		Username: cred.Username, Password: cred.Password, Realm: realm, RTO: 50 * time.Millisecond,
		LoggerFactory: logs{s.cfg.Logger},
	}
	if spoil != nil {
		spoil(cfg)
	}
	c, err := turn.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); _ = pc.Close() })
	return c
}

func allocation(t *testing.T, c *turn.Client) net.PacketConn {
	t.Helper()
	pc, err := c.Allocate()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	if err := pc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return pc
}

func newID(t *testing.T) identity.PeerID {
	t.Helper()
	k, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	return k.ID()
}

// eventually waits for what another goroutine is about to do.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestRelay(t *testing.T) {
	for _, tt := range []struct{ name, listen, addr string }{
		{"ipv4", "127.0.0.1:0", "127.0.0.1"},
		{"any", ":0", "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := serve(t, func(c *Config) {
				c.Listen, c.Host, c.RelayAddrs = tt.listen, tt.addr, []netip.Addr{netip.MustParseAddr(tt.addr)}
			})
			at := func(c *turn.ClientConfig) {
				if tt.listen == ":0" {
					c.TURNServerAddr = netip.AddrPortFrom(netip.MustParseAddr(tt.addr), s.Addr().Port()).String()
					c.STUNServerAddr = c.TURNServerAddr
				}
			}
			ca, cb := dial(t, s, newID(t), at), dial(t, s, newID(t), at)
			// STUN on the same socket.
			if a, err := ca.SendBindingRequest(); err != nil || !a.(*net.UDPAddr).IP.IsLoopback() {
				t.Fatalf("binding = %v, %v", a, err)
			}
			a, b := allocation(t, ca), allocation(t, cb)
			if ip := a.LocalAddr().(*net.UDPAddr).IP; !ip.Equal(net.ParseIP(tt.addr)) {
				t.Errorf("relayed address = %v, want %v", ip, tt.addr)
			}
			// First by indication, later by channel.
			buf := make([]byte, 1500)
			for i := range 20 {
				// Each permits the other before the other's packet comes.
				if i == 0 {
					if _, err := b.WriteTo([]byte("early"), a.LocalAddr()); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := a.WriteTo([]byte{byte(i), 2, 3}, b.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				n, from, err := b.ReadFrom(buf)
				if err != nil || n != 3 || buf[0] != byte(i) || from.String() != a.LocalAddr().String() {
					t.Fatalf("packet %d = %x from %v, %v", i, buf[:n], from, err)
				}
			}
			if st := s.Stats(); st.Allocations != 2 || st.Nodes != 2 || st.UpPackets < 20 || st.DownBytes < 60 || st.Bindings != 1 {
				t.Errorf("stats = %+v", st)
			}
			// A deleted allocation leaves nothing behind.
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "allocation deleted", func() bool { return s.Stats().Allocations == 1 })
		})
	}
}

func TestCredentials(t *testing.T) {
	s, adm := serve(t, nil)
	id := newID(t)
	c := s.Credentials(id)
	got, exp, err := parseUsername(c.Username)
	if err != nil || got != id || !exp.Equal(c.Expires) || time.Until(exp) < 11*time.Hour {
		t.Errorf("username %q = %v, %v, %v", c.Username, got, exp, err)
	}
	if want := "turn:" + s.Addr().String() + "?transport=udp"; len(c.URLs) != 1 || c.URLs[0] != want {
		t.Errorf("URLs = %q, want %q", c.URLs, want)
	}
	expired := "1700000000:" + id.String()
	other := s.Credentials(newID(t))
	before := adm.asked
	for _, tt := range []struct{ name, user, pass string }{
		{"wrong_password", c.Username, other.Password},
		{"someone_else", other.Username, c.Password},
		{"expired", expired, password(s.cfg.Key, expired)},
		{"no_user", "bob", "secret"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cl := dial(t, s, id, func(cc *turn.ClientConfig) { cc.Username, cc.Password = tt.user, tt.pass })
			if pc, err := cl.Allocate(); err == nil {
				_ = pc.Close()
				t.Fatal("allocated")
			}
		})
	}
	if adm.asked != before {
		t.Errorf("strangers cost %d look-ups", adm.asked-before)
	}
	if st := s.Stats(); st.RefusedAuth < 4 || st.Created != 0 {
		t.Errorf("stats = %+v", st)
	}
}

func TestRevoke(t *testing.T) {
	s, adm := serve(t, nil)
	bad, good := newID(t), newID(t)
	ca := dial(t, s, bad, nil)
	allocation(t, ca)
	allocation(t, dial(t, s, good, nil))
	adm.revoke(bad)
	s.Revoke(bad)
	eventually(t, "only the good one is left", func() bool { st := s.Stats(); return st.Allocations == 1 && st.Nodes == 1 })
	if _, err := dial(t, s, bad, nil).Allocate(); err == nil {
		t.Error("a revoked node allocated")
	}
	if st := s.Stats(); st.RefusedNode == 0 {
		t.Errorf("stats = %+v", st)
	}
	k := s.sockets[0]
	k.mu.RLock()
	defer k.mu.RUnlock()
	if len(k.clients) != 1 {
		t.Errorf("%d clients known, want 1", len(k.clients))
	}
}

func TestRevokedRefresh(t *testing.T) {
	s, adm := serve(t, nil)
	id := newID(t)
	w := newRaw(t, s, id)
	if code := w.do(pstun.MethodAllocate, udpTransport); code != 0 {
		t.Fatalf("allocate = %d", code)
	}
	if code := w.do(pstun.MethodRefresh); code != 0 {
		t.Fatalf("refresh = %d", code)
	}
	adm.revoke(id) // and nobody tells the server
	if code := w.do(pstun.MethodRefresh); code == 0 {
		t.Error("a revoked node refreshed")
	}
}

func TestQuota(t *testing.T) {
	s, _ := serve(t, func(c *Config) { c.MaxPerNode, c.MaxTotal = 2, 3 })
	a, b := newID(t), newID(t)
	for range 2 {
		allocation(t, dial(t, s, a, nil))
	}
	if _, err := dial(t, s, a, nil).Allocate(); err == nil {
		t.Error("a third allocation of one node")
	}
	allocation(t, dial(t, s, b, nil))
	if _, err := dial(t, s, b, nil).Allocate(); err == nil {
		t.Error("a fourth allocation in all")
	}
	if st := s.Stats(); st.RefusedQuota != 2 || st.Created != 3 {
		t.Errorf("stats = %+v", st)
	}
}

func TestRate(t *testing.T) {
	const rate, burst = 50_000, 20_000
	s, _ := serve(t, func(c *Config) { c.Rate, c.Burst = rate, burst })
	a, b := allocation(t, dial(t, s, newID(t), nil)), allocation(t, dial(t, s, newID(t), nil))
	if _, err := b.WriteTo([]byte("open"), a.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	const n = 60 // what a socket's buffer holds
	for range n {
		if _, err := a.WriteTo(make([]byte, 1000), b.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all packets seen", func() bool {
		st := s.Stats()
		return st.UpPackets+st.DroppedRate+st.DroppedPeer >= n
	})
	st := s.Stats()
	if limit := burst + rate*time.Since(start).Seconds() + 1000; float64(st.UpBytes) > limit || st.UpBytes < burst/2 || st.DroppedRate == 0 {
		t.Errorf("%d bytes relayed, at most %.0f allowed; %+v", st.UpBytes, limit, st)
	}
}

// TestLocalAddress asks a server that listens everywhere at two of its addresses.
// Answers and relayed packets must come from where the node sent to. Its public
// address is that of a NAT, which does not turn packets around.
func TestLocalAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8")
	}
	s, _ := serve(t, func(c *Config) {
		c.Listen, c.RelayAddrs = ":0", []netip.Addr{netip.MustParseAddr("203.0.113.9")}
	})
	at := func(a string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), s.Addr().Port()) }
	a, b := newRawAt(t, s, newID(t), at("127.0.0.2")), newRawAt(t, s, newID(t), at("127.0.0.3"))
	if a.do(pstun.MethodAllocate, udpTransport) != 0 || b.do(pstun.MethodAllocate, udpTransport) != 0 {
		t.Fatal("not allocated")
	}
	if a.do(pstun.MethodCreatePermission, xorPeer(b.relayed.String())) != 0 || b.do(pstun.MethodCreatePermission, xorPeer(a.relayed.String())) != 0 {
		t.Fatal("not permitted")
	}
	b.send(a.relayed.String(), "hello")
	if m := a.read(); m == nil || m.Type.Method != pstun.MethodData {
		t.Errorf("got %v", m)
	}
}

// TestIPv6 is message by message, because pion's client knows IPv4 only.
func TestIPv6(t *testing.T) {
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6: ", err)
	}
	_ = c.Close()
	s, _ := serve(t, func(c *Config) {
		c.Listen, c.Host, c.RelayAddrs = "[::1]:0", "::1", []netip.Addr{netip.MustParseAddr("::1")}
	})
	if u := s.Credentials(newID(t)).URLs[0]; u != "turn:"+s.Addr().String()+"?transport=udp" {
		t.Errorf("URL = %q", u)
	}
	a, b := newRaw(t, s, newID(t)), newRaw(t, s, newID(t))
	v4 := pstun.RawAttribute{Type: pstun.AttrRequestedAddressFamily, Value: []byte{1, 0, 0, 0}}
	v6 := pstun.RawAttribute{Type: pstun.AttrRequestedAddressFamily, Value: []byte{2, 0, 0, 0}}
	if code := a.do(pstun.MethodAllocate, udpTransport, v4); code != int(pstun.CodeInsufficientCapacity) {
		t.Errorf("an IPv4 relay of a hub without one = %d", code)
	}
	if a.do(pstun.MethodAllocate, udpTransport, v6) != 0 || b.do(pstun.MethodAllocate, udpTransport) != 0 {
		t.Fatal("not allocated")
	}
	if a.do(pstun.MethodCreatePermission, xorPeer(b.relayed.String())) != 0 || b.do(pstun.MethodCreatePermission, xorPeer(a.relayed.String())) != 0 {
		t.Fatal("not permitted")
	}
	a.send(b.relayed.String(), "hello")
	m := b.read()
	if m == nil || m.Type.Method != pstun.MethodData {
		t.Fatalf("got %v", m)
	}
	var from pstun.XORMappedAddress
	data, _ := m.Get(pstun.AttrData)
	if err := from.GetFromAs(m, pstun.AttrXORPeerAddress); err != nil || string(data) != "hello" || from.String() != a.relayed.String() {
		t.Errorf("got %q from %v, %v; want it from %v", data, from, err, a.relayed)
	}
}

// xorPeer is XOR-PEER-ADDRESS.
func xorPeer(a string) pstun.Setter {
	ap := netip.MustParseAddrPort(a)
	return setter(func(m *pstun.Message) error {
		return (&pstun.XORMappedAddress{IP: ap.Addr().AsSlice(), Port: int(ap.Port())}).AddToAs(m, pstun.AttrXORPeerAddress)
	})
}

type setter func(*pstun.Message) error

func (f setter) AddTo(m *pstun.Message) error { return f(m) }

func channelNumber(n uint16) pstun.Setter {
	return pstun.RawAttribute{Type: pstun.AttrChannelNumber, Value: []byte{byte(n >> 8), byte(n), 0, 0}}
}

func TestPermissions(t *testing.T) {
	s, _ := serve(t, func(c *Config) { c.Mesh = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")} })
	w := newRaw(t, s, newID(t))
	if code := w.do(pstun.MethodAllocate, udpTransport); code != 0 {
		t.Fatalf("allocate = %d", code)
	}
	for _, tt := range []struct {
		peer string
		ok   bool
	}{
		{"192.0.2.1:9", true},
		{"127.0.0.1:9", true}, // the relay's own address, checked per packet
		{"127.0.0.2:9", false},
		{"169.254.169.254:80", false},
		{"10.0.0.1:22", false},
		{"203.0.113.7:9", false},
		{"[::1]:9", false},
		{"[64:ff9b::a00:1]:9", false},
	} {
		if code := w.do(pstun.MethodCreatePermission, xorPeer(tt.peer)); (code == 0) != tt.ok {
			t.Errorf("permission for %s = %d, want ok %v", tt.peer, code, tt.ok)
		}
		if code := w.do(pstun.MethodChannelBind, channelNumber(0x4000), xorPeer(tt.peer)); code == 0 && !tt.ok {
			t.Errorf("channel to %s bound", tt.peer)
		}
	}
	if st := s.Stats(); st.RefusedPeer != 12 {
		t.Errorf("stats = %+v", st)
	}
	// Permitted by address, refused by port: the hub's own services.
	local, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	w.send(local.LocalAddr().String(), "boo!")
	eventually(t, "packet refused", func() bool { return s.Stats().DroppedPeer == 1 })
	// And such a service cannot speak into the allocation.
	s.mu.Lock()
	var port uint16
	for p := range s.relays[0] {
		port = p
	}
	s.mu.Unlock()
	if _, err := local.WriteTo([]byte("boo!"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "answer refused", func() bool { return s.Stats().DroppedPeer == 2 })
}

func TestPeerBounds(t *testing.T) {
	s, _ := serve(t, nil)
	w := newRaw(t, s, newID(t))
	if code := w.do(pstun.MethodAllocate, udpTransport); code != 0 {
		t.Fatalf("allocate = %d", code)
	}
	for i := range maxPeers {
		if code := w.do(pstun.MethodChannelBind, channelNumber(0x4000+uint16(i)), xorPeer(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 9).String())); code != 0 {
			t.Fatalf("channel %d = %d", i, code)
		}
	}
	if code := w.do(pstun.MethodCreatePermission, xorPeer("192.0.2.200:9")); code == 0 {
		t.Error("one permission too many")
	}
	if code := w.do(pstun.MethodChannelBind, channelNumber(0x4fff), xorPeer("192.0.2.1:10")); code == 0 {
		t.Error("one channel too many")
	}
	// What exists is refreshed.
	if code := w.do(pstun.MethodChannelBind, channelNumber(0x4001), xorPeer("192.0.2.1:9")); code != 0 {
		t.Errorf("refresh of a channel = %d", code)
	}
}

func TestForeignAllocation(t *testing.T) {
	s, _ := serve(t, nil)
	w := newRaw(t, s, newID(t))
	if code := w.do(pstun.MethodAllocate, udpTransport); code != 0 {
		t.Fatalf("allocate = %d", code)
	}
	// Another node on the same 5-tuple.
	w.cred = s.Credentials(newID(t))
	if code := w.do(pstun.MethodRefresh, pstun.RawAttribute{Type: pstun.AttrLifetime, Value: make([]byte, 4)}); code == 0 {
		t.Error("another node deleted the allocation")
	}
	if n := s.Stats().Allocations; n != 1 {
		t.Errorf("%d allocations, want 1", n)
	}
}

func TestNoise(t *testing.T) {
	s, _ := serve(t, nil)
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	noise := [][]byte{
		[]byte("hello"),
		{0x80, 0x44, 0, 0},
		{0x40, 0, 0, 4, 1, 2, 3, 4},
		pstun.MustBuild(pstun.TransactionID, pstun.NewType(pstun.MethodRefresh, pstun.ClassRequest)).Raw,
		pstun.MustBuild(pstun.TransactionID, pstun.NewType(pstun.MethodData, pstun.ClassIndication)).Raw,
		pstun.MustBuild(pstun.TransactionID, pstun.NewType(pstun.MethodAllocate, pstun.ClassSuccessResponse)).Raw,
	}
	for _, b := range noise {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "noise dropped", func() bool { return s.Stats().Dropped == uint64(len(noise)) })
}
