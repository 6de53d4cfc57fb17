// SPDX-License-Identifier: Apache-2.0

package bottleneck

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestLoopKeepsOrder(t *testing.T) {
	l := newLoop(3)
	var got []int64
	for range 2000 {
		at := l.rng.Int64N(300)
		l.at(at, func() { got = append(got, l.now) })
	}
	var same []int
	for i := range 50 {
		l.at(150, func() { same = append(same, i) })
	}
	l.run(299)
	if len(got) != 2000 || !slices.IsSorted(got) {
		t.Errorf("%d events, sorted %v", len(got), slices.IsSorted(got))
	}
	if !slices.IsSorted(same) {
		t.Errorf("events of one moment ran as %v", same)
	}
	ran := false
	l.at(10, func() { ran = l.now == 299 })
	l.run(299)
	if !ran {
		t.Error("an event of the past did not happen at once")
	}
}

// alone runs flows without a tunnel and returns the link.
func alone(seed uint64, cfg Link, rtt, dur time.Duration, flows ...Flow) *link {
	s := Scenario{Seed: seed, Link: cfg, RTT: rtt}
	s.fill()
	l := newLoop(seed)
	k := newLink(l, s.Link, int64(s.RTT/2), len(flows))
	for i, f := range flows {
		newFlow(l, f, 1500, i, int64(s.RTT/2), k.send).start()
	}
	l.run(int64(dur))
	return k
}

func (k *link) mbit(source int, from, to int64) float64 {
	sum := 0.0
	for i := from / binWidth; i < to/binWidth && int(i) < len(k.bins[source]); i++ {
		sum += k.bins[source][i]
	}
	return sum / float64(to-from) * 1e9 / Mbit
}

// What a connection gets is known for each kind.
func TestFlows(t *testing.T) {
	const seconds = 30
	for name, c := range map[string]struct {
		link     Link
		kind     Kind
		low, top float64 // Mbit/s
	}{
		"cubic":              {Link{Rate: 20 * Mbit}, CUBIC, 19.5, 20},
		"reno":               {Link{Rate: 20 * Mbit}, Reno, 19.5, 20},
		"bbr":                {Link{Rate: 20 * Mbit}, BBR, 18.5, 20},
		"cubic, short queue": {Link{Rate: 20 * Mbit, Queue: 16 << 10}, CUBIC, 14, 19},
		// Mathis: 1.22 packets / (rtt sqrt(p)) = 3.7 Mbit/s of 1500 bytes
		"reno, 1 %":  {Link{Rate: 100 * Mbit, Loss: 0.01}, Reno, 2.8, 4.2},
		"cubic, 1 %": {Link{Rate: 100 * Mbit, Loss: 0.01}, CUBIC, 2.8, 6},
		"bbr, 1 %":   {Link{Rate: 20 * Mbit, Loss: 0.01}, BBR, 17, 20},
		"lte":        {Link{Rate: 20 * Mbit, Service: LTE}, CUBIC, 18.5, 20.2},
		"wifi":       {Link{Rate: 40 * Mbit, Service: WiFi}, CUBIC, 26, 33},
		"policer":    {Link{Rate: 20 * Mbit, Queue: 32 << 10, Service: Policer}, BBR, 10, 20.2},
	} {
		t.Run(name, func(t *testing.T) {
			k := alone(1, c.link, 0, seconds*time.Second, Flow{Kind: c.kind})
			if got := k.mbit(0, 5*second, seconds*second); got < c.low || got > c.top {
				t.Errorf("%.2f Mbit/s, want %v to %v", got, c.low, c.top)
			}
		})
	}
}

func TestFlowsShare(t *testing.T) {
	k := alone(1, Link{Rate: 20 * Mbit}, 0, 60*time.Second, Flow{}, Flow{Start: 5 * time.Second})
	a, b := k.mbit(0, 20*second, 60*second), k.mbit(1, 20*second, 60*second)
	if a/(a+b) < 0.3 || a/(a+b) > 0.7 {
		t.Errorf("two CUBIC flows have %.1f and %.1f Mbit/s", a, b)
	}
}

func TestFlowObeysItsApplication(t *testing.T) {
	k := alone(1, Link{Rate: 20 * Mbit}, 0, 30*time.Second,
		Flow{Rate: 3 * Mbit},
		Flow{Kind: UDP, Rate: 2 * Mbit},
		Flow{Active: func(at time.Duration) bool { return at < 10*time.Second }})
	for i, want := range []float64{3, 2, 0} {
		if got := k.mbit(i, 11*second, 30*second); math.Abs(got-want) > 0.1*want {
			t.Errorf("flow %d: %.2f Mbit/s, want %v", i, got, want)
		}
	}
	if k.mbit(2, 2*second, 10*second) < 10 {
		t.Error("the greedy flow did not send while it was active")
	}
}

// A flow that lost everything under way comes back.
func TestFlowRecoversFromSilence(t *testing.T) {
	dead := func(at time.Duration) float64 {
		if at > 5*time.Second && at < 8*time.Second {
			return 0
		}
		return 20 * Mbit
	}
	for _, kind := range []Kind{CUBIC, Reno, BBR} {
		k := alone(1, Link{RateAt: dead}, 0, 30*time.Second, Flow{Kind: kind})
		if got := k.mbit(0, 20*second, 30*second); got < 17 {
			t.Errorf("kind %d: %.1f Mbit/s after an outage", kind, got)
		}
	}
}

// A wrong sum, a wrong length and a mark are seen.
func TestInner(t *testing.T) {
	b := make([]byte, 130)
	writeInner(b, 77, true)
	if marked, ok := readInner(b); marked || !ok {
		t.Fatalf("fresh packet: marked %v, valid %v", marked, ok)
	}
	b[1] |= 3
	if marked, ok := readInner(b); !marked || ok {
		t.Errorf("marked without its sum: marked %v, valid %v", marked, ok)
	}
	if _, ok := readInner(b[:129]); ok {
		t.Error("a short packet is valid")
	}
}
