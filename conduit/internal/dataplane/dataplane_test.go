// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"crypto/rand"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/seal"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	addrA  = netip.MustParseAddr("10.66.0.1")
	addrB  = netip.MustParseAddr("10.66.0.2")
	outerA = netip.MustParseAddrPort("192.0.2.1:1000")
	outerB = netip.MustParseAddrPort("192.0.2.2:2000")
)

// fakeDevice hands out what tests put in and keeps what is written.
type fakeDevice struct {
	in, out chan []byte
	done    chan struct{}
}

func newFakeDevice() *fakeDevice {
	return &fakeDevice{in: make(chan []byte, 256), out: make(chan []byte, 256), done: make(chan struct{})}
}

func (d *fakeDevice) Name() string   { return "fake" }
func (d *fakeDevice) MTU() int       { return 1350 }
func (d *fakeDevice) Queues() int    { return 1 }
func (d *fakeDevice) BatchSize() int { return 8 }
func (d *fakeDevice) Close() error   { close(d.done); return nil }

func (d *fakeDevice) Read(_ int, bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-d.in:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	case <-d.done:
		return 0, net.ErrClosed
	}
}

func (d *fakeDevice) Write(_ int, bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		d.out <- bytes.Clone(b[offset:])
	}
	return len(bufs), nil
}

// fakeBind is a socket whose other end is the test.
type fakeBind struct {
	in, out chan transport.Message
	done    chan struct{}
}

func newFakeBind() *fakeBind {
	return &fakeBind{in: make(chan transport.Message, 256), out: make(chan transport.Message, 256), done: make(chan struct{})}
}

func (b *fakeBind) LocalAddr() netip.AddrPort { return outerA }
func (b *fakeBind) Sockets() int              { return 1 }
func (b *fakeBind) BatchSize() int            { return 8 }
func (b *fakeBind) RecvBufSize() int          { return 2048 }
func (b *fakeBind) Close() error              { close(b.done); return nil }

func (b *fakeBind) Receive(_ int, msgs []transport.Message) (int, error) {
	select {
	case m := <-b.in:
		msgs[0].N, msgs[0].Segment, msgs[0].Addr = copy(msgs[0].Buf, m.Buf), m.Segment, m.Addr
		return 1, nil
	case <-b.done:
		return 0, net.ErrClosed
	}
}

func (b *fakeBind) Send(_ int, msgs []transport.Message) (int, error) {
	for _, m := range msgs {
		b.out <- transport.Message{Buf: bytes.Clone(m.Buf), Addr: m.Addr}
	}
	return len(msgs), nil
}

// rig is one running packet path with one peer.
type rig struct {
	d     *Dataplane
	dev   *fakeDevice
	bind  *fakeBind
	peer  *Peer
	want  chan *Peer
	ctl   chan Control
	stun  chan []byte
	other *Session // the peer's end of the session, to seal with
	sess  *Session
	nonce seal.Nonce
	keys  *session.Secrets
}

func netip4(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{
		dev: newFakeDevice(), bind: newFakeBind(),
		want: make(chan *Peer, 16), ctl: make(chan Control, 16), stun: make(chan []byte, 16),
	}
	idA, idB := identity.PeerID{1}, identity.PeerID{2}
	pol := policy.NewEngine(policy.Subject{ID: idA, Name: "a"})
	pol.Apply(policy.Default(), []policy.Subject{{ID: idB, Name: "b"}})
	r.d = New(Config{
		Device: r.dev, Binds: []transport.Bind{r.bind}, Policy: pol, Local: []netip.Addr{addrA},
		STUN:    func(_ int, b []byte, _ netip.AddrPort) { r.stun <- bytes.Clone(b) },
		Want:    func(p *Peer) { r.want <- p },
		Control: func(c Control) { r.ctl <- c },
		Logger:  slog.New(slog.DiscardHandler),
	})
	r.peer = &Peer{ID: idB, Rules: pol.Peer(idB), Virtual4: addrB}
	r.d.SetRoutes(map[netip.Addr]*Peer{addrB: r.peer})
	ours, theirs := &session.Secrets{Suite: testSuite}, &session.Secrets{Suite: testSuite}
	for l := range packet.NumLanes {
		_, _ = rand.Read(ours.Send[l].Key[:])
		_, _ = rand.Read(ours.Recv[l].Key[:])
	}
	theirs.Send, theirs.Recv = ours.Recv, ours.Send
	r.keys = ours
	var err error
	if r.sess, err = NewSession(r.peer, &session.Established{LocalIndex: r.d.Reserve(), RemoteIndex: 77, Secrets: ours}); err != nil {
		t.Fatal(err)
	}
	if r.other, err = NewSession(&Peer{}, &session.Established{LocalIndex: 77, RemoteIndex: r.sess.LocalIndex, Secrets: theirs}); err != nil {
		t.Fatal(err)
	}
	r.d.Add(r.sess)
	r.d.Start()
	t.Cleanup(func() { _ = r.d.Close() })
	return r
}

