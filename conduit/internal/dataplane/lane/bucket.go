// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math"
	"time"
)

const (
	// onePacket is the least that a bucket holds, and minDebt the least that it may
	// owe: a train of four packets, which is a loan.
	onePacket = 1500.0
	minDebt   = 4 * onePacket
	// burst and debt are how long a bucket may save, and owe.
	burst = 1.5e-3
	debt  = 50e-3
	// refFade is how slowly ref follows a rate that falls.
	refFade = 2.0
	// grain is the least time that is slept for tokens: more packets then leave
	// together.
	grain = int64(250 * time.Microsecond)
)

// bucket is a token bucket: bytes may leave while tokens > 0.
type bucket struct {
	rate   float64 // bytes per second; +Inf: no limit
	tokens float64
	at     int64 // of the last refill
	// ref is rate, but falls slowly: a pause is not the rate of a path.
	ref float64
}

// refill adds the tokens of the time since the last refill.
func (k *bucket) refill(now int64, rate float64) {
	dt := max(0, float64(now-k.at)/1e9)
	k.at = now
	if math.IsInf(rate, 1) {
		k.rate, k.ref, k.tokens = rate, rate, onePacket
		return
	}
	k.rate = rate
	if rate >= k.ref || math.IsInf(k.ref, 1) {
		k.ref = rate
	} else {
		k.ref -= (k.ref - rate) * min(1, dt/refFade)
	}
	k.tokens = min(k.tokens+rate*dt, max(onePacket, rate*burst))
}

func (k *bucket) take(bytes int) {
	if !math.IsInf(k.rate, 1) {
		k.tokens = max(k.tokens-float64(bytes), -max(minDebt, k.ref*debt))
	}
}

func (k *bucket) open() bool { return k.tokens > 0 }

// budget is how many bytes may leave now; the last packet may overdraw it.
func (k *bucket) budget() int {
	if math.IsInf(k.rate, 1) {
		return math.MaxInt
	}
	return int(math.Ceil(k.tokens))
}

// readyAt is when there are tokens again.
func (k *bucket) readyAt(now int64) int64 {
	return now + max(grain, int64((1-k.tokens)/k.rate*1e9)+1)
}
