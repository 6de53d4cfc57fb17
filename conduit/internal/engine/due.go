// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"container/heap"
	"time"
)

// minTick bounds how often the engine looks at its peers by itself.
const minTick = time.Millisecond

// dueHeap holds the peers that want a tick, the earliest first: with thousands of
// peers only those that have something to do cost anything.
type dueHeap []*peer

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].dueAt.Before(h[j].dueAt) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].dueIndex, h[j].dueIndex = i, j
}

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) {
	p := x.(*peer)
	p.dueIndex = len(*h)
	*h = append(*h, p)
}

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	p.dueIndex = -1
	return p
}

// touch has p ticked before the engine sleeps again.
func (e *Engine) touch(p *peer) { e.schedule(p, time.Time{}) }

// schedule has p ticked at a time, or earlier if that was asked for.
func (e *Engine) schedule(p *peer, at time.Time) {
	switch {
	case p.dueIndex < 0:
		p.dueAt = at
		heap.Push(&e.due, p)
	case at.Before(p.dueAt):
		p.dueAt = at
		heap.Fix(&e.due, p.dueIndex)
	}
}

// unschedule forgets p.
func (e *Engine) unschedule(p *peer) {
	if p.dueIndex >= 0 {
		heap.Remove(&e.due, p.dueIndex)
	}
}

// tick serves the peers that are due and returns when to be called again.
func (e *Engine) tick(now time.Time) time.Time {
	next := e.housekeep(now)
	for len(e.due) > 0 && !e.due[0].dueAt.After(now) {
		p := heap.Pop(&e.due).(*peer)
		if at := p.tick(now); !at.IsZero() {
			if least := now.Add(minTick); at.Before(least) {
				at = least
			}
			e.schedule(p, at)
		}
	}
	if len(e.due) > 0 && e.due[0].dueAt.Before(next) {
		next = e.due[0].dueAt
	}
	return next
}
