// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// control awaits an event.
func (r *rig) control(t *testing.T, typ wire.Type) Control {
	t.Helper()
	for {
		select {
		case c := <-r.ctl:
			if c.Event == EventPacket && c.Type == typ {
				return c
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("no event of type %d", typ)
		}
	}
}

// open opens what the path under test sent.
func (r *rig) open(t *testing.T, m transport.Message) (wire.Header, []byte) {
	t.Helper()
	var h wire.Header
	if !h.Parse(m.Buf) {
		t.Fatalf("sent %x", m.Buf)
	}
	body, err := r.other.recv[h.Lane].Open(m.Buf, h.Counter, &r.nonce)
	if err != nil {
		t.Fatal(err)
	}
	return h, body
}

func TestChallenge(t *testing.T) {
	r := newRig(t)
	challenge := []byte("12345678")
	r.receive(r.from(wire.TypePathChallenge, packet.Critical, challenge))
	m := <-r.bind.out
	if h, body := r.open(t, m); h.Type != wire.TypePathResponse || string(body) != string(challenge) || m.Addr != outerB {
		t.Errorf("answered %v %x to %v", h.Type, body, m.Addr)
	}
	r.control(t, wire.TypePathChallenge)
	for range 200 {
		r.receive(r.from(wire.TypePathChallenge, packet.Critical, challenge))
		select {
		case <-r.ctl:
		default:
		}
	}
	r.receive(r.from(wire.TypePathChallenge, packet.Telemetry, challenge))
	until(t, "control outside of Critical is refused", func() bool { drain(r.ctl); return r.rx(RxMalformed) == 1 })
	if r.rx(RxChallengeRate) == 0 {
		t.Error("any number of challenges is answered")
	}
	r.receive(r.from(wire.TypePathResponse, packet.Critical, []byte("too short for one")))
	r.control(t, wire.TypePathResponse) // the engine's to judge
	for _, typ := range []wire.Type{wire.TypeRekey, wire.TypeSignal} {
		r.receive(r.from(typ, packet.Critical, []byte("fragment")))
		if c := r.control(t, typ); string(c.Body) != "fragment" {
			t.Errorf("body = %q", c.Body)
		}
	}
}

func drain[T any](c chan T) {
	for {
		select {
		case <-c:
		default:
			return
		}
	}
}

func TestHandshakeDatagrams(t *testing.T) {
	r := newRig(t)
	b := make([]byte, 100)
	(&wire.Header{Type: wire.TypeHandshake}).Put(b)
	r.receive(b)
	until(t, "dropped without a hook", func() bool { return r.rx(RxType) == 1 })
	got := make(chan Path, 4096)
	hook := func(from Path, b []byte) {
		if len(b) == 100 {
			got <- from
		}
	}
	rd := &reader{d: r.d, link: r.d.list()[0], now: 5}
	r.d.cfg.Handshake = hook
	for range 2200 {
		rd.datagram(b, Path{Bind: 3, Remote: outerB})
	}
	if n := len(got); n != 2000 {
		t.Errorf("%d of 2200 at once, want 2000", n)
	}
	if p := <-got; p != (Path{3, outerB}) {
		t.Errorf("came on %v", p)
	}
	if n := r.rx(RxHandshakeRate); n != 200 {
		t.Errorf("%d over the rate, want 200", n)
	}
	rd.now += int64(time.Second)
	binary.BigEndian.PutUint32(b[4:], r.sess.LocalIndex)
	rd.datagram(b, Path{})
	if r.rx(RxMalformed) != 1 {
		t.Error("took one with an index")
	}
	r.d.SendRaw(b, Path{Bind: 0, Remote: outerA})
	if m := <-r.bind.out; string(m.Buf) != string(b) || m.Addr != outerA {
		t.Errorf("sent %x to %v", m.Buf, m.Addr)
	}
	drain(got)
}

func TestExpire(t *testing.T) {
	r := newRig(t)
	r.d.SetWays(r.peer, ways(Path{Remote: outerB}))
	r.d.Activate(r.peer, r.sess)
	r.dev.in <- numbered(0, 20)
	<-r.bind.out
	r.sess.Expire(r.d.Now())
	r.dev.in <- numbered(1, 20)
	r.d.SendControl(r.sess, wire.TypeClose, make([]byte, 4))
	until(t, "nothing is sealed", func() bool { return r.tx(TxNoSession) == 2 })
	r.receive(r.from(wire.TypeData, packet.Critical, udp(addrB, addrA, 5)))
	until(t, "nothing is opened", func() bool { return r.rx(RxExpired) == 1 })
	r.sess.Expire(r.d.Now() + int64(time.Hour))
	r.dev.in <- numbered(2, 20)
	<-r.bind.out
}

// A control packet names its paths, or takes all of Critical's.
func TestSendControl(t *testing.T) {
	r := newRig(t)
	other := newFakeBind()
	one, two := Path{Bind: 0, Remote: outerB}, Path{Bind: r.d.AddBind(other, 0), Remote: outerB}
	r.d.SendControl(r.sess, wire.TypeSignal, []byte("lost"))
	until(t, "no path", func() bool { return r.tx(TxNoPath) == 1 })
	r.d.SetWays(r.peer, &Ways{Critical: []Path{one, two}})
	r.d.SendControl(r.sess, wire.TypeSignal, []byte("both"))
	x, y := <-r.bind.out, <-other.out
	if string(x.Buf) != string(y.Buf) {
		t.Error("the copies differ")
	}
	r.d.SendControl(r.sess, wire.TypeProbe, make([]byte, 1200), two)
	if h, body := r.open(t, <-other.out); h.Type != wire.TypeProbe || len(body) != 1200 {
		t.Errorf("sent %+v with %d bytes", h, len(body))
	}
	if len(r.bind.out) != 0 {
		t.Error("sent on the wrong path")
	}
}

func TestForward(t *testing.T) {
	r := newRig(t)
	third := &Peer{ID: identity.PeerID{3}}
	inner := make([]byte, 64)
	put := func(h wire.Header) []byte {
		h.Put(inner)
		return wire.AppendRelayHeader(nil, &third.ID)
	}
	forward := make(chan *Peer, 16)
	r.d.cfg.Forward = func(from *Peer, to identity.PeerID) *Peer {
		if from != r.peer || to != third.ID {
			return nil
		}
		forward <- from
		return third
	}
	// To the third peer we have a session too: with the same keys, for the test.
	sess, err := NewSession(third, &session.Established{LocalIndex: r.d.Reserve(), RemoteIndex: 99, Secrets: r.keys})
	if err != nil {
		t.Fatal(err)
	}
	r.d.Activate(third, sess)
	r.d.SetWays(third, &Ways{Telemetry: []Path{{Remote: outerA}}})
	body := append(put(wire.Header{Type: wire.TypeData, Lane: packet.Telemetry, Index: 4242}), inner...)
	r.receive(r.from(wire.TypeRelay, packet.Telemetry, body))
	m := <-r.bind.out
	h, out := r.open(t, m)
	if h.Type != wire.TypeRelay || h.Lane != packet.Telemetry || h.Index != 99 || m.Addr != outerA {
		t.Errorf("forwarded as %+v to %v", h, m.Addr)
	}
	if string(out[:32]) != string(r.peer.ID[:]) || string(out[32:]) != string(inner) {
		t.Error("the packet changed, or its sender is not named")
	}
	for name, c := range map[string]struct {
		h    wire.Header
		lane packet.Lane
		to   identity.PeerID
		cut  int
	}{
		"relay in relay": {wire.Header{Type: wire.TypeRelay, Lane: packet.Telemetry, Index: 1}, packet.Telemetry, third.ID, 0},
		"other lane":     {wire.Header{Type: wire.TypeData, Lane: packet.Bulk, Index: 1}, packet.Telemetry, third.ID, 0},
		"to who may not": {wire.Header{Type: wire.TypeData, Lane: packet.Telemetry, Index: 1}, packet.Telemetry, identity.PeerID{4}, 0},
		"cut":            {wire.Header{Type: wire.TypeData, Lane: packet.Telemetry, Index: 1}, packet.Telemetry, third.ID, 33},
		"empty":          {wire.Header{Type: wire.TypeData, Lane: packet.Telemetry, Index: 1}, packet.Telemetry, third.ID, 96},
	} {
		put(c.h)
		b := append(c.to[:], inner...)
		before := r.rx(RxRelay)
		r.receive(r.from(wire.TypeRelay, c.lane, b[:len(b)-c.cut]))
		until(t, name+" is dropped", func() bool { return r.rx(RxRelay) == before+1 })
	}
	if len(r.bind.out) != 0 {
		t.Error("one was forwarded")
	}
}

// What comes through a relay is opened as if it had come on the path that
// Relayed names.
func TestRelayed(t *testing.T) {
	p := newPair(t, 1) // a's relay is the peer of p.b's session; a's peer is behind it
	r := p.b
	via := Path{Bind: 7, Remote: outerB}
	far := newRig(t)
	for far.sess.LocalIndex>>16 == r.sess.LocalIndex>>16 { // both rigs chose one slot
		far = newRig(t)
	}
	// far's session, moved into r's table: the peer behind the relay.
	far.sess.Peer.ID = identity.PeerID{9}
	if page := &r.d.sessions.pages[far.sess.LocalIndex>>24]; page.Load() == nil {
		page.Store(new([256]atomic.Pointer[Session]))
	}
	r.d.Add(far.sess)
	relay := r.sess.Peer
	r.d.cfg.Relayed = func(by *Peer, from identity.PeerID) (Path, bool) {
		return via, by == relay && from != identity.PeerID{7}
	}
	wrap := func(id identity.PeerID, b []byte) []byte { return append(id[:], b...) }
	send := func(lane packet.Lane, body []byte) {
		p.ba[0].in <- transport.Message{Buf: r.from(wire.TypeRelay, lane, body), Addr: outerA}
	}
	send(packet.Critical, wrap(identity.PeerID{9}, far.from(wire.TypePathResponse, packet.Critical, make([]byte, 8))))
	if c := r.control(t, wire.TypePathResponse); c.Path != via || c.Session != far.sess {
		t.Errorf("got %+v", c)
	}
	far.sess.Peer.Virtual4 = netip4(10, 66, 0, 9)
	inner := udp(netip4(10, 66, 0, 9), addrB, 300)
	send(packet.Bulk, wrap(identity.PeerID{9}, far.from(wire.TypeData, packet.Bulk, inner)))
	if got := <-r.dev.out; string(got) != string(inner) {
		t.Errorf("delivered %x", got)
	}
	for name, b := range map[string][]byte{
		"a sender that may not":              wrap(identity.PeerID{7}, far.from(wire.TypeData, packet.Bulk, inner)),
		"a sender that is not the session's": wrap(identity.PeerID{8}, far.from(wire.TypeData, packet.Bulk, inner)),
		"a relay in it":                      wrap(identity.PeerID{9}, far.from(wire.TypeRelay, packet.Bulk, wrap(identity.PeerID{9}, far.from(wire.TypeData, packet.Bulk, inner)))),
	} {
		before := r.rx(RxRelay)
		send(packet.Bulk, b)
		until(t, name+" is dropped", func() bool { return r.rx(RxRelay) == before+1 })
	}
}