// ways sends all that a peer is sent on the same paths.
func ways(paths ...Path) *Ways { return &Ways{Critical: paths, Telemetry: paths, Bulk: paths} }

func udp(src, dst netip.Addr, n int) []byte {
	b := make([]byte, 28+n)
	b[0], b[2], b[3], b[9] = 0x45, byte(len(b)>>8), byte(len(b)), 17
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	return b
}

// from seals body as the peer would.
func (r *rig) from(typ wire.Type, lane packet.Lane, body []byte) []byte {
	raw := make([]byte, wire.HeaderLen+len(body)+packet.Tailroom)
	copy(raw[wire.HeaderLen:], body)
	h := wire.Header{Type: typ, Lane: lane, Index: r.other.RemoteIndex}
	b, err := r.other.send[lane].Seal(raw, len(body), &h)
	if err != nil {
		panic(err)
	}
	return b
}

func (r *rig) receive(b []byte) { r.bind.in <- transport.Message{Buf: b, Addr: outerB} }

// until waits for a counter.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never happened: %s", what)
		}
	}
}

func (r *rig) rx(why RxReason) uint64 { return r.d.Stats().RxDropped[why.String()] }
func (r *rig) tx(why TxReason) uint64 { return r.d.Stats().TxDropped[why.String()] }

// The first packet asks for a session, waits for it and then goes out sealed.
func TestHeldUntilSession(t *testing.T) {
	r := newRig(t)
	pkt := udp(addrA, addrB, 200)
	r.dev.in <- pkt
	if p := <-r.want; p != r.peer {
		t.Fatalf("asked for %v", p)
	}
	r.d.SetWays(r.peer, ways(Path{Remote: outerB}))
	r.d.Activate(r.peer, r.sess)
	m := <-r.bind.out
	var h wire.Header
	if !h.Parse(m.Buf) || h.Type != wire.TypeData || h.Lane != packet.Bulk || h.Index != 77 || h.Counter != 0 || m.Addr != outerB {
		t.Errorf("header = %+v to %v", h, m.Addr)
	}
	got, err := r.other.recv[h.Lane].Open(m.Buf, h.Counter, new(seal.Nonce))
	if err != nil || !bytes.Equal(got, pkt) {
		t.Errorf("opened %x, %v; want the packet", got, err)
	}
	r.dev.in <- udp(addrA, addrB, 10) // small: Critical, with a counter of its own
	m = <-r.bind.out
	if h.Parse(m.Buf); h.Lane != packet.Critical || h.Counter != 0 {
		t.Errorf("header = %+v, want critical from 0", h)
	}
}

