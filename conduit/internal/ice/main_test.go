// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"crypto/fips140"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v2"
	"go.uber.org/goleak"

	strict "github.com/bauxite-mesh/bauxite/conduit/internal/stun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubble runs f in fake time.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	if fips140.Enabled() {
		// The DRBG seeds itself from the jitter of the clock, which stands still in
		// a bubble, and panics. TestConnectLoopback covers FIPS mode.
		t.Skip("FIPS mode has no entropy in fake time")
	}
	synctest.Test(t, f)
}

// pass lets d go by in a bubble, and what comes of it happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// udpSocket is a real socket on loopback, read by a pump.
type udpSocket struct{ conn *net.UDPConn }

func (s *udpSocket) LocalAddr() netip.AddrPort {
	return s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (s *udpSocket) SendSTUN(b []byte, to netip.AddrPort) { _, _ = s.conn.WriteToUDPAddrPort(b, to) }

// newUDPMux returns a mux over n real sockets on ip that are read until the test
// ends.
func newUDPMux(t *testing.T, n int, ip net.IP) *Mux {
	t.Helper()
	var (
		socks []Socket
		conns []*net.UDPConn
	)
	network := "udp4"
	if ip.To4() == nil {
		network = "udp6"
	}
	for range n {
		c, err := net.ListenUDP(network, &net.UDPAddr{IP: ip})
		if err != nil {
			t.Fatal(err)
		}
		conns, socks = append(conns, c), append(socks, &udpSocket{c})
	}
	m := newMux(t, MuxConfig{Sockets: socks, IncludeLoopback: true})
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				m.Handle(i, buf[:n], from)
			}
		})
	}
	t.Cleanup(func() {
		for _, c := range conns {
			_ = c.Close()
		}
		wg.Wait()
	})
	return m
}

