// SPDX-License-Identifier: Apache-2.0

package bottleneck

import "math/rand/v2"

// Virtual time is in nanoseconds since the scenario began.
const (
	microsecond = int64(1e3)
	millisecond = int64(1e6)
	second      = int64(1e9)
)

// event is something that happens at a moment: do(), or carry(d).
type event struct {
	at    int64
	seq   uint64 // of making: events of one moment happen in this order
	do    func()
	carry func(*datagram)
	d     *datagram
}

func (e *event) before(o *event) bool {
	return e.at < o.at || e.at == o.at && e.seq < o.seq
}

// loop runs events in the order of virtual time. It knows no other clock and draws
// all chance from one seed, so two runs of one scenario are equal.
type loop struct {
	now  int64
	rng  *rand.Rand
	seq  uint64
	heap []event
}

func newLoop(seed uint64) *loop {
	return &loop{rng: rand.New(rand.NewPCG(seed, 0x626f74746c656e65))}
}

func (l *loop) at(t int64, do func())    { l.push(event{at: t, do: do}) }
func (l *loop) after(d int64, do func()) { l.push(event{at: l.now + d, do: do}) }

// carryAt has f take d at t, without a closure for each packet.
func (l *loop) carryAt(t int64, f func(*datagram), d *datagram) {
	l.push(event{at: t, carry: f, d: d})
}

func (l *loop) push(e event) {
	e.at = max(e.at, l.now)
	l.seq++
	e.seq = l.seq
	h := append(l.heap, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !h[i].before(&h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
	l.heap = h
}

func (l *loop) pop() event {
	h := l.heap
	first := h[0]
	n := len(h) - 1
	h[0], h[n] = h[n], event{}
	h = h[:n]
	for i := 0; ; {
		down := 2*i + 1
		if down >= n {
			break
		}
		if down+1 < n && h[down+1].before(&h[down]) {
			down++
		}
		if !h[down].before(&h[i]) {
			break
		}
		h[i], h[down] = h[down], h[i]
		i = down
	}
	l.heap = h
	return first
}

// run has everything happen that is due until end.
func (l *loop) run(end int64) {
	for len(l.heap) > 0 && l.heap[0].at <= end {
		e := l.pop()
		l.now = e.at
		if e.do != nil {
			e.do()
		} else {
			e.carry(e.d)
		}
	}
	l.now = end
}

// every repeats do with the distances that gap returns.
func (l *loop) every(first int64, gap func() int64, do func()) {
	var again func()
	again = func() {
		do()
		l.after(gap(), again)
	}
	l.at(first, again)
}

// uniform draws from [lo, hi).
func (l *loop) uniform(lo, hi float64) float64 { return lo + (hi-lo)*l.rng.Float64() }
