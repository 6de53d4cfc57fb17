// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"testing"
	"time"
)

// strategies are all of them, made anew.
func strategies() map[string]Strategy {
	return map[string]Strategy{"null": NewNull(), "fixed": NewFixed(1e6), "delay-rate": NewDelayRate(DelayRateConfig{})}
}

func TestConstantRates(t *testing.T) {
	for _, c := range []struct{ in, want float64 }{{1e6, 1e6}, {0, MinRate}, {-1, MinRate}, {math.NaN(), MinRate}, {math.Inf(1), MaxRate}, {1e12, MaxRate}} {
		if got := NewFixed(c.in).Rate(0); got != c.want {
			t.Errorf("NewFixed(%v).Rate = %v, want %v", c.in, got, c.want)
		}
	}
	n := NewNull()
	if !math.IsInf(n.Rate(0), 1) || n.Tick(0, 1<<20) != 0 {
		t.Error("null limits")
	}
	if s := n.State(0); s.Name != "null" || !math.IsInf(s.Rate, 1) {
		t.Errorf("state %+v", s)
	}
}

// All strategies tell of delay and loss.
func TestStateOfAll(t *testing.T) {
	for name, st := range strategies() {
		t.Run(name, func(t *testing.T) {
			m := newModel(st)
			m.load = func(time.Duration) bool { return false }
			m.cross = func(now time.Duration) float64 {
				if now > 3*time.Second && m.backlog < 50e3 {
					return 40 * mbit
				}
				return 0
			}
			m.run(2900 * ms)
			s := st.State(m.now)
			between(t, "rtt", s.RTT, 39*ms, 42*ms)
			between(t, "base", s.BaseRTT, 39*ms, 42*ms)
			between(t, "queue", s.Queue, 0, ms)
			between(t, "delivery", s.Delivery, 17e3, 21e3)
			m.run(4 * time.Second)
			s = st.State(m.now)
			between(t, "queue of others", s.Queue, 15*ms, 22*ms)
			between(t, "base with a queue", s.BaseRTT, 39*ms, 42*ms)
			if s.Name != name || s.Loss != 0 {
				t.Errorf("state %+v", s)
			}
		})
	}
}

// critical sends 100 Hz of Critical for some time, of which each n-th is lost, and
// reports every 250 ms. copies: each packet leaves twice.
func critical(st Strategy, from, to time.Duration, n uint64, copies bool, seen *Report) {
	for now := from; now < to; now += 10 * ms {
		k := uint64(now/(10*ms)) + 1
		out := Sent{Lane: Critical, Session: 9, First: k, Last: k, Packets: 1, Bytes: 190}
		st.Sent(now, out)
		if n == 0 || k%n != 0 {
			seen.Packets++
			seen.Bytes += 190
			seen.Session, seen.Lane, seen.Counter, seen.Received = 9, Critical, k, now
		}
		if copies {
			out.Copies = 1
			st.Sent(now+5*ms, out)
			if n == 0 || k%n != 0 {
				seen.Copies++
			} else {
				seen.Packets++
			}
			seen.Bytes += 190
			seen.Session, seen.Lane, seen.Counter, seen.Received = 9, Critical, k, now+5*ms
		}
		if now%(250*ms) == 240*ms {
			r := *seen
			r.Samples, r.Hold = 25, ms
			st.Report(now+8*ms, &r)
		}
	}
}

func TestLossOfCriticalAlone(t *testing.T) {
	for name := range strategies() {
		for _, c := range []struct {
			n      uint64
			copies bool
			want   float64
		}{{0, false, 0}, {100, false, 0.01}, {10, false, 0.1}, {0, true, 0}, {50, true, 0.01}} {
			st := strategies()[name]
			var r Report
			critical(st, 0, 4*time.Second, c.n, c.copies, &r)
			s := st.State(4 * time.Second)
			if low, high := c.want*0.6, c.want*1.5; s.Loss < low || s.Loss > high || s.LossSamples < 150 {
				t.Errorf("%s, 1 of %d lost, copies %v: loss %.4f of %d, want about %v", name, c.n, c.copies, s.Loss, s.LossSamples, c.want)
			}
			if c.n == 100 { // it gets better, and is seen to
				critical(st, 4*time.Second, 14*time.Second, 0, false, &r)
				between(t, "loss 10 s later", st.State(14*time.Second).Loss, 0, 0.002)
				critical(st, 14*time.Second, 16*time.Second, 50, false, &r)
				between(t, "loss of 2 % after 2 s", st.State(16*time.Second).Loss, 0.005, 0.02)
			}
		}
	}
}

// The counters of a session begin anew with the next one; those of the path do not.
func TestLossOverSessions(t *testing.T) {
	st := NewNull()
	var r Report
	for i := range 400 {
		now := time.Duration(i) * 10 * ms
		session, k := uint32(1+i/100), uint64(i%100+1)
		st.Sent(now, Sent{Lane: Critical, Session: session, First: k, Last: k, Packets: 1, Bytes: 190})
		r.Packets, r.Bytes = r.Packets+1, r.Bytes+190
		r.Session, r.Counter, r.Received, r.Samples = session, k, now, 1
		if i%25 == 24 {
			st.Report(now+ms, &r)
		}
	}
	if s := st.State(4 * time.Second); s.Loss != 0 || s.LossSamples < 200 {
		t.Errorf("loss %v of %d", s.Loss, s.LossSamples)
	}
}

// A receiver that forgot the path, one whose clock was put back, and reports that
// overtake each other.
func TestReportsOutOfOrder(t *testing.T) {
	st := NewNull()
	var r Report
	critical(st, 0, 3*time.Second, 0, false, &r)
	late := r
	late.Packets, late.Received, late.Samples, late.DelayP50 = 100, time.Second, 10, 80*ms
	st.Report(3010*ms, &late)
	if s := st.State(0); s.Loss != 0 || s.Queue != 0 {
		t.Errorf("an old report counted: %+v", s)
	}
	r.Packets, r.Bytes = 0, 0 // forgotten
	critical(st, 3*time.Second, 6*time.Second, 0, false, &r)
	s := st.State(0)
	if s.Loss != 0 {
		t.Errorf("loss %v after the receiver forgot the path", s.Loss)
	}
	between(t, "delivery", s.Delivery, 18e3, 20e3)
}

// The least delay is forgotten after ten seconds at most.
func TestBaseAges(t *testing.T) {
	st := NewNull()
	var r Report
	critical(st, 0, 3*time.Second, 0, false, &r)
	r.DelayMin, r.DelayP50, r.DelayMax, r.DelayLast = 20*ms, 20*ms, 20*ms, 20*ms
	critical(st, 3*time.Second, 4*time.Second, 0, false, &r)
	between(t, "queue", st.State(0).Queue, 20*ms, 20*ms)
	critical(st, 4*time.Second, 14*time.Second, 0, false, &r)
	between(t, "queue 10 s later", st.State(0).Queue, 0, 0)
	// Clocks that step do so faster than a queue grows.
	r.DelayMin, r.DelayP50, r.DelayMax, r.DelayLast = 4214*ms, 4214*ms, 4214*ms, 4214*ms
	critical(st, 14*time.Second, 15*time.Second, 0, false, &r)
	between(t, "queue behind a step of the clock", st.State(0).Queue, 0, 0)
}
