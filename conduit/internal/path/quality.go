// SPDX-License-Identifier: Apache-2.0

package path

import (
	"math/bits"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

const (
	// A path that loses more than badLoss, or is slower in 95 of 100 cases than a
	// path of a lower kind by badDelay and a tenth, for badFor is poor. It is no
	// longer when it lost less than goodLoss and is not slower than by goodDelay for
	// as long; each time that it happens again, for twice as long.
	badLoss   = 0.03
	goodLoss  = 0.02
	badLosses = 4 // of the last 64; fewer are chance, unless it goes on
	badDelay  = 20 * time.Millisecond
	goodDelay = 10 * time.Millisecond
	badFor    = 2 * time.Second
	maxHold   = time.Minute
	calmAfter = 5 * time.Minute // the doubling begins anew
	// awfulLoss is too much for Bulk as well.
	awfulLoss = 0.15
	longShare = 128
	// minSamples is how many probes it takes to speak of loss.
	minSamples = 20
	// shakyLoss and shakyVar make Telemetry use a second path.
	shakyLoss = 0.01
	shakyVar  = 10 * time.Millisecond
	shakyFor  = 2 * time.Second
	// boostFor is how long a path that lost two of 32 probes is probed closely.
	boostFor = 4 * time.Second
)

// quality is what a path's probes tell of it.
type quality struct {
	srtt, rttvar time.Duration
	rtts         [32]uint32 // µs, the newest
	rttN         uint32

	hist uint64  // the newest in bit 0; 1: lost
	n    uint32  // how many there were
	long float64 // the share that was lost of some hundreds

	boost dur // probed closely until then

	poor      bool
	bad, good dur // since when it would be poor, or no longer
	flaps     int
	restored  dur
	shaky     dur // until then
}

// reset forgets the losses of a path that was down.
func (q *quality) reset() { q.hist, q.n, q.long = 0, 0, 0 }

// measure takes a round-trip time (RFC 6298).
func (q *quality) measure(rtt time.Duration) {
	if q.srtt == 0 {
		q.srtt, q.rttvar = max(rtt, 1), rtt/2
	} else {
		q.rttvar += ((q.srtt - rtt).Abs() - q.rttvar) / 4
		q.srtt = max(q.srtt+(rtt-q.srtt)/8, 1)
	}
	q.rtts[q.rttN%uint32(len(q.rtts))] = uint32(min(rtt.Microseconds(), 1<<32-1))
	q.rttN++
}

// rto is after what time an answer is overdue.
func (q *quality) rto() time.Duration {
	if q.srtt == 0 {
		return time.Second
	}
	return min(max(q.srtt+2*q.rttvar, q.srtt+20*time.Millisecond), 5*time.Second)
}

// slow is a round trip that is seldom exceeded.
func (q *quality) slow() time.Duration {
	if q.srtt == 0 {
		return time.Second
	}
	return q.srtt + min(2*q.rttvar, q.srtt)
}

// p95 is the round trip that 95 of 100 do not exceed.
func (q *quality) p95() time.Duration {
	n := min(int(q.rttN), len(q.rtts))
	if n == 0 {
		return 0
	}
	r := q.rtts
	slices.Sort(r[:n])
	return time.Duration(r[(n*95+99)/100-1]) * time.Microsecond
}

// note remembers the fate of a probe and returns its place.
func (q *quality) note(isLost bool) uint32 {
	q.hist <<= 1
	q.long -= q.long / longShare
	if isLost {
		q.hist |= 1
		q.long += 1.0 / longShare
	}
	q.n++
	return q.n
}

// amend says that the lost probe in that place was answered after all.
func (q *quality) amend(pos uint32) {
	if pos <= q.n && q.n-pos < 64 && q.hist>>(q.n-pos)&1 != 0 {
		q.long = max(q.long-1.0/longShare, 0)
		q.hist &^= 1 << (q.n - pos)
	}
}

// losses returns how many of the last n probes were lost.
func (q *quality) losses() (lost, n int) {
	n = int(min(q.n, 64))
	h := q.hist
	if n < 64 {
		h &= 1<<n - 1
	}
	return bits.OnesCount64(h), n
}

// lately is how many of the last 32 probes were lost.
func (q *quality) lately() int { return bits.OnesCount32(uint32(q.hist)) }

// often is how much more patience a path needs that loses much: 0 below one of
// eight.
func (q *quality) often() int {
	l, _ := q.losses()
	return l / 8
}

// loss is the share of probes without an answer.
func (q *quality) loss() float64 {
	l, n := q.losses()
	if n == 0 {
		return 0
	}
	return float64(l) / float64(max(n, minSamples))
}

// awful reports whether no lane should use the path if it can help it.
func (q *quality) awful() bool { return q.poor && q.loss() > awfulLoss }

// judge decides whether p is poor. lower is the best round trip of the valid
// paths of lower kinds, 0 without any.
func (q *quality) judge(lower time.Duration, now dur) (changed bool) {
	l, n := q.losses()
	loss := q.loss()
	slow, quick := false, true
	if lower > 0 && q.rttN >= 8 {
		p := q.p95()
		slow = p > lower+lower/10+badDelay
		quick = p < lower+goodDelay
	}
	if loss > shakyLoss && n >= minSamples || q.rttvar > max(shakyVar, q.srtt/2) && q.rttN >= 8 {
		changed = q.shaky <= now
		q.shaky = now + shakyFor
	}
	if q.flaps > 0 && !q.poor && now-q.restored > calmAfter {
		q.flaps = 0
	}
	if !q.poor {
		q.good = 0
		if !slow && (loss <= badLoss || l < badLosses) && (q.long <= badLoss || q.n < longShare) {
			q.bad = 0
			return changed
		}
		if q.bad == 0 {
			q.bad = now
		}
		if now-q.bad < badFor {
			return changed
		}
		q.poor, q.bad = true, 0
		return true
	}
	if !quick || loss > goodLoss || q.flaps > 0 && q.long > goodLoss {
		q.good = 0
		return changed
	}
	if q.good == 0 {
		q.good = now
	}
	if now-q.good < min(badFor<<q.flaps, maxHold) {
		return changed
	}
	q.poor, q.good, q.restored = false, 0, now
	q.long = min(q.long, loss)
	q.flaps = min(q.flaps+1, 6)
	return true
}

// score orders paths of the same class for a lane: the less the better. Those
// that it uses stay unless others are clearly better, and so does the first.
func (s *Set) score(p *path, lane packet.Lane) dur {
	rtt := p.q.srtt
	if rtt == 0 {
		rtt = time.Second
	}
	sc := rtt + 2*p.q.rttvar + time.Duration(p.q.loss()*float64(500*time.Millisecond))
	if p.used[lane] {
		sc -= sc/4 + 5*time.Millisecond
	}
	if use := s.use[lane]; len(use) > 0 && use[0] == p {
		sc -= sc.Abs()/4 + 5*time.Millisecond
	}
	return sc
}