func newMux(t *testing.T, cfg MuxConfig) *Mux {
	t.Helper()
	m, err := NewMux(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// world is a network of fake sockets, each at an address of its own or behind a
// NAT, with one delay for all.
type world struct {
	delay time.Duration
	loss  float64 // share of messages lost

	mu    sync.Mutex // guards the rest
	hosts map[netip.AddrPort]func(b []byte, from netip.AddrPort)
	nats  map[netip.Addr]*nat
	sent  int
	rand  *rand.Rand
}

func newWorld(delay time.Duration) *world {
	return &world{delay: delay, hosts: make(map[netip.AddrPort]func([]byte, netip.AddrPort)), nats: make(map[netip.Addr]*nat), rand: rand.New(rand.NewPCG(1, 2))}
}

// nat is a port-restricted NAT; a symmetric one maps every destination anew.
type nat struct {
	public    netip.Addr
	symmetric bool
	next      uint16
	out       map[natKey]netip.AddrPort // → public
	in        map[netip.AddrPort]netip.AddrPort
	open      map[[2]netip.AddrPort]bool // public, remote
}

type natKey struct{ inside, remote netip.AddrPort }

func (w *world) newNAT(public string, symmetric bool) *nat {
	n := &nat{
		public: netip.MustParseAddr(public), symmetric: symmetric, next: 40000,
		out: make(map[natKey]netip.AddrPort), in: make(map[netip.AddrPort]netip.AddrPort), open: make(map[[2]netip.AddrPort]bool),
	}
	w.nats[n.public] = n
	return n
}

func (n *nat) translate(inside, remote netip.AddrPort) netip.AddrPort {
	key := natKey{inside: inside}
	if n.symmetric {
		key.remote = remote
	}
	pub, ok := n.out[key]
	if !ok {
		n.next++
		pub = netip.AddrPortFrom(n.public, n.next)
		n.out[key], n.in[pub] = pub, inside
	}
	n.open[[2]netip.AddrPort{pub, remote}] = true
	return pub
}

// fakeSocket is a Socket in a world. Until mux is set, what arrives is lost.
type fakeSocket struct {
	w     *world
	nat   *nat
	local netip.AddrPort
	bound netip.AddrPort // what LocalAddr says; local if invalid
}

func (s *fakeSocket) LocalAddr() netip.AddrPort {
	if s.bound.IsValid() {
		return s.bound
	}
	return s.local
}

func (s *fakeSocket) SendSTUN(b []byte, to netip.AddrPort) {
	s.w.mu.Lock()
	s.w.sent++
	from := s.local
	if s.nat != nil && !to.Addr().IsPrivate() {
		from = s.nat.translate(s.local, to)
	} else if s.nat != nil {
		s.w.mu.Unlock()
		return // private addresses of others are not reachable from here
	}
	lost := s.w.rand.Float64() < s.w.loss
	s.w.mu.Unlock()
	if lost {
		return
	}
	b = append([]byte(nil), b...)
	time.AfterFunc(s.w.delay, func() { s.w.receive(b, from, to) })
}

func (w *world) receive(b []byte, from, to netip.AddrPort) {
	w.mu.Lock()
	if n := w.nats[to.Addr()]; n != nil {
		if !n.open[[2]netip.AddrPort{to, from}] {
			w.mu.Unlock()
			return
		}
		to = n.in[to]
	}
	h := w.hosts[to]
	w.mu.Unlock()
	if h != nil {
		h(b, from)
	}
}

// socket adds a socket at addr to the world; attach connects it to a mux.
func (w *world) socket(addr string, n *nat) *fakeSocket {
	return &fakeSocket{w: w, nat: n, local: netip.MustParseAddrPort(addr)}
}

func (w *world) attach(s *fakeSocket, m *Mux, index int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[s.local] = func(b []byte, from netip.AddrPort) { m.Handle(index, b, from) }
}

// stunServer answers Binding requests at addr; it drops the first lose of them.
func (w *world) stunServer(addr string, lose int) {
	at := netip.MustParseAddrPort(addr)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts[at] = func(b []byte, from netip.AddrPort) {
		w.mu.Lock()
		lost := lose > 0
		lose--
		w.mu.Unlock()
		if lost {
			return
		}
		if ans := stunAnswer(b, from); ans != nil {
			time.AfterFunc(w.delay, func() { w.receive(ans, at, from) })
		}
	}
}

// stunAnswer is what a STUN server says to b.
func stunAnswer(b []byte, from netip.AddrPort) []byte {
	req := &stun.Message{Raw: append([]byte(nil), b...)}
	if req.Decode() != nil || req.Type != stun.BindingRequest {
		return nil
	}
	m, err := stun.Build(req, stun.BindingSuccess,
		&stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())}, stun.NewSoftware("test"), stun.Fingerprint)
	if err != nil {
		return nil
	}
	return m.Raw
}

// check builds a connectivity check.
func check(user, pwd string, extra ...stun.Setter) []byte {
	set := append([]stun.Setter{stun.BindingRequest, stun.TransactionID, stun.NewUsername(user)}, extra...)
	set = append(set, stun.NewShortTermIntegrity(pwd), stun.Fingerprint)
	var b []byte
	fips140.WithoutEnforcement(func() {
		m, err := stun.Build(set...)
		if err != nil {
			panic(err)
		}
		b = m.Raw
	})
	return b
}

// raw builds a message from attributes, with right lengths and no checks.
func raw(typ uint16, attrs ...[]byte) []byte {
	b := make([]byte, headerSize)
	binary.BigEndian.PutUint16(b, typ)
	binary.BigEndian.PutUint32(b[4:], magicCookie)
	for i := 8; i < headerSize; i++ {
		b[i] = byte(i)
	}
	for _, a := range attrs {
		b = append(b, a...)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerSize))
	return b
}

// attr builds an attribute with padding.
func attr(typ uint16, v ...byte) []byte {
	b := make([]byte, attrHeader, attrHeader+len(v)+3)
	binary.BigEndian.PutUint16(b, typ)
	binary.BigEndian.PutUint16(b[2:], uint16(len(v)))
	b = append(b, v...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// withFingerprint appends a right FINGERPRINT.
func withFingerprint(b []byte) []byte {
	b = append([]byte(nil), b...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+8-headerSize))
	sum := strict.FingerprintOf(b)
	return append(b, attr(attrFingerprint, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))...)
}
