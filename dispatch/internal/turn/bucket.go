// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// bucket is a token bucket without a queue: what finds too little is refused. Its
// zero value is full.
type bucket struct {
	mu   sync.Mutex // guards the following
	used float64    // tokens that are missing
	last time.Time
}

// take takes n tokens of a bucket that holds burst and gains rate per second.
func (b *bucket) take(now time.Time, n, rate, burst float64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := now.Sub(b.last); d > 0 {
		b.used = max(0, b.used-d.Seconds()*rate)
		b.last = now
	}
	if b.used+n > burst {
		return false
	}
	b.used += n
	return true
}

// sources bounds what the addresses of a network cost the hub before they have
// proved anything. It is a table of fixed size: networks that fall together share
// a bucket, and nobody can make it grow.
type sources struct {
	seed    maphash.Seed
	off     atomic.Bool // in tests that flood
	buckets [4096]bucket
}

const (
	// A site whose hundred robots all start at once sits behind one address.
	sourceRate  = 200
	sourceBurst = 1000
)

func (s *sources) take(now time.Time, a netip.Addr) bool {
	if s.off.Load() {
		return true
	}
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return false
	}
	b := p.Addr().As16()
	return s.buckets[maphash.Bytes(s.seed, b[:])%uint64(len(s.buckets))].take(now, 1, sourceRate, sourceBurst)
}
