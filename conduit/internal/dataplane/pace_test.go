// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// listener is a strategy that remembers what it was told.
type listener struct {
	rate float64

	mu      sync.Mutex // guards the rest
	sent    []congestion.Sent
	reports []congestion.Report
}

func (l *listener) Sent(_ time.Duration, s congestion.Sent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent, s)
}

func (l *listener) Report(_ time.Duration, r *congestion.Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reports = append(l.reports, *r)
}

// Learns makes it one that peers without reports are not paced by.
func (l *listener) Learns() {}

func (l *listener) last() (s congestion.Sent, r congestion.Report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sent) > 0 {
		s = l.sent[len(l.sent)-1]
	}
	if len(l.reports) > 0 {
		r = l.reports[len(l.reports)-1]
	}
	return s, r
}

func (l *listener) total() (packets, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sent {
		packets += s.Packets
		bytes += s.Bytes
	}
	return packets, bytes
}

func (l *listener) Tick(time.Duration, int) int               { return 0 }
func (l *listener) TrainSent(time.Duration, congestion.Train) {}
func (l *listener) Rate(time.Duration) float64                { return l.rate }
func (l *listener) State(time.Duration) congestion.State {
	return congestion.State{Name: "listener", Rate: l.rate}
}

func (p *pair) pace(l congestion.Strategy) {
	p.a.d.cfg.Pacing = func(*Peer, Path) congestion.Strategy { return l }
}

func (p *pair) caps(c uint32) {
	p.a.sess.caps, p.b.sess.caps = c, c
	p.a.peer.mute.Store(c&wire.CapReport == 0)
}

func (p *pair) stat(i int) *pathStat { return p.a.peer.statOf(p.paths[i]) }
func (p *pair) back(i int) Path      { return Path{Bind: p.paths[i].Bind, Remote: outerA} }
func (p *pair) track(paths ...Path)  { p.a.d.Track(p.a.peer, paths) }

// single makes both ends know one path.
func (p *pair) single() {
	p.paths[0].Remote = outerA // as wireBind says
	p.track(p.paths[0])
	p.b.d.Track(p.b.peer, []Path{p.back(0)})
	p.a.d.SetWays(p.a.peer, ways(p.paths[0]))
	p.b.d.SetWays(p.b.peer, ways(p.back(0)))
	p.b.d.Activate(p.b.peer, p.b.sess)
}

// What the peer's reports count is what the strategy was told of, to the byte, and
// they name its newest packet.
func TestReports(t *testing.T) {
	p := newPair(t, 1)
	l := &listener{rate: math.Inf(1)}
	p.pace(l)
	p.caps(wire.CapReport)
	p.single()
	for i := range uint32(60) {
		p.a.dev.in <- numbered(i, 500)
	}
	p.expect(t, 0, 60)
	until(t, "a report of all packets", func() bool {
		packets, size := l.total()
		s, r := l.last()
		return r.Packets == uint64(packets) && r.Bytes == uint64(size) && packets >= 60 &&
			r.Session == s.Session && r.Lane == s.Lane && r.Counter == s.Last
	})
	if s, _ := l.last(); s.Session != p.a.sess.RemoteIndex {
		t.Errorf("the strategy was told of session %d, want %d", s.Session, p.a.sess.RemoteIndex)
	}
	if _, r := l.last(); r.Samples == 0 || r.Copies != 0 {
		t.Errorf("report %+v", r)
	}
}

// A peer that does not know reports gets none.
func TestNoReports(t *testing.T) {
	p := newPair(t, 1)
	l := &listener{rate: math.Inf(1)}
	p.pace(l)
	p.single()
	for i := range uint32(10) {
		p.a.dev.in <- numbered(i, 500)
	}
	p.expect(t, 0, 10)
	if st := p.b.peer.statOf(p.back(0)); st.receiver.Load() != nil || st.due.Load() != noReport {
		t.Error("the receiver prepares a report for a peer that takes none")
	}
	if packets, _ := l.total(); packets != 0 {
		t.Errorf("%d packets are paced, which nobody will ever report", packets)
	}
}

