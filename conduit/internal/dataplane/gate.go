// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Where the narrow place is our own interface, what waits in its queue is still
// charged to the socket: that is known at once, a round trip before a report could
// tell. While more waits there than the pace would let out in gateTime, Telemetry
// and Bulk stay in their lanes.
const (
	gateTime = 5 * time.Millisecond
	// The kernel charges what a buffer takes, some 1.6 times a full packet.
	truesize = 1.6
	minGate  = 8 << 10
	// The first look comes after gateStep, the next after twice as long, up to
	// maxGateStep: a socket that never drains must not cost the processor.
	gateStep    = int64(500 * time.Microsecond)
	maxGateStep = int64(8 * time.Millisecond)
)

// gate holds the uplink's lanes while too much waits behind a socket.
func (s *sender) gate(l *link, of packet.Lane) {
	if of == packet.Critical || l.backlog == nil || l.gated {
		return
	}
	limit := gateLimit(s.sent)
	if limit == 0 || l.backlog.Queued() <= limit {
		return
	}
	l.gated, l.gateLimit, l.gateStep = true, limit, gateStep
	l.gateAt = s.now + gateStep
	l.up.lanes.Hold(packet.Telemetry)
	s.gated = append(s.gated, l)
	s.d.lanes.Wake(l.gateAt)
}

// gateLimit is what may wait behind a socket that sends at these pipes' rates.
func gateLimit(sent []sentOn) int {
	rate := 0.0
	var last *lane.Pipe
	for i := range sent {
		if p := sent[i].pipe; p != last {
			last = p
			rate += p.Rate()
		}
	}
	if math.IsInf(rate, 1) || rate == 0 || rate > aloneBelow {
		return 0
	}
	return max(int(rate*gateTime.Seconds()*truesize), minGate)
}

// ungate opens the lanes again that the kernel has room for.
func (s *sender) ungate() {
	if len(s.gated) == 0 {
		return
	}
	s.gated = slices.DeleteFunc(s.gated, func(l *link) bool {
		select {
		case <-l.done: // its uplink may be gone as well
		default:
			if s.now < l.gateAt {
				return false
			}
			if l.backlog.Queued() > l.gateLimit {
				l.gateStep = min(2*l.gateStep, maxGateStep)
				l.gateAt = s.now + l.gateStep
				return false
			}
		}
		l.gated = false
		l.up.lanes.Unhold(packet.Telemetry)
		return true
	})
	for _, l := range s.gated {
		s.d.lanes.Wake(l.gateAt)
	}
}
