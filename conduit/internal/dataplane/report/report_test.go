// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const ms = int64(time.Millisecond)

// sender makes packets of one session. Its clock differs from the receiver's by
// offset and, in parts per million, by skew.
type sender struct {
	offset, skew int64
	session      uint32
	next         [packet.NumLanes]uint64
}

// packet leaves at and takes delay, in ns of the receiver's clock.
func (s *sender) packet(lane packet.Lane, at, delay int64) *Arrival {
	clock := s.offset + at + at/1e6*s.skew
	a := &Arrival{
		Lane: lane, Session: s.session, Counter: s.next[lane], Size: 1382,
		Sent: uint16(clock / (wire.TimeUnit * 1000)), At: at + delay, Data: true,
	}
	s.next[lane]++
	return a
}

func take(t *testing.T, r *Receiver, now int64) *wire.Report {
	t.Helper()
	var out wire.Report
	if !r.Take(now, &out) {
		t.Fatalf("nothing to say at %d ms", now/ms)
	}
	return &out
}

func TestReport(t *testing.T) {
	var r Receiver
	s := sender{session: 7, offset: 1e9}
	start := int64(5e9)
	for i, d := range []int64{12, 10, 14, 11} {
		a := s.packet(packet.Telemetry, start+int64(i)*10*ms, d*ms)
		a.Size = 100 + i
		r.Arrived(a)
	}
	r.Copied(1000)
	got := take(t, &r, start+50*ms)
	want := &wire.Report{
		Packets: 4, Bytes: 406, Lane: packet.Telemetry, Session: 7, Counter: 3,
		Received: 5041000, Hold: 9000, Samples: 4,
		DelayMin: got.DelayMin, DelayP50: got.DelayMin + 1000/16, DelayMax: got.DelayMin + 4000/16, Last: got.DelayMin + 1000/16,
	}
	near(t, got, want, 4)
	if r.Take(start+60*ms, got) {
		t.Error("a second report without a packet")
	}
	r.Copied(50)
	if got = take(t, &r, start+70*ms); got.Packets != 6 || got.Bytes != 1456 || got.Copies != 2 || got.Samples != 0 || got.Counter != 3 || got.Hold != 29000 {
		t.Errorf("after a copy: %+v", got)
	}
}

// near compares but for delays, which may differ by slack units: the header's time
// has 64 µs.
func near(t *testing.T, got, want *wire.Report, slack int32) {
	t.Helper()
	g, w := *got, *want
	for _, p := range [][2]*int32{{&g.DelayMin, &w.DelayMin}, {&g.DelayP50, &w.DelayP50}, {&g.DelayMax, &w.DelayMax}, {&g.Last, &w.Last}} {
		if d := *p[0] - *p[1]; d > slack || d < -slack {
			t.Errorf("delay %d, want %d", *p[0], *p[1])
		}
		*p[0], *p[1] = 0, 0
	}
	if d := cmp.Diff(&w, &g); d != "" {
		t.Errorf("report differs (-want +got):\n%s", d)
	}
}

// A path that has only copies, and one on which nothing came, say what they have.
func TestOnlyCopies(t *testing.T) {
	var r Receiver
	if r.Take(0, new(wire.Report)) {
		t.Error("a report about nothing")
	}
	r.Copied(10)
	want := &wire.Report{Packets: 1, Bytes: 10, Copies: 1}
	if d := cmp.Diff(want, take(t, &r, 1e9)); d != "" {
		t.Errorf("report differs (-want +got):\n%s", d)
	}
}

// Delays keep their differences while the header's time wraps, the clocks drift,
// a queue of 3 s comes and goes, and nothing comes for seconds or hours.
func TestUnwrap(t *testing.T) {
	for _, skew := range []int64{-200, 0, 200} { // ppm
		for _, offset := range []int64{0, 4194304000 - 1, 1 << 50} {
			var r Receiver
			s := sender{offset: offset, skew: skew}
			rng := rand.New(rand.NewPCG(1, uint64(offset)))
			const start = 100e9
			at, pause := int64(start), int64(0)
			var first int32
			hours := 0
			for i := range 40000 {
				queue := (at - start - pause) % 10e9 // 8 s up, 2 s down, and none for a while
				queue = max(min(queue*3/8, (10e9-queue)*3/2)-200*ms, 0)
				delay := 5*ms + queue + rng.Int64N(ms)/2
				r.Arrived(s.packet(packet.Bulk, at, delay))
				got := take(t, &r, at+delay).Last
				if i == 0 {
					first = got
				}
				want := (delay - 5*ms - (at-start)/1e6*skew) / 16000
				if d := int64(got-first) - want; d < -50 || d > 50 {
					t.Fatalf("skew %d, packet %d: delay %d, want %d", skew, i, got-first, want)
				}
				gap := rng.Int64N(10 * ms)
				if i%1000 == 999 {
					gap = 2e9 + rng.Int64N(50e9)
					pause += gap
				}
				if i >= 5000 && queue == 0 && skew == 0 && hours == 0 {
					hours, gap = 3, 3*3600e9
					pause += gap
				}
				at += gap
			}
		}
	}
}

