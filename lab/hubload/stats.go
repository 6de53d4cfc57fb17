// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"
)

// Latency summarises durations. It marshals to JSON in milliseconds.
type Latency struct {
	Count              int
	P50, P90, P99, Max time.Duration
}

// Summarize sorts d and summarises it. A percentile is the smallest duration that
// at least so many per cent do not exceed (nearest rank).
func Summarize(d []time.Duration) Latency {
	if len(d) == 0 {
		return Latency{}
	}
	slices.Sort(d)
	at := func(p float64) time.Duration { return d[max(0, int(math.Ceil(p*float64(len(d))))-1)] }
	return Latency{Count: len(d), P50: at(0.50), P90: at(0.90), P99: at(0.99), Max: d[len(d)-1]}
}

func ms(d time.Duration) float64 { return math.Round(float64(d)/float64(time.Millisecond)*1000) / 1000 }

// MarshalJSON implements json.Marshaler.
func (l Latency) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Count int     `json:"count"`
		P50   float64 `json:"p50_ms"`
		P90   float64 `json:"p90_ms"`
		P99   float64 `json:"p99_ms"`
		Max   float64 `json:"max_ms"`
	}{l.Count, ms(l.P50), ms(l.P90), ms(l.P99), ms(l.Max)})
}

func (l Latency) String() string {
	return fmt.Sprintf("p50 %.2f ms, p90 %.2f, p99 %.2f, max %.2f (%d)", ms(l.P50), ms(l.P90), ms(l.P99), ms(l.Max), l.Count)
}
