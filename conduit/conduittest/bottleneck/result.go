// SPDX-License-Identifier: Apache-2.0

package bottleneck

import (
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
)

// Result is what a run showed. Delays are what a packet took from its lane's
// entrance to the far end, less the propagation of the empty path, so they have in
// them how the link sends: subtract those of [Scenario.Idle] for what load adds.
// Delays, losses, utilisation and shares are of the time from Warm on.
type Result struct {
	// Of the first robot's Critical packets.
	CriticalP50, CriticalP99, CriticalP999, CriticalMax time.Duration
	// CriticalLost counts those that did not arrive, CriticalDemoted those that were
	// more than the police lets pass, which are in none of the other numbers.
	CriticalLost, CriticalDemoted int
	// Utilisation is Bulk and Telemetry of all robots, of the link's capacity.
	Utilisation float64
	// Share is how what left the link is divided among the Bulk and Telemetry of the
	// robots, in order, and the foreign flows, in order. It sums to 1.
	Share []float64
	// Dropped and Marked count the first robot's packets that the lanes dropped and
	// marked (Bulk and Telemetry), over the whole run.
	Dropped, Marked int
	// DroppedFor is Dropped by reason, as the lanes name it.
	DroppedFor map[string]int
	// Faults counts inner packets that the lanes broke, and reports that nobody could
	// read, over all robots. It is 0.
	Faults int
	// Critical is each Critical packet of the first robot, in the order of sending.
	Critical []Probe
	// Series are samples of the link and the first robot; see [Scenario.Sample].
	Series []Sample

	scenario *Scenario
	bins     [][]float64 // by source: Bulk of the robots, foreign flows
}

// Probe is one Critical packet.
type Probe struct {
	// Sent is when it entered its lane.
	Sent time.Duration
	// Delay is as in Result; negative: lost, or still on its way at the end.
	Delay time.Duration
	// Demoted: it was more than the police let pass.
	Demoted bool
}

// Sample is a moment.
type Sample struct {
	At time.Duration
	// Queue is how long the bottleneck's queue takes to leave, and Capacity its rate in
	// bytes per second.
	Queue    time.Duration
	Capacity float64
	// Waiting is how many packets wait in the first robot's lanes.
	Waiting int
	// State is that of the first robot's strategy.
	State congestion.State
}

// Delays are percentiles of delays.
type Delays struct {
	P50, P99, P999, Max time.Duration
	// Packets arrived, Lost did not.
	Packets, Lost int
}

// Delays returns those of the Critical packets that were sent from..to.
func (r *Result) Delays(from, to time.Duration) Delays {
	var d Delays
	var all []time.Duration
	for _, p := range r.Critical {
		switch {
		case p.Sent < from || p.Sent >= to || p.Demoted:
		case p.Delay >= 0:
			all = append(all, p.Delay)
		case p.Sent < r.scenario.Duration-time.Second:
			d.Lost++
		}
	}
	d.Packets = len(all)
	if len(all) == 0 {
		return d
	}
	slices.Sort(all)
	at := func(share float64) time.Duration {
		return all[min(len(all)-1, int(share*float64(len(all))))]
	}
	d.P50, d.P99, d.P999, d.Max = at(0.5), at(0.99), at(0.999), all[len(all)-1]
	return d
}

// Rate returns the bytes per second of a source that left the link between from and
// to, in steps of 100 ms. Sources are the Bulk and Telemetry of the robots, in order,
// then the foreign flows.
func (r *Result) Rate(source int, from, to time.Duration) float64 {
	sum := 0.0
	lo, hi := int(int64(from)/binWidth), int(int64(to)/binWidth)
	for i := lo; i < min(hi, len(r.bins[source])); i++ {
		sum += r.bins[source][i]
	}
	return sum / (float64(hi-lo) * float64(binWidth) / 1e9)
}

// Capacity returns the mean rate of the link between from and to, in bytes per second.
func (r *Result) Capacity(from, to time.Duration) float64 {
	sum, n := 0.0, 0
	for t := int64(from) + binWidth/2; t < int64(to); t += binWidth {
		sum += r.scenario.Link.RateAt(time.Duration(t))
		n++
	}
	return sum / float64(max(1, n))
}

// sum fills the numbers that are of the whole run.
func (r *Result) sum() {
	s := r.scenario
	d := r.Delays(s.Warm, s.Duration)
	r.CriticalP50, r.CriticalP99, r.CriticalP999, r.CriticalMax, r.CriticalLost = d.P50, d.P99, d.P999, d.Max, d.Lost
	capacity := r.Capacity(s.Warm, s.Duration)
	total := 0.0
	for i := range r.bins {
		rate := r.Rate(i, s.Warm, s.Duration)
		r.Share = append(r.Share, rate)
		total += rate
		if i < len(s.Robots) {
			r.Utilisation += rate / capacity
		}
	}
	for i := range r.Share {
		r.Share[i] /= max(total, 1)
	}
}
