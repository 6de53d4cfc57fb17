// SPDX-License-Identifier: Apache-2.0

// Package congestion decides how fast a path may be filled, so that what is
// urgent never waits behind what is big.
//
// The narrowest link of a path is as a rule somebody else's: a modem, an access
// point, a router's shaper. What waits there waits in one queue, urgent or not.
// So the queue must be kept here, where lanes have an order, and the link must be
// given no more than it passes on. A [Strategy] finds out how much that is, from
// reports of the receiver. The caller keeps a token bucket of the rate, debits
// everything that leaves on the path, and lets Critical pass in any case.
//
// The package is pure: no clock, no goroutines, no sockets, no random numbers.
// The same calls give the same answers. A Strategy is not safe for concurrent use
// and does not allocate once its ring of sent batches has grown.
//
// # Strategies
//
//   - [NewNull]: no limit. For links that are faster than the host.
//   - [NewFixed]: one rate. For links whose rate is known, such as 95 % of it; and
//     for cells whose rate swings faster than any report can tell.
//   - [NewDelayRate]: finds the rate. The default.
//
// # DelayRate
//
// The receiver reports every 25 ms: cumulative counters, the newest packet, and
// the least, median and largest one-way delay. Delay above the least of the last
// 10 s is a queue q. The clocks need not agree, and may drift by some 100 ppm.
//
//   - Decrease. While a queue stands, what is delivered is our share of the link.
//     So q > max(2.5 ms, 2.2 packets) sets the rate to 96 % of the delivery. There
//     is no search.
//   - Drain. Bulk then stands still until a model says that the queue is gone:
//     q of the newest packet known, plus what has left since, less what the link
//     took since. Each report anchors the model anew. A pause of fixed length
//     would be wrong by the age of the report.
//   - Increase. 0.1/s · sqrt(rate · 20 Mbit/s), slower where the feedback is older
//     than 65 ms, and only while the rate is used. Relative growth that falls with
//     the rate, beside a proportional decrease, lets two senders converge.
//   - Start. Trains of 4 to 48 packets of waiting Bulk leave back to back; their
//     dispersion at the receiver shows the rate of the link without a queue of
//     more than some milliseconds. The rate follows at up to 4 times per train.
//     Where no train comes through it rises by a quarter per feedback delay.
//   - A memory. A rate that nothing has tested for 3 s is quartered, and the
//     search begins anew; so after reports were missing. While they are, the rate
//     halves per 100 ms.
//   - Noise. Delay that varies on an idle path, or comes and goes within one
//     report, is that of a cell's grants or of Wi-Fi aggregates. Where it is above
//     4 ms only a queue counts that stands for 40 to 120 ms, and no trains are sent.
//   - Others. A queue that three drains in a row did not empty is not ours. Then
//     Bulk keeps a floor, [DelayRateConfig.Floor], and drains no more. What such a
//     queue costs Critical no sender can help; State.Queue and State.Competing
//     tell of it.
//   - Loss without delay is a policer: more than 8 % over twice the least loss of
//     the last 10 s sets the rate to 97 % of the delivery.
//   - Trickles. A queue met by traffic far below the rate does not lower the rate:
//     its delivery says nothing of the link.
//   - Fast links. Above 200 Mbit/s a queue must be there in two reports, since a
//     busy host delays packets by some milliseconds too. Where trains show more
//     than 1.2 Gbit/s there is no limit, until a queue stands for 120 ms or
//     packets are lost as at a policer; it is taken away again after 10 s at the
//     earliest, later each time.
//
// # What cannot be had
//
// A link that falls faster than a round trip and a report's age fills its queue
// meanwhile; the bound is then how soon it is empty again (some 0.2 s at 40 ms).
// A foreign flow that fills the queue until it drops can only be given way to. At
// 5 Mbit/s one packet takes 2.3 ms, and two of them are no queue.
//
// # Sources
//
// Delay as the signal and the aging of the base: LEDBAT, RFC 6817, and Copa
// (Arun and Balakrishnan, NSDI 2018). Delivery rate as the target: BBR (Cardwell et
// al., ACM Queue 2016; draft-cheng-iccrg-delivery-rate-estimation). Reports of
// arrival for media: RFC 8888, and SCReAM, RFC 8298. Dispersion of trains:
// Dovrolis et al., INFOCOM 2001. A rate that was not used is not known: RFC 7661.
// Convergence of increase and decrease: Chiu and Jain, 1989; Bansal and
// Balakrishnan, INFOCOM 2001, for the square root.
package congestion
