// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"time"
)

// limiter lets one event through in each gap, and some at once (GCRA, ITU-T I.371).
// Racing callers may let one more through.
type limiter struct{ next atomic.Int64 }

// allow reports whether an event may happen now; slack is by how much it may be
// early: gap times one less than the burst.
func (l *limiter) allow(now, gap, slack int64) bool {
	next := max(l.next.Load(), now)
	if next-now > slack {
		return false
	}
	l.next.Store(next + gap)
	return true
}

// Rates that strangers or peers can drive.
const (
	// A bond is probed every 50 ms on each of several paths, by both ends.
	probeGap, probeSlack = int64(time.Second / 400), 199 * probeGap
	// A report comes every 25 ms for each path, or every 8 ms where it is urgent.
	reportGap, reportSlack = int64(time.Second / 500), 19 * reportGap
	// What else a session may have decided: answers to our probes for the most part.
	controlGap, controlSlack = int64(time.Second / 500), 199 * controlGap
	// Pairs of relay and peer that nothing is known of.
	missGap, missSlack = int64(time.Second / 20), 9 * missGap
	// Critical that is carried for others waits in the same lane as our own.
	carryGap, carrySlack = int64(time.Second / 1000), 127 * carryGap
	// Challenges are answered once for each change of address.
	challengeGap, challengeSlack = int64(time.Second / 100), 49 * challengeGap
	sourceGap, sourceSlack       = int64(time.Second / 20), 4 * sourceGap
	handshakeGap, handshakeSlack = int64(time.Second / 20000), 1999 * handshakeGap
	refusedGap, refusedSlack     = int64(time.Second / 100), 19 * refusedGap
)