// A queue of 3.5 s is told, however suddenly it comes and goes.
func TestStall(t *testing.T) {
	var r Receiver
	var s sender
	zero := int32(0)
	for i := range int64(400) {
		delay := 5 * ms
		if i >= 300 && i < 330 {
			delay = 3500 * ms
		}
		at := i * 20 * ms
		r.Arrived(s.packet(packet.Critical, at, delay))
		if got, want := take(t, &r, at+delay).Last, int32((delay-5*ms)/16000); i == 0 {
			zero = got
		} else if d := got - zero - want; d < -8 || d > 8 {
			t.Errorf("packet %d: delay %d, want %d", i, got, want)
		}
	}
}

// The base is the least of 5 to 10 s, so a longer route is late for no longer, and
// a shorter one is believed at once.
func TestBase(t *testing.T) {
	var r Receiver
	var s sender
	urgent := func(at, delay int64) bool {
		due := int64(0)
		for range UrgentPackets {
			due = r.Arrived(s.packet(packet.Critical, at, delay))
		}
		r.Take(at+delay, new(wire.Report))
		return due <= at+delay
	}
	for at := int64(0); at < 20e9; at += 100 * ms {
		if urgent(at, 10*ms) && at > 0 {
			t.Fatalf("late at %d ms without a reason", at/ms)
		}
	}
	last := int64(0)
	for at := int64(20e9); at < 40e9; at += 500 * ms { // the route grows by 20 ms
		r.mu.Lock()
		r.row = 0
		r.mu.Unlock()
		if urgent(at, 30*ms) {
			last = at
		}
	}
	if d := last - 20e9; d < 4e9 || d > 10e9 {
		t.Errorf("late for %d ms, want 5 to 10 s", d/ms)
	}
	for at := int64(40e9); at < 50e9; at += 500 * ms {
		if urgent(at, 5*ms) {
			t.Fatalf("late at %d ms by a shorter route", at/ms)
		}
	}
	if urgent(62e9, 30*ms) {
		t.Error("late after a silence of 12 s")
	}
}

// After a minute of silence the clocks may be anywhere: the first packet then may
// have waited for 2 s, or the next ones may.
func TestAfterSilence(t *testing.T) {
	for shift := int64(0); shift < 4200*ms; shift += 50 * ms {
		for _, first := range []int64{5 * ms, 2000 * ms} {
			var r Receiver
			var s sender
			delays := []int64{first, 2000 * ms, 5 * ms, 1000 * ms, 5 * ms}
			check := func(at int64) {
				t.Helper()
				var zero int32
				for i, delay := range delays {
					at += 3e9
					r.Arrived(s.packet(packet.Critical, at, delay))
					got := take(t, &r, at+delay).Last
					if i == 0 {
						zero = got
					}
					if d := int64(got-zero) - (delay-first)/16000; d < -8 || d > 8 {
						t.Errorf("shift %d ms, packet %d: delay %d, want %d", shift/ms, i, got-zero, (delay-first)/16000)
					}
				}
			}
			s.offset = shift
			check(0)
			s.offset = 2 * shift
			check(3600e9)
		}
	}
}

func TestMedian(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{1, 2, 3, 4, 5, 127, 128, 129, 200, 256, 257, 1000, 5000, 70000} {
		for _, kind := range []string{"random", "rising", "falling", "two"} {
			var r Receiver
			var s sender
			var all []int64
			worst := 0.0
			for round := range 5 {
				all = all[:0]
				for i := range n {
					d := map[string]int64{"random": rng.Int64N(1000), "rising": int64(i), "falling": int64(n - i), "two": int64(i & 1 * 900)}[kind]
					a := s.packet(packet.Critical, int64(round)*1e9, 0)
					a.At += d * 16000
					r.Arrived(a)
					all = append(all, d)
				}
				got := take(t, &r, int64(round+1)*1e9)
				if int(got.Samples) != min(n, 65535) || got.DelayMax-got.DelayMin != int32(slices.Max(all)-slices.Min(all)) {
					t.Errorf("%d %s: %+v", n, kind, got)
				}
				slices.Sort(all)
				med := all[0] + int64(got.DelayP50-got.DelayMin)
				if n <= reservoir && med != all[(n-1)/2] {
					t.Errorf("%d %s: median %d, want %d", n, kind, med, all[(n-1)/2])
				}
				lo, _ := slices.BinarySearch(all, med)
				hi, _ := slices.BinarySearch(all, med+1)
				off := max(float64(lo)/float64(n)-0.5, 0.5-float64(hi)/float64(n), 0)
				worst = max(worst, off)
			}
			if worst > 0.1 {
				t.Errorf("%d %s: median is %.2f off in rank", n, kind, worst)
			}
		}
	}
}