// A small TCP segment stays behind a large one of its flow that was read in the
// same batch or waits for a session.
func TestNoOvertakingWhileHeld(t *testing.T) {
	r := newRig(t)
	tcp := func(payload int, seq byte) []byte {
		b := udp(addrA, addrB, payload+12)
		b[9], b[32] = 6, 5<<4
		b[27] = seq
		return b
	}
	r.dev.in <- tcp(1000, 1)
	r.dev.in <- tcp(10, 2)
	<-r.want
	until(t, "both are held", func() bool {
		r.peer.mu.Lock()
		defer r.peer.mu.Unlock()
		return len(r.peer.held) == 2
	})
	r.d.SetWays(r.peer, ways(Path{Remote: outerB}))
	r.d.Activate(r.peer, r.sess)
	for want := byte(1); want <= 2; want++ {
		m := <-r.bind.out
		var h wire.Header
		h.Parse(m.Buf)
		got, err := r.other.recv[h.Lane].Open(m.Buf, h.Counter, new(seal.Nonce))
		if err != nil || got[27] != want || h.Lane != packet.Bulk {
			t.Errorf("segment %d in lane %v, want %d in bulk (%v)", got[27], h.Lane, want, err)
		}
	}
	r.dev.in <- tcp(10, 3)
	m := <-r.bind.out
	var h wire.Header
	if h.Parse(m.Buf); h.Lane != packet.Critical {
		t.Errorf("a small segment of a drained flow is in %v", h.Lane)
	}
}

// A command that waited too long is dropped, not delivered late.
func TestStale(t *testing.T) {
	r := newRig(t)
	old, fresh := packet.Get(), packet.Get()
	old.N = copy(old.Raw()[packet.Headroom:], udp(addrA, addrB, 10))
	fresh.N = copy(fresh.Raw()[packet.Headroom:], udp(addrA, addrB, 20))
	now := r.d.Now()
	r.d.admit(nil, old, now-maxHeldAge-1)
	r.d.admit(nil, fresh, now)
	r.d.SetWays(r.peer, ways(Path{Remote: outerB}))
	r.d.Activate(r.peer, r.sess)
	m := <-r.bind.out
	if got := len(m.Buf) - grown; got != 48 {
		t.Errorf("sent a packet of %d bytes, want the fresh one of 48", got)
	}
	if n := r.tx(TxStale); n != 1 {
		t.Errorf("%d packets counted as stale, want 1", n)
	}
}

func TestProbeRate(t *testing.T) {
	for name, l := range map[string]struct {
		gap, slack int64
		burst, sec int
	}{
		"probes":     {probeGap, probeSlack, 200, 400},
		"challenges": {challengeGap, challengeSlack, 50, 100},
		"sources":    {sourceGap, sourceSlack, 5, 20},
		"controls":   {controlGap, controlSlack, 200, 500},
		"misses":     {missGap, missSlack, 10, 20},
	} {
		var r limiter
		n := 0
		for range 1000 {
			if r.allow(5, l.gap, l.slack) {
				n++
			}
		}
		if n != l.burst {
			t.Errorf("%s: %d of 1000 at once, want %d", name, n, l.burst)
		}
		n = 0
		for at := range 1000 {
			if r.allow(5+int64(at)*int64(time.Millisecond), l.gap, l.slack) {
				n++
			}
		}
		if n < l.sec-1 || n > l.sec+1 {
			t.Errorf("%s: %d in a second, want %d", name, n, l.sec)
		}
	}
}

func TestHoldIsBounded(t *testing.T) {
	r := newRig(t)
	for range maxHeld + 5 {
		r.dev.in <- udp(addrA, addrB, 200)
	}
	until(t, "the oldest give way", func() bool { return r.tx(TxNoSession) == 5 })
	r.d.Abandon(r.peer, TxNoSession)
	if n := r.tx(TxNoSession); n != maxHeld+5 {
		t.Errorf("dropped %d, want %d", n, maxHeld+5)
	}
}

