// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// wireBind is one end of a simulated path; cut loses all that is sent into it.
type wireBind struct {
	*fakeBind
	to  *wireBind
	cut atomic.Bool
	// sent are copies of what was sent, where it is not nil.
	sent chan []byte
}

func (b *wireBind) SetSendWait(time.Duration) {}

func (b *wireBind) Send(_ int, msgs []transport.Message) (int, error) {
	for _, m := range msgs {
		if b.sent != nil {
			b.sent <- bytes.Clone(m.Buf)
		}
		if b.cut.Load() {
			continue
		}
		select {
		case b.to.in <- transport.Message{Buf: bytes.Clone(m.Buf), Addr: outerA}:
		case <-b.to.done:
			return 0, net.ErrClosed
		}
	}
	return len(msgs), nil
}

// pair is two packet paths with n simulated paths between them.
type pair struct {
	a, b   *rig
	ab, ba []*wireBind
	paths  []Path // of a to b
}

func newPair(t testing.TB, n int) *pair {
	p := &pair{a: newRig(t), b: newRig(t)}
	p.b.d.local = map[netip.Addr]struct{}{addrB: {}}
	// b's session is the other half of a's.
	p.b.sess, p.b.other = p.a.other, p.a.sess
	p.b.sess.Peer = &Peer{ID: p.b.peer.ID, Rules: p.b.peer.Rules, Virtual4: addrA}
	p.b.peer = p.b.sess.Peer
	p.b.d.sessions.pages[0].Store(new([256]atomic.Pointer[Session]))
	p.b.d.Add(p.b.sess)
	for range n {
		x, y := &wireBind{fakeBind: newFakeBind()}, &wireBind{fakeBind: newFakeBind()}
		x.to, y.to = y, x
		p.ab, p.ba = append(p.ab, x), append(p.ba, y)
		p.paths = append(p.paths, Path{Bind: p.a.d.AddBind(x, 0), Remote: outerB})
		p.b.d.AddBind(y, 0)
	}
	p.a.d.Activate(p.a.peer, p.a.sess)
	return p
}

func numbered(n uint32, size int) []byte {
	b := udp(addrA, addrB, size)
	binary.BigEndian.PutUint32(b[28:], n)
	return b
}

// expect takes the packets from..to from b's device, in order and nothing else.
func (p *pair) expect(t *testing.T, from, to uint32) {
	t.Helper()
	for want := from; want < to; want++ {
		select {
		case got := <-p.b.dev.out:
			if n := binary.BigEndian.Uint32(got[28:]); n != want {
				t.Fatalf("packet %d, want %d", n, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("packet %d never came", want)
		}
	}
}

// A path dies silently, and the packets that it swallowed come on the next one:
// all, in order, once.
func TestCriticalSurvivesASwitch(t *testing.T) {
	for name, size := range map[string]int{"copied": 20, "kept": 200} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, 2)
			next := uint32(0)
			send := func(n int) {
				for range n {
					b := numbered(next, size)
					if size > 100 { // Critical by its protocol
						b[9], b[20] = packet.ProtoICMP, 8
					}
					p.a.dev.in <- b
					next++
				}
			}
			now := 0
			p.a.d.SetWays(p.a.peer, &Ways{Critical: p.paths[:1]})
			for range 20 {
				start := next
				send(50)
				p.expect(t, start, next)
				since := p.a.d.Now()
				p.ab[now].cut.Store(true)
				lost := next
				send(100)
				until(t, "all are swallowed", func() bool { return p.a.d.Stats().Lanes[packet.Critical].TxPackets == uint64(next) })
				p.ab[now].cut.Store(false)
				now = 1 - now
				p.a.d.SetWays(p.a.peer, &Ways{Critical: p.paths[now : now+1], Since: since})
				p.expect(t, lost, lost+100) // without any new traffic
				send(10)
				p.expect(t, lost+100, next)
			}
			if n := p.b.rx(RxReplay) + p.b.rx(RxCopy); n > 20*50 {
				t.Errorf("%d copies: more was sent again than since the cut", n)
			}
			if n := p.a.tx(TxNoPath); n != 0 {
				t.Errorf("%d packets found no path", n)
			}
		})
	}
}

// With no way at all Critical waits for a second; the oldest are counted.
func TestCriticalWaitsForAWay(t *testing.T) {
	p := newPair(t, 1)
	p.a.d.SetWays(p.a.peer, nil)
	for n := range uint32(100) {
		p.a.dev.in <- numbered(n, 20)
	}
	until(t, "all are kept", func() bool { return p.a.d.Stats().Lanes[packet.Critical].TxPackets == 100 })
	p.a.dev.in <- numbered(0, 500) // Bulk does not wait
	until(t, "bulk is dropped", func() bool { return p.a.tx(TxNoPath) == 1 })
	p.a.d.SetWays(p.a.peer, &Ways{Critical: p.paths, Since: p.a.d.Now()})
	p.expect(t, 0, 100)
	p.a.d.SetWays(p.a.peer, nil)
	for n := range uint32(maxRing + 30) {
		p.a.dev.in <- numbered(n, 20)
	}
	until(t, "the oldest are counted", func() bool { return p.a.tx(TxNoPath) == 31 })
}

// What was asked for twice before the sealing goroutine looked is merged.
func TestWaysAreMerged(t *testing.T) {
	st := newStill(t, 2)
	paths := st.peer.Ways().Critical
	st.d.SetWays(st.peer, &Ways{Critical: paths, Since: 7})
	st.d.SetWays(st.peer, &Ways{Critical: paths, Since: 9})
	if got := st.peer.Ways().Since; got != 0 {
		t.Errorf("since = %d, want that of the first, 0", got)
	}
	st.s.follow(st.peer, st.peer.ways.Load())
	st.d.SetWays(st.peer, &Ways{Critical: paths, Since: 9})
	if got := st.peer.Ways().Since; got != 9 {
		t.Errorf("since = %d, want 9: the former were used", got)
	}
}