// On a path that loses much each Critical packet leaves three times, byte for byte
// the same, and arrives once.
func TestCopies(t *testing.T) {
	for name, size := range map[string]int{"small": 20, "large": 900} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, 1)
			l := &listener{rate: math.Inf(1)}
			p.pace(l)
			p.caps(wire.CapReport)
			p.single()
			p.ab[0].sent = make(chan []byte, 256)
			p.stat(0).copies.Store(3)
			const n = 10
			for i := range uint32(n) {
				b := numbered(i, size)
				b[9], b[20] = packet.ProtoICMP, 8
				p.a.dev.in <- b
			}
			p.expect(t, 0, n)
			until(t, "two copies of each", func() bool { return p.a.d.Stats().Copies == 2*n })
			seen := map[string]int{}
			for range 3 * n {
				select {
				case b := <-p.ab[0].sent:
					seen[string(b)]++
				case <-time.After(5 * time.Second):
					t.Fatalf("%d packets left, want %d", len(seen), 3*n)
				}
			}
			if len(seen) != n {
				t.Errorf("%d different datagrams, want %d", len(seen), n)
			}
			for _, k := range seen {
				if k != 3 {
					t.Errorf("a datagram left %d times, want 3", k)
				}
			}
			until(t, "the copies are counted as such", func() bool { return p.b.d.Stats().RxDropped["copy"] == 2*n })
			select {
			case b := <-p.b.dev.out:
				t.Errorf("%d came a second time", binary.BigEndian.Uint32(b[28:]))
			default:
			}
			until(t, "the strategy is told of them", func() bool {
				copies := 0
				l.mu.Lock()
				defer l.mu.Unlock()
				for _, s := range l.sent {
					copies += s.Copies
				}
				return copies == 2*n
			})
		})
	}
}

// Beside a second path nothing is sent twice on one.
func TestNoCopiesOnTwoPaths(t *testing.T) {
	p := newPair(t, 2)
	p.track(p.paths...)
	p.a.d.SetWays(p.a.peer, ways(p.paths...))
	p.stat(0).copies.Store(3)
	p.stat(1).copies.Store(3)
	for i := range uint32(5) {
		p.a.dev.in <- numbered(i, 20)
	}
	p.expect(t, 0, 5)
	p.a.d.Flush(time.Second)
	if n := p.a.d.Stats().Copies; n != 0 || p.a.peer.out.copies.pending {
		t.Errorf("%d copies", n)
	}
}

func TestLossy(t *testing.T) {
	var st pathStat
	now := int64(0)
	for _, step := range []struct {
		after   time.Duration
		loss    float64
		samples int
		want    int32
	}{
		{0, 0.5, minLossSamples - 1, 0}, // too few to say
		{0, 0, minLossSamples, 1},
		{0, 0.006, 200, 2},
		{0, 0.03, 200, 3},
		{time.Second, 0.015, 200, 3},
		{time.Duration(calmFor * 2), 0.015, 200, 3}, // still more than half of what it takes
		{time.Second, 0.005, 200, 3},
		{time.Duration(calmFor + 1), 0.005, 200, 2},
		{time.Duration(calmFor + 1), 0.004, 200, 2}, // more than half
		{time.Duration(calmFor + 1), 0.001, 200, 1},
		{0, 0.2, 200, 3},
	} {
		now += int64(step.after)
		st.lossy(&congestion.State{Loss: step.loss, LossSamples: step.samples}, now)
		if got := st.copies.Load(); got != step.want {
			t.Fatalf("loss %v at %v: %d copies, want %d", step.loss, time.Duration(now), got, step.want)
		}
	}
}

// backlogBind is a socket that tells of a queue behind it.
type backlogBind struct {
	*wireBind
	queued atomic.Int64
}

func (b *backlogBind) Queued() int { return int(b.queued.Load()) }