func TestInbound(t *testing.T) {
	r := newRig(t)
	good := udp(addrB, addrA, 50)
	first := r.from(wire.TypeData, packet.Telemetry, good)
	r.receive(bytes.Clone(first))
	if got := <-r.dev.out; !bytes.Equal(got, good) {
		t.Errorf("delivered %x, want %x", got, good)
	}
	steps := []struct {
		name string
		b    []byte
		why  RxReason
	}{
		{"replay", first, RxReplay},
		{"spoofed source", r.from(wire.TypeData, packet.Bulk, udp(netip.MustParseAddr("10.66.0.9"), addrA, 1)), RxSource},
		{"foreign destination", r.from(wire.TypeData, packet.Bulk, udp(addrB, netip.MustParseAddr("10.66.0.9"), 1)), RxSource},
		{"no IP packet", r.from(wire.TypeData, packet.Bulk, []byte("nonsense")), RxMalformed},
		{"first byte", []byte{0x81, 40: 0}, RxUnknown},
		{"unknown type", r.from(12, packet.Critical, good), RxType},
		{"short", append([]byte{0x80, 0x44}, make([]byte, 20)...), RxMalformed},
	}
	forged := r.from(wire.TypeData, packet.Bulk, good)
	forged[len(forged)-1] ^= 1
	steps = append(steps, struct {
		name string
		b    []byte
		why  RxReason
	}{"forged", forged, RxForged})
	stale := r.from(wire.TypeData, packet.Bulk, good)
	stale[7] ^= 1 // same slot, other session
	steps = append(steps, struct {
		name string
		b    []byte
		why  RxReason
	}{"stale index", stale, RxIndex})
	for _, s := range steps {
		before := r.rx(s.why)
		r.receive(s.b)
		until(t, s.name+" is dropped as "+s.why.String(), func() bool { return r.rx(s.why) == before+1 })
	}
	select {
	case p := <-r.dev.out:
		t.Errorf("delivered %x", p)
	default:
	}
	if len(r.bind.out) != 0 {
		t.Error("something was answered")
	}
}

func TestProbeAndControl(t *testing.T) {
	r := newRig(t)
	probe := wire.Probe{Path: 3, Seq: 4, Sent: 5}
	r.receive(r.from(wire.TypeProbe, packet.Critical, probe.Append(nil)))
	m := <-r.bind.out // answered on the way it came, though no path is set
	var h wire.Header
	h.Parse(m.Buf)
	body, err := r.other.recv[h.Lane].Open(m.Buf, h.Counter, new(seal.Nonce))
	var ack wire.ProbeAck
	if err != nil || h.Type != wire.TypeProbeAck || ack.Parse(body) != nil || ack.Probe != probe || m.Addr != outerB {
		t.Errorf("answer = %+v %+v to %v, %v", h, ack, m.Addr, err)
	}
	if c := <-r.ctl; c.Event != EventFirst || c.Session != r.sess {
		t.Errorf("control = %+v, want the session's first packet", c)
	}
	if c := <-r.ctl; c.Type != wire.TypeProbe || c.Path.Remote != outerB {
		t.Errorf("control = %+v, want the probe", c)
	}
	r.receive(r.from(wire.TypeClose, packet.Critical, (&wire.Close{Reason: 1}).Append(nil)))
	if c := <-r.ctl; c.Type != wire.TypeClose || c.Session != r.sess || c.Path.Remote != outerB {
		t.Errorf("control = %+v", c)
	}
	stun := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...)
	r.receive(stun)
	if got := <-r.stun; !bytes.Equal(got, stun) {
		t.Errorf("ICE got %x", got)
	}
	// A coalesced run is split by its segment size.
	run := append(r.from(wire.TypeClose, packet.Critical, []byte{1, 0, 0, 0}), stun...)
	r.bind.in <- transport.Message{Buf: run, Segment: len(run) - len(stun), Addr: outerB}
	if c, s := <-r.ctl, <-r.stun; c.Type != wire.TypeClose || !bytes.Equal(s, stun) {
		t.Errorf("run gave %v and %x", c.Type, s)
	}
}

func TestIndexes(t *testing.T) {
	r := newRig(t)
	seen := map[uint32]bool{}
	var all []uint32
	for range 2000 {
		i := r.d.Reserve()
		if i == 0 || i == wire.ReservedIndex || seen[i>>16] {
			t.Fatalf("index %08x", i)
		}
		seen[i>>16] = true
		all = append(all, i)
	}
	for _, i := range all {
		r.d.Release(i)
	}
	if s := r.d.sessions.lookup(r.sess.LocalIndex); s != r.sess {
		t.Error("the live session is lost")
	}
	r.d.Remove(r.sess)
	if s := r.d.sessions.lookup(r.sess.LocalIndex); s != nil {
		t.Error("a removed session is still found")
	}
}
