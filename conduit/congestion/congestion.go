// SPDX-License-Identifier: Apache-2.0

package congestion

import "time"

// MinRate is the least finite rate of a Strategy, in bytes per second: 64 kbit/s.
const MinRate = 64e3 / 8

// MaxRate is the greatest finite rate of a Strategy, in bytes per second: 100 Gbit/s.
const MaxRate = 12.5e9

// The lanes, as in [Sent.Lane] and [Report.Lane].
const (
	Critical  = 0
	Telemetry = 1
	Bulk      = 2
)

// Strategy decides how fast one path of one peer may be filled. Its rate is for
// everything that leaves on the path; the caller lets Critical pass in any case
// and debits it, so that Bulk gets what is left.
//
// A Strategy has no clock: now is the time since any fixed instant, on a clock
// that does not step, and never goes back. It is not safe for concurrent use.
// The same calls give the same answers, on any machine.
type Strategy interface {
	// Sent tells of datagrams that leave now: right after they were given to the
	// system, with the time taken before.
	Sent(now time.Duration, s Sent)

	// Report takes what the receiver saw. The report is not kept.
	Report(now time.Duration, r *Report)

	// Tick is to be called at least every millisecond while Telemetry or Bulk
	// wait, at each dequeue and after each Report. waiting is the wire bytes of
	// Bulk that wait for this path. It returns how many of them are to leave back
	// to back now, beyond the rate: a train, which is a loan to be repaid.
	Tick(now time.Duration, waiting int) (train int)

	// TrainSent tells which counters the train got that Tick asked for. It is not
	// called where the train came to nothing.
	TrainSent(now time.Duration, t Train)

	// Rate is bytes per second on the wire for all lanes, from MinRate to
	// MaxRate; +Inf: no limit.
	Rate(now time.Duration) float64

	// State is what the strategy thinks, for status and for repairs.
	State(now time.Duration) State
}

// Learner is what a [Strategy] has that knows its rate from reports alone. To a peer
// that sends none nothing should be paced by it.
type Learner interface{ Learns() }

// Sharer is what a [Strategy] has that wants to know how much the paths beside it
// are given.
type Sharer interface {
	// Beside tells what all paths of the uplink are given together, this one
	// included, in bytes per second, ahead of each Report.
	Beside(total float64)
}

// Sent is a batch of datagrams of one lane and session that left together.
type Sent struct {
	Lane uint8
	// Session is the receiver index of the session that sealed them. 0: they
	// belong to none, as STUN or a handshake; then only Bytes counts.
	Session uint32
	// First and Last are the counters of the batch, without a gap. They are of
	// the lane, not of the path.
	First, Last uint64
	// Packets is how many datagrams left.
	Packets int
	// Bytes is the sum of their sizes on the wire: UDP payload + 28 for IPv4, + 48 for IPv6.
	Bytes int
	// Copies is how many of Packets repeat a packet that was sent before.
	Copies int
}

// Report is what the receiver of a path saw, up to the newest packet.
type Report struct {
	// Packets, Copies and Bytes are cumulative since the receiver knows the path:
	// packets of all lanes that were new, packets that had been seen before, and
	// the wire bytes of both.
	Packets, Copies, Bytes uint64

	// Session, Lane and Counter name the newest packet of the least urgent lane that
	// arrived, whose delays these are.
	Session uint32
	Lane    uint8
	Counter uint64

	// Received is when the newest packet arrived, on the receiver's clock, which
	// has nothing to do with ours.
	Received time.Duration
	// Hold is how long the receiver waited from there to the report.
	Hold time.Duration

	// Samples is the number of packets behind the delays since the last report.
	Samples int
	// The one-way delays from any fixed zero, which may be negative: the least,
	// the median, the greatest and that of the newest packet.
	DelayMin, DelayP50, DelayMax, DelayLast time.Duration

	// CE counts the packets that a router marked, cumulative modulo 2^32.
	CE uint32

	// Train is the longest train since the last report.
	Train TrainSeen
}

// Train is a run of Bulk packets that left back to back.
type Train struct {
	Session uint32
	// First and Last are their counters, without a gap.
	First, Last uint64
	// Packets is how many they are.
	Packets int
	// Bytes is the wire size of all but the first.
	Bytes int
}

// TrainSeen is how a train arrived.
type TrainSeen struct {
	// First is the counter of its first packet.
	First uint64
	// Bytes is the wire size of all but the first. 0: no train.
	Bytes int
	// Dispersion is the time from the first packet to the last. 0: too short to be seen.
	Dispersion time.Duration
}

// State is a snapshot of a Strategy. What is not known is 0.
type State struct {
	// Name is "null", "fixed" or "delay-rate".
	Name string
	// Rate is what [Strategy.Rate] returns.
	Rate float64

	// Startup: the rate of the path is being looked for.
	Startup bool
	// Draining: Bulk stands still until a queue has gone.
	Draining bool
	// Competing: the queue is somebody else's and does not go when Bulk stands still.
	Competing bool
	// Noisy: the delay of the path varies by itself, as on LTE.
	Noisy bool

	// BaseRTT is the least round trip of the last 10 s or so, RTT the smoothed one;
	// neither has the receiver's hold in it.
	BaseRTT, RTT time.Duration
	// Queue is the delay above the least that the last report saw.
	Queue time.Duration
	// Noise is by how much the delay varies without a queue of ours.
	Noise time.Duration

	// Loss is the share of datagrams that the way lost lately, before any repair;
	// copies count as datagrams. 0 to 1.
	Loss float64
	// LossSamples is the number of datagrams behind Loss: of the last 300, or of
	// the last second where that is more. The standard error of Loss is about
	// sqrt(Loss/LossSamples).
	LossSamples int

	// Delivery is bytes per second that arrived in the last window.
	Delivery float64
}
