// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"encoding/binary"
	"math"
	"testing"
	"time"
)

// script plays calls that b encodes; check sees the strategy after each.
func script(b []byte, st Strategy, check func(now time.Duration, train int)) {
	var now time.Duration
	var r Report
	next := func() uint64 {
		var x [8]byte
		n := copy(x[:], b)
		b = b[n:]
		return binary.LittleEndian.Uint64(x[:])
	}
	small := func() uint64 {
		if len(b) == 0 {
			return 0
		}
		x := b[0]
		b = b[1:]
		return uint64(x)
	}
	counter := uint64(1)
	for len(b) > 0 {
		train := 0
		op := small()
		now += time.Duration(small()) * 100 * time.Microsecond
		switch op % 12 {
		case 0, 1, 2: // an ordinary batch
			n := small()%64 + 1
			st.Sent(now, Sent{Lane: uint8(op / 12 % 3), Session: 1, First: counter, Last: counter + n - 1, Packets: int(n), Bytes: int(n) * 1410})
			counter += n
		case 3, 4, 5: // an ordinary report
			n := small()
			r.Packets, r.Bytes = r.Packets+n, r.Bytes+n*1410
			r.Session, r.Lane, r.Counter, r.Received = 1, uint8(op/12%3), counter-min(counter, small()), now
			r.Samples = int(n)
			r.DelayMin = time.Duration(small()) * 100 * time.Microsecond
			r.DelayP50 = r.DelayMin + time.Duration(small())*100*time.Microsecond
			r.DelayMax, r.DelayLast = r.DelayP50*2, r.DelayP50
			st.Report(now, &r)
		case 6: // the same again, or what the last one was with a train
			r.Train = TrainSeen{First: counter - min(counter, small()), Bytes: int(small()) * 1410, Dispersion: time.Duration(small()) * 100 * time.Microsecond}
			st.Report(now, &r)
			r.Train = TrainSeen{}
		case 7:
			if train = st.Tick(now, int(small())*1410); train > 0 {
				n := uint64(train+1409) / 1410
				st.TrainSent(now, Train{Session: 1, First: counter, Last: counter + n - 1, Packets: int(n), Bytes: int(n-1) * 1410})
				counter += n
			}
		case 8: // anything
			r = Report{
				Packets: next(), Copies: next(), Bytes: next(), Session: uint32(next()), Lane: uint8(next()), Counter: next(),
				Received: time.Duration(next()), Hold: time.Duration(next()), Samples: int(next()),
				DelayMin: time.Duration(next()), DelayP50: time.Duration(next()), DelayMax: time.Duration(next()), DelayLast: time.Duration(next()),
				CE: uint32(next()), Train: TrainSeen{First: next(), Bytes: int(next()), Dispersion: time.Duration(next())},
			}
			st.Report(now, &r)
		case 9:
			st.Sent(now, Sent{Lane: uint8(next()), Session: uint32(next()), First: next(), Last: next(), Packets: int(next()), Bytes: int(next()), Copies: int(next())})
		case 10:
			st.TrainSent(now, Train{Session: uint32(next()), First: next(), Last: next(), Packets: int(next()), Bytes: int(next())})
		case 11: // a clock that may go back or far ahead
			now = time.Duration(next())
			st.Tick(now, int(next()))
		}
		check(now, train)
	}
}

// valid checks what holds of a strategy at any time.
func valid(t *testing.T, st Strategy, now time.Duration, train int) {
	t.Helper()
	r := st.Rate(now)
	if _, ok := st.(*DelayRate); !(r >= MinRate) || (ok && r > MaxRate) {
		t.Fatalf("rate %v", r)
	}
	if train < 0 || train > 48*1410 {
		t.Fatalf("train of %d bytes", train)
	}
	s := st.State(now)
	for _, x := range []float64{s.Loss, s.Delivery} {
		if math.IsNaN(x) || math.IsInf(x, 0) || x < 0 {
			t.Fatalf("state %+v", s)
		}
	}
	if s.Loss > 1 || s.LossSamples < 0 || s.Queue < 0 || s.RTT < 0 || s.BaseRTT < 0 || s.Noise < 0 || s.Noise > 30*ms {
		t.Fatalf("state %+v", s)
	}
	if c, ok := st.(*DelayRate); ok {
		if q := c.queue(c.now); !(q >= 0) || math.IsInf(q, 0) {
			t.Fatalf("queue %v", q)
		}
		if !(c.rate >= MinRate && c.rate <= MaxRate) || c.capacity != 0 && !(c.capacity >= 10e3 && c.capacity <= MaxRate) {
			t.Fatalf("rate %v, capacity %v", c.rate, c.capacity)
		}
	}
}

// FuzzDelayRate plays reports that are reordered, repeated, empty, huge, of counters
// and clocks that go back; and compares two runs of the same script.
func FuzzDelayRate(f *testing.F) {
	ordinary := []byte{}
	for i := range 200 {
		ordinary = append(ordinary, 2, 1, 8, 7, 1, 200, 7, 9, 100, byte(27+i%2*3), 100, 9, 0, byte(i), byte(i/2), 6, 0, 40, 3, byte(i))
	}
	f.Add(ordinary)
	f.Add([]byte{8, 1, 255, 255, 255, 255, 255, 255, 255, 255, 3, 4, 5, 11, 0, 255, 255, 255, 255, 255, 255, 255, 127, 7, 255, 255})
	f.Add([]byte{0, 255, 63, 3, 255, 0, 0, 0, 0, 3, 255, 0, 0, 0, 0, 6, 6, 6})
	f.Fuzz(func(t *testing.T, b []byte) {
		type decision struct {
			rate  float64
			train int
			s     State
		}
		var first []decision
		c := NewDelayRate(DelayRateConfig{})
		script(b, c, func(now time.Duration, train int) {
			valid(t, c, now, train)
			first = append(first, decision{c.Rate(now), train, c.State(now)})
		})
		n := NewNull()
		script(b, n, func(now time.Duration, train int) { valid(t, n, now, train) })
		c, i := NewDelayRate(DelayRateConfig{}), 0
		script(b, c, func(now time.Duration, train int) {
			c.Rate(now)
			c.State(now)
			if got := (decision{c.Rate(now), train, c.State(now)}); got != first[i] {
				t.Fatalf("call %d: %+v, before %+v", i, got, first[i])
			}
			i++
		})
	})
}

// A whole run gives the same decisions each time.
func TestSameTraceSameDecisions(t *testing.T) {
	run := func() (rates []float64) {
		m := newModel(NewDelayRate(DelayRateConfig{}))
		m.noise = func(now time.Duration) time.Duration { return now * 7919 % (6 * ms) }
		m.tick = func(now time.Duration) { rates = append(rates, m.st.Rate(now)) }
		m.run(10 * time.Second)
		return rates
	}
	a, b := run(), run()
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("step %d: %v, then %v", i, a[i], b[i])
		}
	}
}
