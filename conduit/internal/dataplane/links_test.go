// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// stuckBind is a socket without room until it is freed. Told not to wait it
// returns at once; else it blocks, as long as it is stuck.
type stuckBind struct {
	*fakeBind
	mu   sync.Mutex // guards wait
	wait time.Duration
	free chan struct{}
	got  atomic.Int32
}

func newStuckBind() *stuckBind {
	return &stuckBind{fakeBind: newFakeBind(), free: make(chan struct{})}
}

func (b *stuckBind) Send(lane int, msgs []transport.Message) (int, error) {
	b.got.Add(1)
	b.mu.Lock()
	wait := b.wait
	b.mu.Unlock()
	if wait < 0 {
		select {
		case <-b.free:
		default:
			return 0, &transport.SendError{Left: len(msgs)}
		}
	}
	select {
	case <-b.free:
	case <-b.done:
		return 0, errors.New("closed")
	}
	return b.fakeBind.Send(lane, msgs)
}

// patientBind can be told not to wait.
type patientBind struct{ *stuckBind }

func (b patientBind) SetSendWait(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wait = d
}

// While one uplink's socket is full, Critical goes on through the other, and what
// is for the full one waits in its own line, Critical first.
func TestStuckBindHoldsUpItselfOnly(t *testing.T) {
	for _, patient := range []bool{true, false} {
		name := "told not to wait"
		if !patient {
			name = "waits as it likes"
		}
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			stuck, open := newStuckBind(), &wireBind{fakeBind: newFakeBind(), sent: make(chan []byte, 1024)}
			open.cut.Store(true)
			var b transport.Bind = stuck
			if patient {
				b = patientBind{stuck}
			}
			one, two := Path{Bind: r.d.AddBind(b, 0), Remote: outerB}, Path{Bind: r.d.AddBind(open, 0), Remote: outerB}
			r.d.SetWays(r.peer, &Ways{Critical: []Path{one, two}, Bulk: []Path{one}})
			r.d.Activate(r.peer, r.sess)
			for n := range uint32(200) {
				r.dev.in <- numbered(n, 500) // Bulk for the stuck one
			}
			until(t, "the socket is full", func() bool { return stuck.got.Load() > 0 })
			start := time.Now()
			for n := range uint32(100) {
				r.dev.in <- numbered(n, 20)
				<-open.sent
			}
			if d := time.Since(start); d > time.Second { // one wait of 100 ms each would be 10 s
				t.Errorf("100 Critical packets took %v beside a stuck socket", d)
			}
			if q := r.d.Stats().Lanes[packet.Bulk].Queue; q.Depth < 100 {
				t.Errorf("%d Bulk packets wait in their lane, want most of 200", q.Depth)
			}
			// STUN waits in line too, rather than for the pump's lock.
			r.d.SendSTUN(one.Bind, make([]byte, 20), outerB)
			r.dev.in <- numbered(100, 20)
			<-open.sent
			close(stuck.free)
			// All comes out; Critical overtakes what was not yet being sent.
			var last [packet.NumLanes]int64
			first, bulk := -1, 0
			stun := 0
			for i := range 302 {
				m := <-stuck.out
				if transport.Demux(m.Buf) == transport.KindSTUN {
					stun++
					continue
				}
				var h wire.Header
				h.Parse(m.Buf)
				if int64(h.Counter)+1 != last[h.Lane]+1 {
					t.Fatalf("%v packet %d after %d", h.Lane, h.Counter, last[h.Lane]-1)
				}
				last[h.Lane]++
				if h.Lane == packet.Critical && first < 0 {
					first, bulk = i, int(last[packet.Bulk])
				}
			}
			if stun != 1 {
				t.Errorf("%d of 1 STUN datagram", stun)
			}
			if first > pumpBatch || bulk > pumpBatch {
				t.Errorf("the first Critical packet came after %d", first)
			}
			if n := r.tx(TxSend) + r.tx(TxNoPath); n != 0 {
				t.Errorf("%d packets were dropped", n)
			}
		})
	}
}