// The arrivals of a coalesced run count once.
func TestFollowers(t *testing.T) {
	var r Receiver
	var s sender
	for i := range int64(3) {
		r.Arrived(s.packet(packet.Bulk, i*ms, 10*ms))
	}
	for i := range 20 {
		a := s.packet(packet.Bulk, 3*ms, 20*ms)
		a.Follower = i > 0
		r.Arrived(a)
	}
	got := take(t, &r, 30*ms)
	if got.Samples != 4 || got.Packets != 23 || got.DelayP50-got.DelayMin > 4 || got.DelayMax-got.DelayMin < 600 || got.Last != got.DelayMax {
		t.Errorf("%+v", got)
	}
	// The rest of a run that a report fell into stands for itself.
	a := s.packet(packet.Bulk, 3*ms, 20*ms)
	a.Follower = true
	r.Arrived(a)
	if got = take(t, &r, 40*ms); got.Samples != 1 || got.DelayP50 != got.Last {
		t.Errorf("%+v", got)
	}
}

// One that was overtaken in its lane is not the newest; other lanes and sessions
// have other counters.
func TestNewest(t *testing.T) {
	var r Receiver
	for _, tt := range []struct {
		lane             packet.Lane
		session          uint32
		counter, at      uint64
		wantAt           uint64
		wantLane         packet.Lane
		wantSes, wantCtr uint64
	}{
		{0, 1, 9, 1, 1, 0, 1, 9},
		{0, 1, 8, 2, 1, 0, 1, 9},
		{2, 1, 5, 3, 3, 2, 1, 5},
		{2, 1, 4, 4, 3, 2, 1, 5},
		{0, 1, 8, 5, 5, 0, 1, 8},
		{0, 2, 0, 6, 6, 0, 2, 0},
	} {
		r.Arrived(&Arrival{Lane: tt.lane, Session: tt.session, Counter: tt.counter, At: int64(tt.at) * ms, Data: true})
		got := take(t, &r, 10*ms)
		if got.Received != tt.wantAt*1000 || got.Lane != tt.wantLane || uint64(got.Session) != tt.wantSes || got.Counter != tt.wantCtr {
			t.Errorf("after %+v: %+v", tt, got)
		}
	}
}

func TestConcurrent(t *testing.T) {
	var r Receiver
	var wg sync.WaitGroup
	for lane := range packet.Lane(packet.NumLanes) {
		wg.Go(func() {
			for i := range int64(2000) {
				r.Arrived(&Arrival{Lane: lane, Counter: uint64(i), Size: 1, At: i * ms, Data: true})
				r.Copied(1)
				r.Take(i*ms, new(wire.Report))
			}
		})
	}
	wg.Wait()
	r.Copied(0)
	if got := take(t, &r, 1e9); got.Packets != 12001 || got.Copies != 6001 || got.Bytes != 12000 {
		t.Errorf("%+v", got)
	}
}

func TestAllocs(t *testing.T) {
	var r Receiver
	var s sender
	var out wire.Report
	a := s.packet(packet.Bulk, 0, 0)
	if n := testing.AllocsPerRun(100, func() {
		for range 300 {
			a.Counter++
			a.At += 1e5
			r.Arrived(a)
		}
		r.Copied(1)
		r.Take(a.At, &out)
	}); n != 0 {
		t.Errorf("allocates %v times, want 0", n)
	}
}

func BenchmarkArrived(b *testing.B) {
	var r Receiver
	var out wire.Report
	a := Arrival{Lane: packet.Bulk, Size: 1382, Data: true}
	b.ReportAllocs()
	for b.Loop() {
		a.Counter++
		a.At += 5e4
		a.Sent = uint16(a.At / 64e3)
		if r.Arrived(&a) <= a.At {
			r.Take(a.At, &out)
		}
	}
	if out.Samples == 0 {
		b.Error("no report")
	}
}

func BenchmarkTake(b *testing.B) {
	var r Receiver
	var out wire.Report
	rng := rand.New(rand.NewPCG(1, 2))
	var a [reservoir]Arrival
	for i := range a {
		a[i] = Arrival{At: rng.Int64N(20 * ms), Data: true}
	}
	for b.Loop() {
		for i := range a {
			r.Arrived(&a[i])
		}
		r.Take(math.MaxInt32, &out)
	}
}