// While too much waits in our own interface Bulk stays in its lane, and Critical
// does not.
func TestGate(t *testing.T) {
	p := newPair(t, 0)
	x, y := &wireBind{fakeBind: newFakeBind()}, &wireBind{fakeBind: newFakeBind()}
	x.to, y.to = y, x
	b := &backlogBind{wireBind: x}
	b.queued.Store(1 << 20)
	p.pace(congestion.NewFixed(2.5e6))
	p.paths = []Path{{Bind: p.a.d.AddBind(b, 0), Remote: outerB}}
	p.b.d.AddBind(y, 0)
	p.caps(wire.CapReport)
	p.single()
	bulk := func(i uint32) { p.a.dev.in <- numbered(i, 500) }
	bulk(0) // which finds the queue
	p.expect(t, 0, 1)
	for i := range uint32(20) {
		bulk(1 + i)
	}
	p.a.dev.in <- numbered(1000, 20)
	p.expect(t, 1000, 1001)
	if st := p.a.d.Stats().Lanes[packet.Bulk].Queue; st.Depth < 18 {
		t.Errorf("%d Bulk packets wait, want most of 20", st.Depth)
	}
	b.queued.Store(0)
	p.expect(t, 1, 21)
}

// What waited for a path that is no way any more does not fall on the next one all
// at once.
func TestBacklogMovesAtThePace(t *testing.T) {
	for name, forget := range map[string]bool{"known": false, "forgotten": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.sess.caps = wire.CapReport
			r.d.cfg.Pacing = func(*Peer, Path) congestion.Strategy { return congestion.NewFixed(congestion.MinRate) }
			second := newFakeBind()
			one, two := Path{Bind: 0, Remote: outerB}, Path{Bind: r.d.AddBind(second, 0), Remote: outerB}
			r.d.Track(r.peer, []Path{one, two})
			r.d.SetWays(r.peer, ways(one))
			r.d.Activate(r.peer, r.sess)
			const n = 100
			for i := range uint32(n) {
				r.dev.in <- numbered(i, 1200)
			}
			waits := func(path Path) int {
				st, ok := r.peer.Pacing(path)
				if !ok {
					return 0
				}
				return st.Lanes[packet.Bulk].Depth
			}
			until(t, "most wait", func() bool { return waits(one) >= n-20 })
			r.d.SetWays(r.peer, ways(two))
			if forget {
				r.d.Track(r.peer, []Path{two})
			}
			until(t, "most wait for the other path", func() bool { return waits(two) >= n-40 })
			if got := len(second.out); got > 20 {
				t.Errorf("%d packets left at once", got)
			}
		})
	}
}

// A peer cannot make us send more Critical than a path has room for.
func TestEchoesArePoliced(t *testing.T) {
	r := newRig(t)
	r.sess.caps = wire.CapReport
	r.d.cfg.Pacing = func(*Peer, Path) congestion.Strategy { return congestion.NewFixed(congestion.MinRate) }
	path := Path{Bind: 0, Remote: outerB}
	r.d.Track(r.peer, []Path{path})
	r.d.SetWays(r.peer, ways(path))
	r.d.Activate(r.peer, r.sess)
	for i := range uint32(20) { // so that others wait
		r.dev.in <- numbered(i, 1200)
	}
	until(t, "Bulk waits", func() bool { return r.d.Stats().Lanes[packet.Bulk].Queue.Depth > 10 })
	for range 20 {
		r.receive(r.from(wire.TypeEcho, packet.Critical, make([]byte, 1300)))
	}
	until(t, "most are refused", func() bool { return r.rx(RxEchoRate) >= 15 })
}

