// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// A backlog leaves at the rate, at any, and without long gaps.
func TestRate(t *testing.T) {
	for _, rate := range []float64{8e3, 250e3, 2.5e6, 12.5e6, 125e6} {
		r := newRig(t, Config{})
		p := r.AddUplink().AddPipe(congestion.NewFixed(rate), 60)
		bytes, batches, last, gap := 0, 0, int64(0), int64(0)
		end := int64(4 * time.Second)
		for r.clock < end {
			for p.n[packet.Bulk] < 3000 && p.wire(2) < p.maxBytes-2000 {
				r.put(p, pkt(packet.Bulk, 1, 1350))
			}
			at := r.NextAt()
			r.clock = max(r.clock, at)
			if n := r.step(64, func(_ *Pipe, b *packet.Buf, _ bool) { bytes += b.N + 60 }); n > 0 {
				batches++
				gap = max(gap, r.clock-last)
				last = r.clock
			}
		}
		if got := float64(bytes) / 4; math.Abs(got-rate) > rate*.01+1500 {
			t.Errorf("%.0f B/s: sent %.0f", rate, got)
		}
		if want := int64(1410/rate*1e9) + 300e3; gap > want {
			t.Errorf("%.0f B/s: a gap of %d us, want %d", rate, gap/1000, want/1000)
		}
		if rate > 10e6 && float64(bytes)/1410/float64(batches) < 2 {
			t.Errorf("%.0f B/s: %d packets in %d batches", rate, bytes/1410, batches)
		}
		r.check()
	}
}

// Critical does not wait for tokens, and others wait for what it took; but not for
// ever.
func TestDebt(t *testing.T) {
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(congestion.NewFixed(1e6), 60)
	r.put(p, pkt(packet.Bulk, 1, 1350))
	r.step(64, nil)
	p.Sent(congestion.Sent{Lane: congestion.Critical, Bytes: 10000})
	r.put(p, pkt(packet.Bulk, 1, 1350), pkt(packet.Critical, 2, 100))
	if n := r.step(64, nil); n != 1 {
		t.Errorf("%d left, want Critical", n)
	}
	if n := r.step(64, nil); n != 0 {
		t.Error("Bulk left on credit")
	}
	left := int64(0)
	r.run(100*ms, 64, func(*Pipe, *packet.Buf, bool) { left = r.clock })
	if left < 10*ms || left > 11*ms {
		t.Errorf("Bulk left after %d us, want 10 to 11 ms", left/1000)
	}
	p.Sent(congestion.Sent{Bytes: 1 << 30}) // STUN of a sort
	r.put(p, pkt(packet.Bulk, 1, 1350))
	from := r.clock
	r.run(r.clock+int64(time.Second), 64, func(*Pipe, *packet.Buf, bool) { left = r.clock })
	if d := left - from; d < 49*ms || d > 51*ms {
		t.Errorf("a huge debt took %d us, want 50 ms", d/1000)
	}
	r.check()
}

// A short pause of the strategy forgives no debt and cuts no queue.
func TestPause(t *testing.T) {
	st := &fakeStrategy{rate: 10e6}
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(st, 60)
	r.fill(p, 900, packet.Bulk, 1, 1350) // less than 150 ms, more than minBytes
	st.rate = 12e3
	r.run(r.clock+20*ms, 64, nil)
	r.fill(p, 10, packet.Bulk, 1, 1350)
	if r.drops[Overflow] > 0 {
		t.Errorf("%d dropped in a pause", r.drops[Overflow])
	}
	if !p.Police(r.clock, 100e3) {
		t.Error("Critical is policed by the rate of a pause")
	}
	st.rate = 10e6
	n := 0
	r.run(r.clock+10*ms, 64, func(*Pipe, *packet.Buf, bool) { n++ })
	if n < 69 || n > 75 {
		t.Errorf("%d left in 10 ms after the pause, want 71", n)
	}
	if r.drops[CoDel] > 0 {
		t.Error("the pause was taken for congestion")
	}
	if st.back {
		t.Error("the strategy's time went back")
	}
	r.check()
}