// What waits for a stuck socket is bounded, and the oldest goes first.
func TestParkedCriticalIsBounded(t *testing.T) {
	r := newRig(t)
	stuck := newStuckBind()
	way := []Path{{Bind: r.d.AddBind(patientBind{stuck}, 0), Remote: outerB}}
	r.d.SetWays(r.peer, &Ways{Critical: way})
	r.d.Activate(r.peer, r.sess)
	const n = maxParkedCritical + 100
	for i := range uint32(n) {
		r.dev.in <- numbered(i, 20)
	}
	until(t, "the oldest are dropped", func() bool { return r.tx(TxSend) >= 100-2*pumpBatch && r.d.Stats().Lanes[0].TxPackets == n })
	r.d.RemoveBind(way[0].Bind)
	until(t, "the rest goes with the socket", func() bool { return r.tx(TxSend)+r.tx(TxNoPath) >= n })
}

func TestBindsComeAndGo(t *testing.T) {
	p := newPair(t, 2)
	p.a.d.SetWays(p.a.peer, &Ways{Critical: p.paths})
	p.a.dev.in <- numbered(0, 20)
	p.expect(t, 0, 1)
	// A packet counts when Send has returned, which may be after its arrival.
	size := uint64(len(numbered(0, 20)) + grown)
	sent := func(path Path) uint64 {
		tx, _ := p.a.d.BindCounters(path.Bind)
		return tx
	}
	until(t, "both sends are counted", func() bool { return sent(p.paths[0]) == size && sent(p.paths[1]) == size })
	p.a.d.RemoveBind(p.paths[0].Bind)
	p.a.d.RemoveBind(p.paths[0].Bind)
	p.a.d.RemoveBind(99)
	select {
	case <-p.ab[0].done:
	default:
		t.Error("the removed bind is open")
	}
	p.a.dev.in <- numbered(1, 20)
	p.expect(t, 1, 2) // on the other path
	if n := p.a.tx(TxNoPath); n != 1 {
		t.Errorf("%d counted as without path, want 1", n)
	}
	if tx, rx := p.a.d.BindCounters(p.paths[0].Bind); tx != 0 || rx != 0 {
		t.Errorf("a bind that is gone counts %d and %d", tx, rx)
	}
	until(t, "the second is counted", func() bool { return sent(p.paths[1]) == 2*size })
	if got := p.a.d.Stats().WireTx; got != 3*size {
		t.Errorf("sent %d bytes in all, want %d", got, 3*size)
	}
	if i := p.a.d.AddBind(newFakeBind(), 0); i != p.paths[1].Bind+1 {
		t.Errorf("index %d was used before", i)
	}
	// A new one receives at once.
	fresh := newFakeBind()
	i := p.b.d.AddBind(fresh, 0)
	fresh.in <- transport.Message{Buf: p.b.from(wire.TypePathResponse, packet.Critical, make([]byte, 8)), Addr: outerA}
	for c := range p.b.ctl {
		if c.Type == wire.TypePathResponse {
			if c.Path != (Path{i, outerA}) {
				t.Errorf("came on %v", c.Path)
			}
			break
		}
	}
	until(t, "its bytes are counted", func() bool {
		_, rx := p.b.d.BindCounters(i)
		return rx == uint64(8+grown)
	})
	_ = p.a.d.Close()
	late := newFakeBind()
	p.a.d.AddBind(late, 0)
	<-late.done
}

// refusingBind takes nothing.
type refusingBind struct{ *fakeBind }

func (refusingBind) Send(_ int, msgs []transport.Message) (int, error) {
	e := &transport.SendError{}
	for i := range msgs {
		e.Refused = append(e.Refused, transport.Refusal{Index: i, Errno: syscall.ENETUNREACH})
	}
	return 0, e
}

func TestRefused(t *testing.T) {
	r := newRig(t)
	told := make(chan Path, 1)
	r.d.cfg.Refused = func(to Path, why transport.Refusal) {
		if why.Errno == syscall.ENETUNREACH {
			told <- to
		}
	}
	way := Path{Bind: r.d.AddBind(refusingBind{newFakeBind()}, 0), Remote: outerB}
	r.d.SetWays(r.peer, &Ways{Critical: []Path{way}})
	r.d.Activate(r.peer, r.sess)
	r.dev.in <- numbered(0, 20)
	if got := <-told; got != way {
		t.Errorf("told of %v, want %v", got, way)
	}
	if n := r.tx(TxSend); n != 1 {
		t.Errorf("%d counted, want 1", n)
	}
}