// Critical over its budget goes as Bulk, which a receiver takes where its policy
// allows the flow on any lane.
func TestOverBudget(t *testing.T) {
	for name, lanes := range map[string][]policy.Lane{
		"bulk is allowed": {policy.Critical, policy.Bulk}, "bulk is not": {policy.Critical},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.d.cfg.Policy.Apply(&policy.Document{
				Version: 1, Allow: []policy.Rule{{ID: "all", Src: []string{"*"}, Dst: []string{"*"}, Lanes: lanes}},
				Roles: []policy.Role{{
					Name: "r", Members: []string{"name:a"}, Publish: []policy.Lane{policy.Critical, policy.Bulk},
					Budgets: map[policy.Lane]policy.Limit{policy.Critical: {PacketsPerSecond: 1, BurstPackets: 2}},
				}},
			}, []policy.Subject{{ID: r.peer.ID, Name: "b"}})
			r.d.Track(r.peer, []Path{{Bind: 0, Remote: outerB}})
			r.d.SetWays(r.peer, ways(Path{Bind: 0, Remote: outerB}))
			r.d.Activate(r.peer, r.sess)
			for i := range uint32(6) {
				r.dev.in <- numbered(i, 20)
			}
			var got []packet.Lane
			const want = 6
			for len(got) < want {
				select {
				case m := <-r.bind.out:
					var h wire.Header
					if h.Parse(m.Buf) && h.Type == wire.TypeData {
						got = append(got, h.Lane)
					}
				case <-time.After(5 * time.Second):
					t.Fatalf("%v left, want %d packets", got, want)
				}
			}
			critical := 0
			for _, l := range got {
				if l == packet.Critical {
					critical++
				}
			}
			if critical != 2 || !slices.Contains(got, packet.Bulk) {
				t.Errorf("lanes %v, want 2 of Critical", got)
			}
		})
	}
}

// A datagram in pieces is demoted as a whole.
func TestOverBudgetInPieces(t *testing.T) {
	r := newRig(t)
	_ = r.d.Close()
	r.d.cfg.Policy.Apply(&policy.Document{
		Version: 1, Allow: []policy.Rule{{Src: []string{"*"}, Dst: []string{"*"}}},
		Roles: []policy.Role{{
			Name: "r", Members: []string{"name:a"}, Publish: []policy.Lane{policy.Critical},
			Budgets: map[policy.Lane]policy.Limit{policy.Critical: {PacketsPerSecond: 1, BurstPackets: 1}},
		}},
	}, []policy.Subject{{ID: r.peer.ID, Name: "b"}})
	r.peer.active.Store(r.sess)
	for id := range byte(2) {
		for piece := range byte(3) {
			b := packet.Get()
			b.N = copy(b.Raw()[packet.Headroom:], udp(addrA, addrB, 80))
			ip := b.Bytes()
			ip[5], ip[7], ip[9], ip[20] = id+1, piece*10, packet.ProtoICMP, 8
			if piece < 2 {
				ip[6] |= 0x20
			}
			ready := r.d.admit(nil, b, 5)
			if len(ready) != 1 {
				t.Fatalf("piece %d of datagram %d is not admitted: %v", piece, id, r.d.Stats().TxDropped)
			}
			want := packet.Critical
			if id > 0 {
				want = packet.Bulk
			}
			if got := ready[0]; got.Lane != want || got.Demoted {
				t.Errorf("piece %d of datagram %d: %v, demoted %v; want %v", piece, id, got.Lane, got.Demoted, want)
			}
			ready[0].Release()
		}
	}
}

// The kernel's stamps are of the wall clock, which may be set at any time.
func TestRealtime(t *testing.T) {
	var c realtime
	now := int64(5 * time.Second)
	c.look(now)
	wall := time.Now().UnixNano()
	near := func(got, want int64) bool {
		return got-want < int64(50*time.Millisecond) && want-got < int64(50*time.Millisecond)
	}
	for _, tt := range []struct {
		stamp, want int64
	}{
		{0, now},
		{wall - int64(3*time.Millisecond), now - int64(3*time.Millisecond)},
		{wall + int64(time.Hour), now}, // the clock was set back since
		{wall - int64(time.Hour), now}, // forward
	} {
		if got, rough := c.at(tt.stamp, now); !near(got, tt.want) || got > now || rough != (got == now) {
			t.Errorf("stamp %d: %d, %v, want about %d", tt.stamp-wall, got, rough, tt.want)
		}
	}
}

