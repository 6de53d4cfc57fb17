// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"time"
)

const noiseMax = 0.03 // s

// noise learns by how much the delay varies without a queue of ours: the grants
// of a cell, the aggregates of Wi-Fi, a busy host.
type noise struct {
	s float64 // s: S

	// Windows of three seconds without load.
	windows     int
	windowAt    time.Duration
	samples     int
	reports     int
	least       float64
	most, most2 float64 // the two largest of the reports' largest

	// Under load: delays that are gone within one report.
	lows   [2]float64 // least delays of the last reports, newest first
	peak   float64    // largest delay of the last report
	events float64    // fades

	q50 float64 // median of the last report

	// Least delays of the last reports, for the standing queue.
	low   [16]float64
	lowAt [16]time.Duration
	head  int
	n     int
}

// age is called with each report.
func (n *noise) age(dt float64) {
	n.s *= math.Exp(-dt / 30)
	n.events *= math.Exp(-dt / 1.5)
}

// idle learns from a report of a path without load. Later on one odd packet in
// some seconds says nothing of the path: the host was busy. At first there is
// nothing else to go by.
func (n *noise) idle(now time.Duration, samples int, qlo, qmax float64) {
	if n.samples == 0 {
		n.windowAt, n.least, n.most, n.most2, n.reports = now, qlo, 0, 0, 0
	}
	n.samples += samples
	n.reports++
	n.least = min(n.least, qlo)
	if qmax > n.most {
		n.most, n.most2 = qmax, n.most
	} else {
		n.most2 = max(n.most2, qmax)
	}
	if n.least < 0.002 && n.samples >= 8 {
		peak := n.most
		if n.windows > 0 {
			peak = n.most2
		}
		n.s = max(n.s, min(peak, noiseMax))
	}
	if now-n.windowAt > 3*time.Second {
		n.samples = 0
		n.windows++
	}
}

// loaded learns from a report of a path under load: a delay that was there in
// one report and neither before nor after is no queue. It takes three of them.
func (n *noise) loaded(qlo, packetTime float64) {
	if n.lows[1] < 0.001 && qlo < 0.001 && n.peak > 0.003+3*packetTime {
		n.event(n.peak)
	}
}

// event counts a delay that was no queue. The third of some two seconds counts.
func (n *noise) event(peak float64) {
	if n.events++; n.events > 2.5 {
		n.s = max(n.s, min(peak, noiseMax))
	}
}

// remember ends the work on a report.
func (n *noise) remember(now time.Duration, q50, qlo, qmax float64) {
	n.q50 = q50
	n.lows[1], n.lows[0], n.peak = n.lows[0], qlo, qmax
	n.low[n.head], n.lowAt[n.head] = qlo, now
	n.head = (n.head + 1) % len(n.low)
	n.n = min(n.n+1, len(n.low))
}

// standing is the least delay of the last window: what was there all the time.
func (n *noise) standing(now, window time.Duration) float64 {
	q := math.Inf(1)
	for i := range n.n {
		k := (n.head - 1 - i + len(n.low)) % len(n.low)
		if i > 0 && now-n.lowAt[k] > window {
			break
		}
		q = min(q, n.low[k])
	}
	return q
}
