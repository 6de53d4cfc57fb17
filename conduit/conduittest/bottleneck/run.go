// SPDX-License-Identifier: Apache-2.0

package bottleneck

import (
	"maps"
	"time"
)

// foreignPacket is the size of foreign packets, in bytes.
const foreignPacket = 1500

// Run plays the scenario to its end and returns what was seen. It takes no time
// but that of the processor, and starts no goroutine. It panics on a scenario that
// makes no sense.
func Run(s Scenario) *Result {
	s.fill()
	l := newLoop(s.Seed)
	// Sources: Bulk of the robots, foreign flows, Critical of the robots.
	n, m := len(s.Robots), len(s.Foreign)
	k := newLink(l, s.Link, int64(s.RTT/2), 2*n+m)
	robots := make([]*robot, n)
	for i, cfg := range s.Robots {
		robots[i] = newRobot(l, cfg, &s, k, i, n+m+i)
		robots[i].start()
	}
	for i, cfg := range s.Foreign {
		newFlow(l, cfg, foreignPacket, n+i, int64(s.RTT/2), k.send).start()
	}
	res := &Result{scenario: &s, bins: k.bins[:n+m]}
	if s.Sample > 0 && n > 0 {
		l.every(0, func() int64 { return int64(s.Sample) }, func() { res.Series = append(res.Series, look(robots[0])) })
	}
	l.run(int64(s.Duration))
	for _, r := range robots {
		defer r.lanes.Close() // what waits in them is not dropped by them
	}
	for i, r := range robots {
		res.Faults += r.faults
		if i == 0 {
			res.Critical, res.CriticalDemoted, res.Marked = r.critical, r.demoted, r.marked
			res.DroppedFor = maps.Clone(r.dropped)
			for _, n := range r.dropped {
				res.Dropped += n
			}
		}
	}
	res.sum()
	return res
}

func look(r *robot) Sample {
	k := r.link
	s := Sample{
		At: time.Duration(r.now), Capacity: k.rate(),
		Queue: time.Duration(float64(k.bytes) / k.rate() * 1e9),
		State: r.strategy.State(time.Duration(r.now)),
	}
	for _, st := range r.lanes.Stats() {
		s.Waiting += st.Depth
	}
	return s
}