// Ticks come at least each millisecond while something waits, and not otherwise.
func TestTick(t *testing.T) {
	st := &fakeStrategy{rate: 8e3}
	r := newRig(t, Config{})
	u := r.AddUplink()
	p := u.AddPipe(st, 60)
	if at := r.NextAt(); at != math.MaxInt64 {
		t.Errorf("NextAt = %d of nothing", at)
	}
	r.fill(p, 3, packet.Bulk, 1, 1340)
	if st.waiting != 1400 { // the first of the three came alone
		t.Errorf("the strategy was told of %d bytes, want 1400", st.waiting)
	}
	for _, what := range []string{"by tokens", "by the uplink", "by its socket"} {
		switch what {
		case "by the uplink":
			st.rate = 1e9
			u.SetRate(8e3)
			p.Sent(congestion.Sent{Bytes: 1e6})
			r.run(r.clock+200*ms, 64, nil)
		case "by its socket":
			u.SetRate(0)
			u.Hold(packet.Bulk)
		}
		st.ticks = nil
		from := time.Duration(r.clock)
		r.run(r.clock+100*ms, 64, nil)
		for _, at := range st.ticks {
			if at-from > time.Millisecond {
				t.Fatalf("stopped %s: a pause of %v between ticks", what, at-from)
			}
			from = at
		}
		if len(st.ticks) < 99 || len(st.ticks) > 130 {
			t.Errorf("stopped %s: %d ticks in 100 ms", what, len(st.ticks))
		}
	}
	u.Unhold(packet.Bulk)
	r.run(r.clock+100*ms, 64, nil)
	if at := r.NextAt(); at != math.MaxInt64 {
		t.Errorf("NextAt = %d of nothing", at)
	}
	r.check()
}

func TestTrain(t *testing.T) {
	st := &fakeStrategy{rate: 1e6}
	r := newRig(t, Config{})
	u := r.AddUplink()
	u.SetRate(1e6)
	p := u.AddPipe(st, 60)
	other := u.AddPipe(nil, 60)
	p.Sent(congestion.Sent{Bytes: 1600}) // spends what the buckets have saved
	r.fill(p, 100, packet.Bulk, 1, 1340)
	r.fill(p, 3, packet.Telemetry, 2, 100)
	r.fill(other, 3, packet.Telemetry, 2, 100)
	if n := r.step(64, nil); n != 0 {
		t.Fatalf("%d left without tokens", n)
	}
	st.train = 20 * 1400
	r.clock += 2 * ms
	r.NextAt() // ticks
	r.put(p, pkt(packet.Critical, 3, 100))
	r.put(nil, pkt(packet.Critical, 3, 100))
	var got []packet.Lane
	trains := 0
	for len(got) < 22 {
		if r.step(8, func(q *Pipe, b *packet.Buf, train bool) {
			got = append(got, b.Lane)
			if train {
				trains++
			}
			if train != (b.Lane == packet.Bulk) || train && q != p {
				t.Errorf("number %d: %v, train %v", len(got), b.Lane, train)
			}
		}) == 0 {
			break
		}
		if len(got) == 10 { // amid the train
			r.put(p, pkt(packet.Critical, 3, 100))
		}
	}
	if len(got) < 22 || got[0] != packet.Critical || got[1] != packet.Critical || got[10] != packet.Critical {
		t.Errorf("left: %v", got)
	}
	for r.step(8, func(_ *Pipe, _ *packet.Buf, train bool) {
		if !train {
			t.Error("a loan was not repaid")
		}
		trains++
	}) > 0 {
		r.check()
	}
	if trains != 20 {
		t.Errorf("the train has %d packets, want 20", trains)
	}
	from, left := r.clock, int64(0)
	p.TrainSent(congestion.Train{Packets: 20})
	r.run(r.clock+50*ms, 64, func(q *Pipe, _ *packet.Buf, _ bool) {
		if left == 0 && q == p {
			left = r.clock
		}
	})
	if d := left - from; d < 25*ms || d > 30*ms {
		t.Errorf("the loan was repaid in %d us, want some 28 ms", d/1000)
	}
	if len(st.trains) != 1 || st.back {
		t.Errorf("the strategy heard of %d trains, time went back: %v", len(st.trains), st.back)
	}
	r.check()
}

// A train may come at once with the first packets, takes what is demoted where that
// is all, ends with what waits, and comes to nothing on a held uplink.
func TestTrainEnds(t *testing.T) {
	st := &fakeStrategy{rate: 1e6}
	r := newRig(t, Config{})
	u := r.AddUplink()
	p := u.AddPipe(st, 60)
	p.Sent(congestion.Sent{Bytes: 40000})
	st.train = 1e6
	b := pkt(packet.Bulk, 1, 100)
	b.Demoted = true
	r.put(p, b, pkt(packet.Bulk, 2, 100))
	if n := r.step(64, func(_ *Pipe, _ *packet.Buf, train bool) {
		if !train {
			t.Error("not a train")
		}
	}); n != 2 {
		t.Errorf("the train has %d packets, want 2", n)
	}
	if len(r.trains) != 0 || p.train != 0 {
		t.Error("a train without packets goes on")
	}
	u.Hold(packet.Bulk)
	st.train = 1e6
	r.put(p, pkt(packet.Bulk, 1, 100))
	if n := r.step(64, nil); n != 0 || len(r.trains) != 0 {
		t.Errorf("%d packets of a train left a held uplink", n)
	}
	u.Unhold(packet.Bulk)
	st.train = 1e6
	r.clock += ms
	r.NextAt()
	u.Hold(packet.Telemetry)
	if n := r.step(64, nil); n != 0 || len(r.trains) != 0 {
		t.Errorf("%d packets of a train left a held uplink", n)
	}
	u.Unhold(packet.Telemetry)
	st.train = 1e6
	r.clock += ms
	r.NextAt()
	p.Close()
	n := 0
	for r.step(64, func(_ *Pipe, _ *packet.Buf, train bool) {
		n++
		if train {
			t.Error("a train of a closed pipe")
		}
	}) > 0 {
		r.check()
	}
	if n != 1 {
		t.Errorf("%d left a closed pipe, want 1", n)
	}
	r.check()
}