// An idle peer keeps no packets.
func TestRingIsFreed(t *testing.T) {
	st := newStill(t, 1)
	for range 300 {
		st.out(t, udp(addrA, addrB, 20))
	}
	if n := st.peer.out.ring.n; n != maxRing {
		t.Errorf("%d packets are kept, want %d", n, maxRing)
	}
	st.s.now = st.d.Now() + ringLife + 1
	st.s.sweep()
	if st.peer.out.ring.slots != nil || len(st.s.ringed) != 0 {
		t.Error("the ring of an idle peer is kept")
	}
}

// Copies are the same bytes; Bulk takes one path for each flow.
func TestLanesChooseTheirPaths(t *testing.T) {
	p := newPair(t, 3)
	for _, b := range p.ab {
		b.sent = make(chan []byte, 64)
		b.cut.Store(true)
	}
	p.a.d.SetWays(p.a.peer, &Ways{Critical: p.paths[:2], Telemetry: p.paths[2:], Bulk: p.paths})
	p.a.d.Track(p.a.peer, p.paths)
	p.a.dev.in <- numbered(1, 20)
	x, y := <-p.ab[0].sent, <-p.ab[1].sent
	if !bytes.Equal(x, y) {
		t.Error("the copies differ")
	}
	telemetry := numbered(2, 400)
	binary.BigEndian.PutUint16(telemetry[22:], 5006)
	p.a.dev.in <- telemetry
	var h wire.Header
	if h.Parse(<-p.ab[2].sent); h.Lane != packet.Telemetry {
		t.Errorf("path 2 got %+v", h)
	}
	for range 9 {
		p.a.dev.in <- numbered(3, 400)
	}
	until(t, "bulk is sent", func() bool { return p.a.d.Stats().Lanes[packet.Bulk].TxPackets == 9 })
	var packets []uint64
	for _, c := range p.a.peer.Paths() {
		packets = append(packets, c.TxPackets)
	}
	used := 0
	for i, base := range []uint64{1, 1, 1} {
		if packets[i] == base+9 {
			used++
		} else if packets[i] != base {
			t.Errorf("path %d sent %d", i, packets[i])
		}
	}
	if used != 1 {
		t.Errorf("one flow used %d paths: %v", used, packets)
	}
}

// When a path goes only its flows move, and they spread.
func TestFlowsStay(t *testing.T) {
	st := newStill(t, 4)
	all := st.peer.ways.Load()
	fewer := &wayset{}
	fewer.lanes[packet.Bulk] = all.lanes[packet.Bulk][:3]
	var counts [4]int
	for flow := range uint32(4000) {
		before, after := all.choose(packet.Bulk, flow)[0], fewer.choose(packet.Bulk, flow)[0]
		counts[before.Bind]++
		if before.Bind != 3 && before.Path != after.Path {
			t.Fatalf("flow %d moved from %v to %v", flow, before.Path, after.Path)
		}
	}
	for i, n := range counts {
		if n < 800 || n > 1200 {
			t.Errorf("path %d has %d of 4000 flows", i, n)
		}
	}
}

func TestTrack(t *testing.T) {
	r := newRig(t)
	from := func(typ wire.Type, body []byte, remote netip.AddrPort) {
		r.bind.in <- transport.Message{Buf: r.from(typ, packet.Critical, body), Addr: remote}
	}
	pong := make([]byte, 8)
	from(wire.TypePathResponse, pong, outerB)
	if c := <-r.ctl; c.Event != EventFirst {
		t.Errorf("got %+v, want the first", c)
	}
	if c := <-r.ctl; c.Event != EventPacket || !bytes.Equal(c.Body, pong) {
		t.Errorf("got %+v, want the response", c)
	}
	known := Path{Remote: outerB}
	r.d.Track(r.peer, []Path{known})
	from(wire.TypePathResponse, pong, outerB)
	<-r.ctl
	if c := r.peer.Paths(); len(c) != 1 || c[0].Path != known || c[0].RxPackets != 1 || c[0].RxBytes != uint64(8+grown) || c[0].LastRecv == 0 {
		t.Errorf("counters = %+v", c)
	}
	other := Path{Remote: outerA}
	from(wire.TypePathResponse, pong, outerA)
	if c := <-r.ctl; c.Event != EventSource || c.Path != other || c.Session != r.sess {
		t.Errorf("got %+v, want news of a source", c)
	}
	<-r.ctl
	r.d.Track(r.peer, []Path{other, known, known})
	from(wire.TypePathResponse, pong, outerA)
	if c := <-r.ctl; c.Event != EventPacket {
		t.Errorf("got %+v from a known path", c)
	}
	if c := r.peer.Paths(); len(c) != 2 || c[0].RxPackets != 1 || c[1].RxPackets != 1 {
		t.Errorf("counters = %+v, want those of the old path kept", c)
	}
	// A bonded copy is told from a replay.
	b := r.from(wire.TypeData, packet.Critical, udp(addrB, addrA, 5))
	for _, remote := range []netip.AddrPort{outerA, outerB, netip.MustParseAddrPort("192.0.2.9:9")} {
		r.bind.in <- transport.Message{Buf: b, Addr: remote}
	}
	until(t, "one copy and one replay", func() bool { return r.rx(RxCopy) == 1 && r.rx(RxReplay) == 1 })
}
