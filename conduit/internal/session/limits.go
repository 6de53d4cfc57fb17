// SPDX-License-Identifier: Apache-2.0

package session

import (
	"slices"
	"time"
)

const (
	// maxAllHalfOpen bounds the unconfirmed attempts of all peers together.
	maxAllHalfOpen = 64
	// handshakeGap and handshakeBurst bound the invites and knocks whose signatures
	// are looked at.
	handshakeGap   = 20 * time.Millisecond
	handshakeBurst = 64
)

// Limits bound what handshakes may cost a node. All its Machines share one; they
// and it are not safe for concurrent use.
type Limits struct {
	gap    time.Duration // 0: no budget
	budget bucket
	half   []halfOpen // oldest first
}

type halfOpen struct {
	m *Machine
	r *responder
}

// NewLimits returns the limits of a node: 64 unconfirmed attempts, of which the
// oldest makes room, and 50 signatures a second (bursts of 64).
func NewLimits() *Limits { return &Limits{gap: handshakeGap} }

// HalfOpen returns how many unconfirmed attempts there are.
func (l *Limits) HalfOpen() int { return len(l.half) }

// allow reports whether one more signature may be looked at.
func (l *Limits) allow(now time.Time) bool { return l.budget.allow(now, l.gap, handshakeBurst) }

// add counts an attempt of m; of too many the oldest ends.
func (l *Limits) add(m *Machine, r *responder) {
	if len(l.half) >= maxAllHalfOpen {
		oldest := l.half[0]
		oldest.m.dropHalf(oldest.r)
	}
	l.half = append(l.half, halfOpen{m, r})
}

// remove forgets an attempt that ended.
func (l *Limits) remove(r *responder) {
	l.half = slices.DeleteFunc(l.half, func(h halfOpen) bool { return h.r == r })
}
