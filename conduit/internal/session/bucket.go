// SPDX-License-Identifier: Apache-2.0

package session

import "time"

// bucket lets through one event each gap, with bursts (GCRA, ITU-T I.371). The zero
// value is full.
type bucket struct{ next time.Time }

func (b *bucket) allow(now time.Time, gap time.Duration, burst int) bool {
	next := b.next
	if next.Before(now) {
		next = now
	}
	if next.Sub(now) > gap*time.Duration(burst-1) {
		return false
	}
	b.next = next.Add(gap)
	return true
}