func TestPolice(t *testing.T) {
	for _, tt := range []struct{ share, rate, want, burst float64 }{
		{0, 1e6, 400e3, 20e3},
		{0, 150e3, 60e3, 4096},
		{0, 50e3, policeLeast, 4096}, // not less
		{.2, 1e6, 200e3, 10e3},
	} {
		r := newRig(t, Config{CriticalShare: tt.share})
		p := r.AddUplink().AddPipe(congestion.NewFixed(tt.rate), 60)
		p.strict(math.MaxInt64)
		n := 0
		for p.Police(0, 140) {
			n += 200
		}
		if f := float64(n); f > tt.burst || f < tt.burst-200 {
			t.Errorf("%+v: a burst of %d", tt, n)
		}
		n = 0
		for now := int64(0); now < int64(10*time.Second); now += 100e3 {
			if p.Police(now, 140) {
				n += 200
			}
		}
		if got := float64(n) / 10; math.Abs(got/tt.want-1) > .01 {
			t.Errorf("%+v: %.0f B/s", tt, got)
		}
	}
	r := newRig(t, Config{})
	for _, st := range []congestion.Strategy{nil, congestion.NewNull()} {
		p := r.AddUplink().AddPipe(st, 60)
		for range 1000 {
			if !p.Police(0, 1<<20) {
				t.Fatal("an unlimited pipe is policed")
			}
		}
	}
}

func TestReport(t *testing.T) {
	st := &fakeStrategy{rate: 8e3, rtt: 200 * time.Millisecond}
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(st, 60)
	r.fill(p, 10, packet.Bulk, 1, 1350)
	r.run(ms, 64, nil)
	st.rate = 1e9
	p.Report(&congestion.Report{})
	if at := r.NextAt(); at > r.clock+grain {
		t.Errorf("a report of a better rate is felt after %d us", (at-r.clock)/1000)
	}
	if st.reports != 1 || p.interval != 300*ms {
		t.Errorf("%d reports, an interval of %d ms", st.reports, p.interval/ms)
	}
	if s := p.State(); s.Name != "fake" || s.Lanes[packet.Bulk].Depth != 8 || s.Lanes[packet.Bulk].Bytes != 8*1350 {
		t.Errorf("state %+v", s)
	}
	p.Close()
	p.Report(&congestion.Report{})
	p.Sent(congestion.Sent{})
	p.TrainSent(congestion.Train{})
	if st.reports != 1 || p.State().Name != "" {
		t.Error("a closed pipe still tells its strategy")
	}
}

// Strategies hear the time before the send, in order.
func TestSentAt(t *testing.T) {
	st := &fakeStrategy{rate: 1e6}
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(st, 60)
	r.clock = 5 * ms
	p.SentAt(3*ms, congestion.Sent{Bytes: 1})
	if st.last != 3*time.Millisecond {
		t.Errorf("told %v, want 3ms", st.last)
	}
	p.Report(&congestion.Report{})
	p.SentAt(4*ms, congestion.Sent{Bytes: 1})
	if st.back || len(st.sent) != 2 {
		t.Errorf("time went back, or %d sends", len(st.sent))
	}
}

// What is closed loses no packet.
func TestClosePipes(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	p, q := u.AddPipe(congestion.NewFixed(8e3), 60), u.AddPipe(congestion.NewFixed(8e3), 60)
	u.SetRate(8e3)
	fill := func() {
		for i := range 20 {
			r.fill(p, 1, packet.Lane(i%3), 1, 1000)
			r.fill(q, 1, packet.Lane(i%3), 1, 1000)
		}
	}
	fill()
	n := 0
	drain := func(want int) {
		t.Helper()
		n = 0
		for r.step(64, func(*Pipe, *packet.Buf, bool) { n++ }) > 0 {
			r.check()
		}
		if n != want {
			t.Errorf("%d left, want %d", n, want)
		}
		r.check()
	}
	drain(14) // Critical, on credit
	u.SetRate(0)
	p.Close()
	drain(13)
	u.Hold(packet.Bulk)
	u.Close()
	drain(13)
	if len(r.uplinks) != 1 {
		t.Errorf("%d uplinks are left", len(r.uplinks))
	}
	fill()
	u.Hold(packet.Telemetry)
	u.SetRate(1)
	drain(40)
	if len(r.uplinks) != 1 {
		t.Errorf("%d uplinks are left", len(r.uplinks))
	}
}
