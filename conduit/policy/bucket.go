// SPDX-License-Identifier: Apache-2.0

package policy

import "sync"

// Bucket is a token bucket with two measures, packets and bits; a packet passes
// where both have room, else it takes from neither. It begins full. Time is an
// argument, so it needs no clock. Safe for concurrent use; it does not allocate.
type Bucket struct {
	limit Limit // with bursts

	mu            sync.Mutex
	packets, bits credit
	started       bool
	last          int64
}

// credit is in billionths, so that a nanosecond of a whole rate is exact.
type credit struct{ have uint64 }

const nano = 1_000_000_000

// NewBucket returns a full bucket; zero bursts mean those that Limit names.
func NewBucket(l Limit) *Bucket {
	l = l.effective()
	return &Bucket{limit: l, packets: credit{l.BurstPackets * nano}, bits: credit{l.BurstBits * nano}}
}

// Limit returns what the bucket enforces.
func (b *Bucket) Limit() Limit { return b.limit }

// Exceeded tells which measure had no room.
type Exceeded uint8

// The answers of Take.
const (
	Within Exceeded = iota
	TooManyPackets
	TooManyBits
)

// Take asks for one packet of size bytes at now, a monotonic clock in
// nanoseconds. A clock that goes back stands still.
func (b *Bucket) Take(size int, now int64) Exceeded {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.started {
		b.started, b.last = true, now
	}
	if now > b.last {
		elapsed := uint64(now - b.last)
		b.last = now
		b.packets.fill(elapsed, b.limit.PacketsPerSecond, b.limit.BurstPackets)
		b.bits.fill(elapsed, b.limit.BitsPerSecond, b.limit.BurstBits)
	}
	need := uint64(min(max(size, 0), 1<<20)) * 8 * nano // an offloaded packet is cut up before
	switch {
	case b.limit.PacketsPerSecond > 0 && b.packets.have < nano:
		return TooManyPackets
	case b.limit.BitsPerSecond > 0 && b.bits.have < need:
		return TooManyBits
	}
	if b.limit.PacketsPerSecond > 0 {
		b.packets.have -= nano
	}
	if b.limit.BitsPerSecond > 0 {
		b.bits.have -= need
	}
	return Within
}

// fill never overflows: MaxBurst billionths fit, and a product is only formed
// where it is less than what is missing.
func (c *credit) fill(elapsed, rate, burst uint64) {
	if rate == 0 {
		return
	}
	missing := burst*nano - c.have
	if elapsed > missing/rate {
		c.have += missing
		return
	}
	c.have += elapsed * rate
}