// Telemetry that leaves on two paths leaves on the second as far as that one has
// room.
func TestSecondWayIsPaced(t *testing.T) {
	p := newPair(t, 2)
	p.caps(wire.CapReport)
	rates := map[int]float64{p.paths[0].Bind: 125e6, p.paths[1].Bind: congestion.MinRate}
	p.a.d.cfg.Pacing = func(_ *Peer, path Path) congestion.Strategy { return congestion.NewFixed(rates[path.Bind]) }
	p.track(p.paths...)
	p.a.d.SetWays(p.a.peer, &Ways{Critical: p.paths[:1], Telemetry: p.paths, Bulk: p.paths[:1]})
	for i := range uint32(100) {
		b := numbered(i, 1000)
		b[22], b[23] = 5006>>8, 5006&0xff
		p.a.dev.in <- b
	}
	for range 100 { // two readers: in any order
		<-p.b.dev.out
	}
	c := p.a.peer.Paths()
	if c[0].TxPackets != 100 || c[1].TxPackets == 0 || c[1].TxPackets > 30 {
		t.Errorf("%d packets left on the wide path, %d on the thin one; want 100 and a few", c[0].TxPackets, c[1].TxPackets)
	}
}

// What waits for a path that has fallen silent does not wait for that path's tokens
// when there is another: it has none for long.
func TestBacklogLeavesASilentPath(t *testing.T) {
	r := newRig(t)
	r.sess.caps = wire.CapReport
	second := newFakeBind()
	one, two := Path{Bind: 0, Remote: outerB}, Path{Bind: r.d.AddBind(second, 0), Remote: outerB}
	r.d.cfg.Pacing = func(_ *Peer, path Path) congestion.Strategy {
		if path == one {
			return congestion.NewFixed(congestion.MinRate)
		}
		return congestion.NewFixed(125e6)
	}
	r.d.Track(r.peer, []Path{one, two})
	r.d.SetWays(r.peer, ways(one))
	r.d.Activate(r.peer, r.sess)
	for i := range uint32(100) {
		r.dev.in <- numbered(i, 1200)
	}
	waits := func(path Path) int {
		st, ok := r.peer.Pacing(path)
		if !ok {
			return 0
		}
		return st.Lanes[packet.Bulk].Depth
	}
	until(t, "most wait", func() bool { return waits(one) >= 80 })
	// As Critical's copies do.
	r.peer.statOf(one).pipe.Load().Sent(congestion.Sent{Bytes: 1 << 20})
	r.d.SetWays(r.peer, ways(two))
	until(t, "all leave on the other path", func() bool { return waits(one) == 0 && waits(two) == 0 && len(second.out) >= 80 })
}

// A rate that was set holds for a peer without reports too.
func TestFixedWithoutReports(t *testing.T) {
	r := newRig(t)
	r.d.cfg.Pacing = func(*Peer, Path) congestion.Strategy { return congestion.NewFixed(congestion.MinRate) }
	path := Path{Bind: 0, Remote: outerB}
	r.d.Track(r.peer, []Path{path})
	r.d.SetWays(r.peer, ways(path))
	r.d.Activate(r.peer, r.sess)
	for i := range uint32(100) {
		r.dev.in <- numbered(i, 1200)
	}
	until(t, "most wait", func() bool { return r.d.Stats().Lanes[packet.Bulk].Queue.Depth >= 80 })
}

// A peer's Critical keeps its order while its ways change: it waits at none of them.
func TestCriticalKeepsItsOrder(t *testing.T) {
	a := newAsker(t)
	p := &Peer{}
	one := Path{Bind: a.d.AddBind(newFakeBind(), 0), Remote: outerA}
	two := Path{Bind: a.d.AddBind(newFakeBind(), 0), Remote: outerB}
	a.d.Track(p, []Path{one, two})
	const n = 50
	put := func(from int) {
		for i := range n {
			b := packet.Get()
			b.N, b.Dest = from+i, p
			a.d.queue([]*packet.Buf{b}, nil)
		}
	}
	a.d.SetWays(p, ways(one))
	put(0)
	a.d.SetWays(p, ways(two))
	put(n)
	out := make([]*packet.Buf, sendBatch)
	for next := 0; next < 2*n; {
		got, _, _ := a.d.lanes.Dequeue(out)
		if got == 0 {
			t.Fatalf("%d of %d packets came", next, 2*n)
		}
		for _, b := range out[:got] {
			if b.Dest == p {
				if b.N != next {
					t.Fatalf("packet %d, want %d", b.N, next)
				}
				next++
			}
			b.Release()
		}
	}
}
