// SPDX-License-Identifier: Apache-2.0

// Package bottleneck tries pacing strategies on a network of virtual time: a link
// with a queue, robots with the lanes, reports and strategies of a real node,
// connections inside their tunnels and foreign ones beside them. A run of 35 seconds
// takes about a tenth of one, and gives the same numbers on every machine:
//
//	r := bottleneck.Run(bottleneck.Scenario{
//		Link: bottleneck.Link{Rate: 20 * bottleneck.Mbit},
//		Robots: []bottleneck.Robot{{
//			Strategy: func() congestion.Strategy { return mine.New() },
//			Flows:    bottleneck.Flows(bottleneck.CUBIC, 4, time.Second),
//		}},
//	})
//	fmt.Println(r.CriticalP99, r.Utilisation)
//
// # What is real
//
// The lanes with their scheduler, the strategy, the receiver of reports and the
// layout of the report are those of the product. So are the stamps of 64 µs, the
// counters of lanes and sessions, and the inner IPv4 header that is marked.
//
// # What is not
//
// Sealing and sending take no time, and nothing else delays a sender but its timer.
// Acknowledgements and reports come back over a path that is never full. The inner
// connections are short models, not an operating system's. There is no offload, no
// Wi-Fi priority, no reordering. Take a millisecond as noise, and prove in the lab
// what matters.
package bottleneck
