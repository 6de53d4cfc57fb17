// SPDX-License-Identifier: Apache-2.0

package bottleneck

import (
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
)

// Mbit is one megabit per second in the unit of all rates here, bytes per second.
const Mbit = 1e6 / 8

// WirePacket is what a full Bulk packet of a robot takes on the wire, in bytes: an
// inner packet of 1350, sealed, in UDP and IPv4.
const WirePacket = 1410

// Scenario is one run: robots and foreign flows that share a link. The zero value
// of each field is its default; what is wrong makes Run panic.
type Scenario struct {
	// Seed of all chance. Equal scenarios with equal seeds have equal results.
	Seed uint64
	// Duration of the run; 0 = 35 s. Statistics leave out what was before Warm; 0 = 6 s.
	Duration, Warm time.Duration
	// RTT is the round-trip time of the empty path, half of it each way; 0 = 40 ms.
	// Foreign flows have it, and robots that have none of their own.
	RTT time.Duration
	// Link is what the robots and the foreign flows share.
	Link Link
	// Robots share the link; the first is the one that is watched.
	Robots []Robot
	// Foreign flows cross the link outside the tunnels; packets are of 1500 bytes.
	Foreign []Flow
	// Sample is how far Result.Series is apart; 0 = no series.
	Sample time.Duration
	// Timer is the shortest time for which a sender sleeps; 0 = 250 µs.
	Timer time.Duration
}

// Service is how a link sends.
type Service uint8

const (
	// Steady sends one packet after the other at the rate.
	Steady Service = iota
	// LTE sends what was granted, each 10 to 20 ms.
	LTE
	// WiFi sends aggregates of at most 4 ms after a wait for the air, and stalls now
	// and then for 5 to 15 ms.
	WiFi
	// Policer has no queue: what exceeds the rate by more than Queue bytes is dropped.
	Policer
)

// Link is the bottleneck.
type Link struct {
	// Rate is in bytes per second; RateAt, if set, tells it for each moment instead.
	Rate   float64
	RateAt func(at time.Duration) float64
	// Queue is how many bytes wait at most, more are dropped at the tail; 0 = 256 KiB.
	Queue int
	// Service is how it sends; the zero value is Steady.
	Service Service
	// Loss is the share of packets that get lost at random behind the queue.
	Loss float64
	// Jitter is the most that is added to the one-way delay: it wanders between 0 and
	// that, with a new aim each 5 to 15 ms. The order stays.
	Jitter time.Duration
	// Extra, if set, is added to the one-way delay: a change of route.
	Extra func(at time.Duration) time.Duration
}

// Robot is one sender with its lanes, its strategy and its receiver.
type Robot struct {
	// Strategy makes the strategy under test; nil = DelayRate with its defaults.
	Strategy func() congestion.Strategy
	// Flows run inside the tunnel, in lane Bulk unless they say else.
	Flows []Flow
	// Critical is how many Critical packets per second it sends; 0 = 100, negative =
	// none. CriticalSize is their size on the wire, in bytes; 0 = 190.
	Critical     float64
	CriticalSize int
	// RTT is the round-trip time of this robot's empty path; 0 = that of the scenario.
	RTT time.Duration
	// Drift is how much faster the receiver's clock runs: 100e-6 is 100 ppm.
	Drift float64
	// Coalesce has packets of one size share the time of the first that arrived so
	// short a time before, as a network card that joins them does; 0 = each has its own.
	Coalesce time.Duration
	// ReportJitter is the most by which a report comes late, and ReportLoss the share
	// that gets lost. ReportSilence tells when none arrive; nil = never.
	ReportJitter  time.Duration
	ReportLoss    float64
	ReportSilence func(at time.Duration) bool
	// Rekey is the life of a session, after which counters begin anew; 0 = 120 s.
	Rekey time.Duration
}

// Kind is how a flow finds its rate.
type Kind uint8

const (
	// CUBIC is RFC 9438 with HyStart.
	CUBIC Kind = iota
	// Reno is RFC 5681 with selective acknowledgements.
	Reno
	// BBR resembles BBR version 1.
	BBR
	// UDP sends at Flow.Rate and hears nothing.
	UDP
)

// Flow is a connection or a stream of datagrams.
type Flow struct {
	Kind Kind
	// Start is when it begins.
	Start time.Duration
	// Active, if set, tells when the application has something to send.
	Active func(at time.Duration) bool
	// Rate is how fast the application makes data, in bytes per second on the wire;
	// 0 = as fast as the flow takes it. UDP needs it.
	Rate float64
	// ECN has packets say that they can be marked, and the sender heed marks.
	ECN bool
	// Telemetry puts the flow into that lane.
	Telemetry bool
	// AckJitter is added to the delay of each acknowledgement, evenly between 0 and it.
	AckJitter time.Duration
}

// Flows returns n flows of a kind which begin at start, 7 ms apart.
func Flows(kind Kind, n int, start time.Duration) []Flow {
	out := make([]Flow, n)
	for i := range out {
		out[i] = Flow{Kind: kind, Start: start + time.Duration(i)*7*time.Millisecond}
	}
	return out
}

// Idle returns the scenario without Bulk, Telemetry and foreign flows: the delay of
// its Critical packets is that of the link alone.
func (s Scenario) Idle() Scenario {
	robots := make([]Robot, 0, 1)
	for _, r := range s.Robots[:min(1, len(s.Robots))] {
		r.Flows = nil
		robots = append(robots, r)
	}
	s.Robots, s.Foreign, s.Sample = robots, nil, 0
	return s
}

func (s *Scenario) fill() {
	or := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	or(&s.Duration, 35*time.Second)
	or(&s.Warm, 6*time.Second)
	or(&s.RTT, 40*time.Millisecond)
	or(&s.Timer, 250*time.Microsecond)
	if s.Link.Queue == 0 {
		s.Link.Queue = 256 << 10
	}
	if s.Link.RateAt == nil {
		rate := s.Link.Rate
		if rate <= 0 {
			panic("bottleneck: Link has no Rate")
		}
		s.Link.RateAt = func(time.Duration) float64 { return rate }
	}
	s.Robots = append([]Robot(nil), s.Robots...)
	for i := range s.Robots {
		r := &s.Robots[i]
		if r.Strategy == nil {
			r.Strategy = func() congestion.Strategy { return congestion.NewDelayRate(congestion.DelayRateConfig{}) }
		}
		if r.Critical == 0 {
			r.Critical = 100
		}
		if r.CriticalSize == 0 {
			r.CriticalSize = 190
		}
		or(&r.RTT, s.RTT)
		or(&r.Rekey, 120*time.Second)
	}
}
