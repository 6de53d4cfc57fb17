// SPDX-License-Identifier: Apache-2.0

package bottleneck_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest/bottleneck"
	"github.com/bauxite-mesh/bauxite/conduit/congestion"
)

// 17: the same trace gives the same decisions.
func TestRunsAreEqual(t *testing.T) {
	t.Parallel()
	s := bottleneck.Scenario{
		Seed: 5, Duration: 12 * sec, Sample: 10 * ms,
		Link: bottleneck.Link{RateAt: wild(3), Service: bottleneck.WiFi, Loss: 0.002, Jitter: 2 * ms},
		Robots: []bottleneck.Robot{
			{Flows: append(cubics(3), bottleneck.Flow{Kind: bottleneck.BBR, Start: 2 * sec, ECN: true}, bottleneck.Flow{Kind: bottleneck.Reno, Telemetry: true}), ReportJitter: 5 * ms, ReportLoss: 0.1, Rekey: 4 * sec},
			{Flows: bottleneck.Flows(bottleneck.CUBIC, 2, 5*sec), Drift: 50e-6},
		},
		Foreign: []bottleneck.Flow{{Start: 6 * sec}, {Kind: bottleneck.UDP, Rate: bottleneck.Mbit}},
	}
	a, b := bottleneck.Run(s), bottleneck.Run(s)
	if diff := cmp.Diff(a, b, cmpopts.IgnoreUnexported(bottleneck.Result{})); diff != "" {
		t.Errorf("two runs of one scenario differ (-first +second):\n%.2000s", diff)
	}
	if a.Faults > 0 || a.Utilisation < 0.03 {
		t.Errorf("%d faults, utilisation %.2f", a.Faults, a.Utilisation)
	}
	s.Seed++
	if cmp.Equal(a.Critical, bottleneck.Run(s).Critical) {
		t.Error("another seed gives the same run")
	}
}

// 17: what goes into the link never exceeds the rate by more than what is owed for a
// train and what a sender may save up.
func TestTokensAreBounded(t *testing.T) {
	t.Parallel()
	const rate = 10 * bottleneck.Mbit
	s := base(func(s *bottleneck.Scenario) {
		s.Link.Rate = 1000 * bottleneck.Mbit
		s.Link.Queue = 16 << 20
		s.Robots[0].Strategy = fixed(rate)
		s.Robots[0].Flows = []bottleneck.Flow{{Kind: bottleneck.UDP, Rate: 30 * bottleneck.Mbit, Start: sec, Active: func(at time.Duration) bool {
			return at%sec < 700*ms // tokens must not gather in the pauses
		}}}
		s.Duration, s.Sample = 10*sec, 0
	})
	each(t, s, func(t *testing.T, r *run) {
		for at := sec; at < 10*sec; at += 100 * ms {
			got := r.Rate(0, at, at+100*ms)
			if most := rate + 10*(0.0015*rate+3*bottleneck.WirePacket); got > most {
				t.Fatalf("%.2f Mbit/s at %v, want at most %.2f", got/bottleneck.Mbit, at, most/bottleneck.Mbit)
			}
		}
		atLeast(t, "rate while there is Bulk, Mbit/s", r.Rate(0, 3*sec, 3500*ms)/bottleneck.Mbit, 9.4)
	})
}

// greedy is a strategy of somebody else: it takes what it is told.
type greedy struct{ congestion.Strategy }

func (greedy) Rate(time.Duration) float64 { return 3 * bottleneck.Mbit }

func TestOwnStrategy(t *testing.T) {
	t.Parallel()
	s := base(func(s *bottleneck.Scenario) {
		s.Robots[0].Strategy = func() congestion.Strategy { return greedy{congestion.NewNull()} }
		s.Duration, s.Sample = 10*sec, 0
	})
	each(t, s, func(t *testing.T, r *run) {
		got := r.Rate(0, 3*sec, 10*sec) / bottleneck.Mbit
		if got < 2.7 || got > 3 {
			t.Errorf("%.2f Mbit/s, want 3 less Critical", got)
		}
	})
}

// Critical beyond its share of the rate waits behind Bulk.
func TestPolice(t *testing.T) {
	t.Parallel()
	s := base(func(s *bottleneck.Scenario) {
		s.Robots[0].Strategy = fixed(2 * bottleneck.Mbit)
		s.Robots[0].Critical = 1000 // 1.52 Mbit/s
		s.Duration, s.Sample = 10*sec, 0
	})
	each(t, s, func(t *testing.T, r *run) {
		sent := float64(len(r.Critical))
		if share := float64(r.CriticalDemoted) / sent; share < 0.3 || share > 0.6 {
			t.Errorf("%.2f of Critical demoted, want what exceeds 0.8 Mbit/s", share)
		}
		goal{3, 5, 0.04}.check(t, r)
	})
}
