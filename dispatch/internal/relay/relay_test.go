// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	alice = identity.PeerID{1}
	bob   = identity.PeerID{2}
	carol = identity.PeerID{3}
)

// packet returns a DATA packet of a lane with a number that tells it apart.
func packet(lane, n int) []byte {
	b := make([]byte, 32)
	b[0], b[1], b[16], b[17] = magic, byte(1<<6|1<<2|lane), byte(n>>8), byte(n)
	return b
}

func number(p Packet) int { return int(p.Data[16])<<8 | int(p.Data[17]) }

func TestLane(t *testing.T) {
	for _, tt := range []struct {
		name string
		b    []byte
		lane int
		ok   bool
	}{
		{"critical", packet(0, 0), 0, true},
		{"telemetry", packet(1, 0), 1, true},
		{"bulk", packet(2, 0), 2, true},
		{"lane_3", packet(3, 0), 0, false},
		{"stun", append([]byte{0, 1}, make([]byte, 18)...), 0, false},
		{"short", packet(0, 0)[:15], 0, false},
		{"least", packet(0, 0)[:16], 0, true},
		{"most", append(packet(2, 0), make([]byte, 1468)...), 2, true},
		{"long", append(packet(2, 0), make([]byte, 1469)...), 0, false},
		{"empty", nil, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if lane, ok := Lane(tt.b); ok != tt.ok || ok && lane != tt.lane {
				t.Errorf("Lane = %d, %v; want %d, %v", lane, ok, tt.lane, tt.ok)
			}
		})
	}
}

func TestQueue(t *testing.T) {
	const c, m, b = 0, 1, 2
	type drops []int
	for _, tt := range []struct {
		name string
		push []int // lanes; the n-th has number n
		drop drops // lanes
		want []int // numbers in order of pop
	}{
		{"order", []int{b, m, c, b, c, m}, nil, []int{2, 4, 1, 5, 0, 3}},
		{"oldest_bulk_goes", repeat(b, QueueLen+2), drops{b, b}, span(2, QueueLen+2)},
		{"oldest_critical_goes", repeat(c, QueueLen+1), drops{c}, span(1, QueueLen+1)},
		{"bulk_makes_room", append(append(repeat(m, 1), repeat(b, QueueLen-1)...), c), drops{b}, append([]int{QueueLen, 0}, span(2, QueueLen)...)},
		{"telemetry_makes_room", append(repeat(m, QueueLen), c), drops{m}, append([]int{QueueLen}, span(1, QueueLen)...)},
		{"bulk_finds_no_room", append(repeat(c, QueueLen), b), drops{b}, span(0, QueueLen)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var q queue
			var dropped drops
			for i, lane := range tt.push {
				if d := q.push(Packet{Data: packet(lane, i)}, lane); d >= 0 {
					dropped = append(dropped, d)
				}
			}
			var got []int
			for p, _, ok := q.pop(); ok; p, _, ok = q.pop() {
				got = append(got, number(p))
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("popped (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.drop, dropped); d != "" {
				t.Errorf("dropped (-want +got):\n%s", d)
			}
			if q.n != 0 {
				t.Errorf("%d left", q.n)
			}
		})
	}
}

