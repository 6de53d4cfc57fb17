// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// sinkBind takes everything at once, and receives nothing.
type sinkBind struct{ *fakeBind }

func (sinkBind) SetSendWait(time.Duration) {}

func (sinkBind) Send(_ int, msgs []transport.Message) (int, error) { return len(msgs), nil }

// still is a packet path that does not run, with a session and n paths, and its
// sealing goroutine's state.
type still struct {
	*rig
	s     *sender
	ready []*packet.Buf
}

func newStill(t testing.TB, paths int) *still {
	r := newRig(t)
	_ = r.d.Close()
	r.d.closed = false
	r.d.started = false
	list := make([]Path, paths)
	for i := range list {
		list[i] = Path{Bind: r.d.AddBind(sinkBind{newFakeBind()}, 0), Remote: outerB}
	}
	r.d.Track(r.peer, list)
	r.d.SetWays(r.peer, ways(list...))
	r.d.Activate(r.peer, r.sess)
	r.peer.lastTx.Store(1)
	return &still{rig: r, s: &sender{d: r.d}, ready: make([]*packet.Buf, 0, 4)}
}

// out moves one packet from the device to the sockets.
func (st *still) out(tb testing.TB, pkt []byte) {
	b := packet.Get()
	b.N = copy(b.Raw()[packet.Headroom:], pkt)
	st.ready = st.d.admit(st.ready[:0], b, 2)
	if len(st.ready) != 1 {
		tb.Fatal("not admitted")
	}
	st.d.classify.Left(b.FlowHash, b.Lane)
	st.s.batch(st.ready)
}

// Neither direction allocates per packet.
func TestAllocs(t *testing.T) {
	for paths := 1; paths <= 2; paths++ {
		st := newStill(t, paths)
		for name, size := range map[string]int{"critical": 50, "bulk": 1000} {
			pkt := udp(addrA, addrB, size)
			for range 2 * maxRing {
				st.out(t, pkt)
			}
			if n := testing.AllocsPerRun(500, func() { st.out(t, pkt) }); n != 0 {
				t.Errorf("%s on %d paths: outbound allocates %v times per packet, want 0", name, paths, n)
			}
		}
		if lost := st.tx(TxNoPath) + st.tx(TxNoSession); lost != 0 {
			t.Errorf("%d packets were dropped", lost)
		}
		rd := &reader{d: st.d, link: st.d.list()[0], now: 2, plain: make([][]byte, 0, 8)}
		raw := make([]byte, 2048)
		good := udp(addrB, addrA, 1000)
		from := Path{Bind: 0, Remote: outerB}
		st.sess.lastRecv.Store(1)
		for _, remote := range []netip.AddrPort{outerB, outerA} { // tracked and not
			from.Remote = remote
			st.peer.sources.next.Store(1 << 60)
			n := testing.AllocsPerRun(500, func() {
				copy(raw[wire.HeaderLen:], good)
				h := wire.Header{Type: wire.TypeData, Lane: packet.Bulk, Index: st.other.RemoteIndex}
				d, err := st.other.send[packet.Bulk].Seal(raw, len(good), &h)
				if err != nil {
					t.Fatal(err)
				}
				rd.datagram(d, from)
				if len(rd.plain) != 1 {
					t.Fatal("not delivered")
				}
				rd.plain = rd.plain[:0]
			})
			if n != 0 {
				t.Errorf("inbound allocates %v times per packet, want 0", n)
			}
		}
	}
}

// BenchmarkOutbound is a packet's way from the device to the socket, without
// either.
func BenchmarkOutbound(b *testing.B) {
	for name, c := range map[string]struct{ paths, size int }{"bulk": {1, 1322}, "critical": {1, 50}, "critical/2": {2, 50}} {
		b.Run(name, func(b *testing.B) {
			st := newStill(b, c.paths)
			pkt := udp(addrA, addrB, c.size)
			b.SetBytes(int64(len(pkt)))
			b.ReportAllocs()
			for b.Loop() {
				st.out(b, pkt)
			}
		})
	}
}
