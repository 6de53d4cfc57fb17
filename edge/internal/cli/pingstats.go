// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"math"
	"slices"

	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
)

// maxSamples bounds what is kept for percentiles: of a ping that runs for days they
// are those of the last 100,000.
const maxSamples = 100_000

// pingStats sums the pings of one lane up.
type pingStats struct {
	sent, n      int
	sum, squares float64 // of round trips in milliseconds
	least, most  float64
	wait, hold   float64
	recent       []float64
	at           int // where recent is written next, once it is full
}

func (s *pingStats) add(m *edgev1.PingResponse) {
	s.sent++
	if !m.GetAnswered() {
		return
	}
	ms := m.GetRttUs() / 1000
	if s.n == 0 || ms < s.least {
		s.least = ms
	}
	s.most = max(s.most, ms)
	s.n++
	s.sum += ms
	s.squares += ms * ms
	s.wait += m.GetWaitUs() / 1000
	s.hold += m.GetHoldUs() / 1000
	if len(s.recent) < maxSamples {
		s.recent = append(s.recent, ms)
		return
	}
	s.recent[s.at] = ms
	s.at = (s.at + 1) % maxSamples
}

// laneSummary is what is said of one lane in the end. Times are in milliseconds.
type laneSummary struct {
	Lane     string  `json:"lane"`
	Sent     int     `json:"sent"`
	Answered int     `json:"answered"`
	Loss     float64 `json:"loss"` // 0 to 1
	Min      float64 `json:"min_ms"`
	Avg      float64 `json:"avg_ms"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Max      float64 `json:"max_ms"`
	// Mdev is the standard deviation, which ping calls so.
	Mdev float64 `json:"mdev_ms"`
	// Wait and Hold are the means of what went by in the queues here and at the peer.
	Wait float64 `json:"wait_ms"`
	Hold float64 `json:"hold_ms"`
}

func (s *pingStats) summary(lane string) laneSummary {
	u := laneSummary{Lane: lane, Sent: s.sent, Answered: s.n}
	if s.sent > 0 {
		u.Loss = float64(s.sent-s.n) / float64(s.sent)
	}
	if s.n == 0 {
		return u
	}
	n := float64(s.n)
	u.Min, u.Max, u.Avg, u.Wait, u.Hold = s.least, s.most, s.sum/n, s.wait/n, s.hold/n
	u.Mdev = math.Sqrt(max(s.squares/n-u.Avg*u.Avg, 0))
	sorted := slices.Sorted(slices.Values(s.recent))
	u.P50, u.P99 = rank(sorted, 0.5), rank(sorted, 0.99)
	return u
}

// rank is the nearest-rank percentile of sorted values, of which there is one at
// least.
func rank(sorted []float64, p float64) float64 {
	return sorted[max(int(math.Ceil(p*float64(len(sorted))))-1, 0)]
}