func repeat(v, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func span(from, to int) []int {
	var out []int
	for i := from; i < to; i++ {
		out = append(out, i)
	}
	return out
}

func TestRelay(t *testing.T) {
	r := New(Config{})
	a, b := r.Open(alice), r.Open(bob)
	for i := range 3 {
		if !a.Send(bob, packet(2-i, i)) {
			t.Fatalf("packet %d refused", i)
		}
	}
	<-b.Wake()
	got, gone := b.Take(nil, nil, 2)
	if len(got) != 2 || len(gone) != 0 || number(got[0]) != 2 || number(got[1]) != 1 || got[0].From != alice {
		t.Fatalf("took %v, %v", got, gone)
	}
	<-b.Wake() // for what is left
	if got, _ = b.Take(nil, nil, 2); len(got) != 1 || number(got[0]) != 0 {
		t.Fatalf("then took %v", got)
	}
	select {
	case <-b.Wake():
		t.Error("woken for nothing")
	default:
	}
	if a.Send(alice, packet(0, 0)) || a.Send(bob, []byte("x")) {
		t.Error("an invalid packet passed")
	}
	want := Stats{Clients: 2, RelayedPackets: [Lanes]uint64{1, 1, 1}, RelayedBytes: [Lanes]uint64{32, 32, 32}, Invalid: 2}
	if d := cmp.Diff(want, r.Stats()); d != "" {
		t.Errorf("stats (-want +got):\n%s", d)
	}
}

func TestBlockedReceiver(t *testing.T) {
	r := New(Config{Burst: 1 << 20})
	a, b, c := r.Open(alice), r.Open(bob), r.Open(carol)
	const n = 1000
	for i := range n { // bob takes nothing
		if !a.Send(bob, packet(i%Lanes, i)) || !a.Send(carol, packet(0, i)) {
			t.Fatal("refused")
		}
		if got, _ := c.Take(nil, nil, 64); len(got) != 1 || number(got[0]) != i {
			t.Fatalf("carol got %v", got)
		}
	}
	got, _ := b.Take(nil, nil, 64)
	if len(got) != QueueLen {
		t.Fatalf("bob got %d packets, want %d", len(got), QueueLen)
	}
	for i, p := range got { // the newest Critical ones, in order
		if want := 3 * (n/3 - QueueLen + 1 + i); number(p) != want {
			t.Errorf("packet %d is %d, want %d", i, number(p), want)
		}
	}
	d := r.Stats().DroppedQueue
	if d[0]+d[1]+d[2] != n-QueueLen {
		t.Errorf("dropped %v", d)
	}
}

func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{Allowed: func(_, b identity.PeerID) bool { return b != carol }})
		a := r.Open(alice)
		r.Open(carol)
		for range 5 {
			if a.Send(bob, packet(0, 0)) || a.Send(carol, packet(0, 0)) {
				t.Fatal("sent to nobody")
			}
		}
		<-a.Wake()
		// Absent and forbidden look alike.
		if _, gone := a.Take(nil, nil, 9); !cmp.Equal(gone, []identity.PeerID{bob, carol}) {
			t.Fatalf("gone = %v", gone)
		}
		time.Sleep(goneEvery - 1)
		a.Send(bob, packet(0, 0))
		if _, gone := a.Take(nil, nil, 9); len(gone) != 0 {
			t.Errorf("told again within a second: %v", gone)
		}
		time.Sleep(time.Nanosecond)
		a.Send(bob, packet(0, 0))
		if _, gone := a.Take(nil, nil, 9); !cmp.Equal(gone, []identity.PeerID{bob}) {
			t.Errorf("a second later gone = %v", gone)
		}
		b := r.Open(bob)
		if !a.Send(bob, packet(0, 7)) {
			t.Error("bob came and got nothing")
		}
		b.Close()
		if a.Send(bob, packet(0, 7)) {
			t.Error("bob left and was sent to")
		}
		// Many strangers do not make the hub hold much.
		for i := range 3 * maxRoutes {
			a.tokens = 1e6
			a.Send(identity.PeerID{9, byte(i >> 8), byte(i)}, packet(0, 0))
		}
		if _, gone := a.Take(nil, nil, 9); len(a.routes) > maxRoutes || len(gone) > maxGone {
			t.Errorf("%d routes, %d notices", len(a.routes), len(gone))
		}
	})
}

func TestAllowedChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		allowed, asked := true, 0
		r := New(Config{Allowed: func(identity.PeerID, identity.PeerID) bool { asked++; return allowed }})
		a := r.Open(alice)
		r.Open(bob)
		for range 10 {
			a.Send(bob, packet(0, 0))
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		allowed = false
		time.Sleep(permitFor)
		if a.Send(bob, packet(0, 0)) {
			t.Error("a second after the policy changed a packet passed")
		}
	})
}

func TestReplacedAndRevoked(t *testing.T) {
	r := New(Config{})
	a, old := r.Open(alice), r.Open(bob)
	b := r.Open(bob)
	<-old.Gone()
	old.Close() // must not take the new one's place away
	if !a.Send(bob, packet(0, 1)) {
		t.Error("refused")
	}
	if got, _ := old.Take(nil, nil, 9); len(got) != 0 {
		t.Error("the old stream got a packet")
	}
	if got, _ := b.Take(nil, nil, 9); len(got) != 1 {
		t.Error("the new stream got none")
	}
	r.Revoke(bob)
	r.Revoke(bob)
	<-b.Gone()
	if a.Send(bob, packet(0, 1)) {
		t.Error("a revoked node was sent to")
	}
	if b.Send(alice, packet(0, 1)) {
		t.Error("a revoked node sent")
	}
	b.Close()
	a.Close()
	if s := r.Stats(); s.Clients != 0 {
		t.Errorf("%d clients left", s.Clients)
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, burst = 100_000, 80_000
		r := New(Config{Rate: rate, Burst: burst})
		a := r.Open(alice)
		r.Open(bob)
		p := func(lane int) []byte { return append(packet(lane, 0), make([]byte, 968)...) } // 1000 bytes
		flood := func(lane int) (n int) {
			for a.Send(bob, p(lane)) {
				n++
			}
			return n
		}
		// Bulk leaves something for Telemetry, and that for Critical.
		if b, m, c := flood(2), flood(1), flood(0); b != 60 || m != 10 || c != 10 {
			t.Errorf("burst = %d bulk, %d telemetry, %d critical", b, m, c)
		}
		time.Sleep(100 * time.Millisecond)
		if b, c := flood(2), flood(0); b != 0 || c != 10 {
			t.Errorf("after 100 ms = %d bulk, %d critical", b, c)
		}
		if s := r.Stats(); s.DroppedRate != [Lanes]uint64{2, 1, 2} {
			t.Errorf("stats = %+v", s)
		}
		// Small packets cost their work.
		time.Sleep(time.Second)
		n := 0
		for a.Send(bob, packet(0, 0)[:16]) {
			n++
		}
		if n != burst/minCost {
			t.Errorf("%d small packets, want %d", n, burst/minCost)
		}
	})
}

// TestConcurrent counts every packet while clients come and go.
func TestConcurrent(t *testing.T) {
	r := New(Config{Burst: 1 << 30, Rate: 1 << 30})
	const senders, each = 4, 2000
	var wg sync.WaitGroup
	done := make(chan struct{})
	b := r.Open(bob)
	var taken int
	wg.Go(func() {
		for {
			select {
			case <-b.Wake():
				got, _ := b.Take(nil, nil, 8)
				taken += len(got)
			case <-done:
				got, _ := b.Take(nil, nil, QueueLen)
				taken += len(got)
				return
			}
		}
	})
	var sending sync.WaitGroup
	for i := range senders {
		sending.Go(func() {
			c := r.Open(identity.PeerID{10, byte(i)})
			defer c.Close()
			for n := range each {
				if !c.Send(bob, packet(n%Lanes, n)) {
					t.Error("refused")
				}
				if n%100 == 0 {
					r.Open(carol).Close()
				}
			}
		})
	}
	sending.Wait()
	close(done)
	wg.Wait()
	s := r.Stats()
	var relayed, dropped uint64
	for l := range Lanes {
		relayed += s.RelayedPackets[l]
		dropped += s.DroppedQueue[l]
	}
	if relayed != uint64(taken) || relayed+dropped != senders*each {
		t.Errorf("relayed %d (taken %d), dropped %d of %d", relayed, taken, dropped, senders*each)
	}
}

func TestAllocs(t *testing.T) {
	r := New(Config{Burst: 1 << 30, Rate: 1 << 30})
	a, b := r.Open(alice), r.Open(bob)
	p := packet(1, 0)
	got := make([]Packet, 0, QueueLen)
	if n := testing.AllocsPerRun(1000, func() {
		a.Send(bob, p)
		got, _ = b.Take(got[:0], nil, QueueLen)
	}); n != 0 {
		t.Errorf("%v allocations per packet, want 0", n)
	}
}

func BenchmarkRelay(b *testing.B) {
	r := New(Config{Burst: 1 << 40, Rate: 1 << 40})
	src, dst := r.Open(alice), r.Open(bob)
	p := append(packet(2, 0), make([]byte, 1300)...)
	got := make([]Packet, 0, QueueLen)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		src.Send(bob, p)
		got, _ = dst.Take(got[:0], nil, QueueLen)
	}
}

func FuzzLane(f *testing.F) {
	f.Add(packet(0, 1))
	f.Add(packet(3, 1))
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		lane, ok := Lane(b)
		if ok && (len(b) < MinPacket || len(b) > MaxPacket || b[0] != 0x80 || lane != int(b[1]&3) || lane > 2) {
			t.Errorf("Lane(%x) = %d", b, lane)
		}
	})
}

// FuzzQueue checks the queue against a list.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 0, 1, 2, 3})
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, ops []byte) {
		var q queue
		var model [Lanes][]int
		total := 0
		for i, op := range ops {
			if op%4 == 3 {
				p, lane, ok := q.pop()
				want := -1
				for l := range model {
					if len(model[l]) > 0 {
						want, model[l] = model[l][0], model[l][1:]
						total--
						if !ok || lane != l {
							t.Fatalf("pop %d from lane %d, %v", i, lane, ok)
						}
						break
					}
				}
				if ok != (want >= 0) || ok && number(p) != want&0xffff {
					t.Fatalf("pop %d = %v, want %d", i, p, want)
				}
				continue
			}
			lane := int(op % 4)
			model[lane] = append(model[lane], i)
			total++
			want := -1
			if total > QueueLen {
				for l := Lanes - 1; l >= 0; l-- {
					if len(model[l]) > 0 {
						model[l], want = model[l][1:], l
						break
					}
				}
				total--
			}
			if got := q.push(Packet{Data: packet(lane, i)}, lane); got != want || q.n != total {
				t.Fatalf("push %d dropped %d, want %d; %d queued, want %d", i, got, want, q.n, total)
			}
		}
	})
}
