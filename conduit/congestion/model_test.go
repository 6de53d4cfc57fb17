// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const (
	ms   = time.Millisecond
	mbit = 1e6 / 8 // bytes/s
	gbit = 1e9 / 8
)

// model is a fluid bottleneck with a strategy before it and a receiver behind it:
// steps of 250 us, a greedy sender of Bulk, 100 Hz of Critical.
type model struct {
	rate  func(time.Duration) float64 // of the link, bytes/s
	cpu   float64                     // most that the sender can do, bytes/s; 0: no limit
	queue float64                     // bytes
	prop  time.Duration               // one way
	pause func(*rand.Rand) (every, length time.Duration)
	noise func(now time.Duration) time.Duration // more delay of what leaves now
	cross func(time.Duration) float64           // foreign traffic, bytes/s
	loss  float64
	drop  func(now time.Duration) bool // reports that are lost
	load  func(now time.Duration) bool // Bulk waits; nil: always
	lane  uint8                        // of the load; 0: Bulk
	deaf  bool                         // no trains are reported
	every bool                         // each batch counts as a train, and the longest is reported

	st  Strategy
	rng *rand.Rand

	now              time.Duration
	backlog          float64 // bytes in the bottleneck
	tokens           float64
	counters         [3]uint64
	arrivals         []arrival
	reports          []Report
	reportAt         []time.Duration
	packets, bytes   uint64
	dropped          uint64
	pauseAt, pauseTo time.Duration
	credit           float64 // of the sender's processor
	last             time.Duration
	delays           []time.Duration
	newest           arrival
	train            TrainSeen
	trainSent        Train

	// What came of it.
	critical  []time.Duration // queueing delay
	delivered func(now time.Duration, bytes float64)
	tick      func(now time.Duration)
}

type arrival struct {
	at, delay  time.Duration
	lane       uint8
	first      uint64
	counter    uint64
	packets    int
	bytes      int
	train      bool
	dispersion time.Duration
}

const step = 250 * time.Microsecond

func newModel(st Strategy) *model {
	return &model{
		rate: func(time.Duration) float64 { return 20 * mbit }, queue: 256 << 10, prop: 20 * ms, lane: Bulk,
		st: st, rng: rand.New(rand.NewPCG(1, 2)), last: -time.Second,
	}
}

// run goes on until end.
func (m *model) run(end time.Duration) {
	for ; m.now < end; m.now += step {
		m.advance()
	}
}

func (m *model) advance() {
	now := m.now
	c := m.rate(now)
	m.backlog = max(0, m.backlog-c*step.Seconds())
	if m.cross != nil {
		m.backlog = min(m.backlog+m.cross(now)*step.Seconds(), m.queue)
	}
	for len(m.reports) > 0 && m.reportAt[0] <= now {
		m.st.Report(now, &m.reports[0])
		m.reports, m.reportAt = m.reports[1:], m.reportAt[1:]
	}
	if m.pause != nil && now >= m.pauseAt {
		every, length := m.pause(m.rng)
		m.pauseTo, m.pauseAt = now+length, now+length+every
		m.send(now, 0, 1410, false, length) // it was stamped, but waits for the processor
	}
	paused := now < m.pauseTo
	if now%(10*ms) == 0 && !paused {
		m.send(now, Critical, 190, false, 0)
	}
	if r := m.st.Rate(now); math.IsInf(r, 1) {
		m.tokens = math.Inf(1)
	} else {
		if math.IsInf(m.tokens, 1) {
			m.tokens = 0
		}
		m.tokens = max(min(m.tokens+r*step.Seconds(), max(1410, r*0.0015)), -0.05*r)
	}
	if !paused && (m.load == nil || m.load(now)) {
		m.bulk(now)
	}
	m.receive(now)
	if m.tick != nil {
		m.tick(now)
	}
}

func (m *model) bulk(now time.Duration) {
	waiting := 1 << 20
	if m.lane != Bulk {
		waiting = 0
	}
	m.credit = min(m.credit+m.cpu*step.Seconds(), m.cpu*0.001)
	if train := m.st.Tick(now, waiting); train > 0 {
		n := (train + 1409) / 1410
		m.credit -= float64(n * 1410)
		m.send(now, m.lane, n*1410, true, 0)
	}
	can := m.tokens
	if m.cpu > 0 {
		can = min(can, m.credit)
	}
	if n := int(math.Ceil(min(can, 64<<20) / 1410)); n > 0 {
		m.credit -= float64(n * 1410)
		m.send(now, m.lane, n*1410, false, 0)
	}
}

// send puts packets into the bottleneck.
func (m *model) send(now time.Duration, lane uint8, bytes int, train bool, late time.Duration) {
	n := max(1, bytes/1410)
	first := m.counters[lane] + 1
	m.counters[lane] += uint64(n)
	m.tokens -= float64(bytes)
	m.st.Sent(now, Sent{Lane: lane, Session: 7, First: first, Last: m.counters[lane], Packets: n, Bytes: bytes})
	c := m.rate(now)
	each := bytes / n
	fit := n
	if room := m.queue - m.backlog; float64(bytes) > room+c*step.Seconds() {
		fit = max(0, int((room+c*step.Seconds())/float64(each)))
	}
	if m.loss > 0 {
		for range fit {
			if m.rng.Float64() < m.loss {
				fit--
			}
		}
	}
	m.dropped += uint64(n - fit)
	m.backlog += float64(fit * each)
	queueing := time.Duration(m.backlog / c * 1e9)
	if lane == Critical {
		m.critical = append(m.critical, queueing)
	}
	if train {
		m.trainSent = Train{Session: 7, First: first, Last: m.counters[lane], Packets: n, Bytes: (n - 1) * each}
		m.st.TrainSent(now, m.trainSent)
	}
	if fit == 0 {
		return
	}
	delay := queueing + m.prop + late
	if m.noise != nil {
		delay += m.noise(now)
	}
	speed := c
	if m.cpu > 0 {
		speed = min(c, m.cpu)
	}
	a := arrival{at: max(now+delay, m.lastAt()), lane: lane, first: first, counter: m.counters[lane], packets: fit, bytes: fit * each}
	a.delay = a.at - now
	if (train || m.every && n >= 4 && lane == Bulk) && fit == n {
		a.train, a.dispersion = true, time.Duration(float64((n-1)*each)/speed*1e9)
	}
	m.arrivals = append(m.arrivals, a)
}

func (m *model) lastAt() time.Duration {
	if n := len(m.arrivals); n > 0 {
		return m.arrivals[n-1].at
	}
	return 0
}

const (
	theirClock = 1234567 * time.Second // what the receiver's clock is ahead
	theirZero  = -7 * time.Second      // and what that makes of delays
)

// receive takes what has arrived, and reports.
func (m *model) receive(now time.Duration) {
	for len(m.arrivals) > 0 && m.arrivals[0].at <= now {
		a := m.arrivals[0]
		m.arrivals = m.arrivals[1:]
		m.packets += uint64(a.packets)
		m.bytes += uint64(a.bytes)
		for range min(a.packets, 32) {
			m.delays = append(m.delays, a.delay)
		}
		m.newest = a
		if a.lane != Critical {
			m.last = max(m.last, now)
		}
		if a.train && !m.deaf && (a.packets-1)*1410 > m.train.Bytes {
			m.train = TrainSeen{First: a.first, Bytes: (a.packets - 1) * 1410, Dispersion: a.dispersion}
		}
		if m.delivered != nil {
			m.delivered(now, float64(a.bytes))
		}
	}
	every := 250 * ms
	if now-m.last < time.Second {
		every = 25 * ms
	}
	if len(m.delays) == 0 || now%every != 0 {
		return
	}
	slices.Sort(m.delays)
	r := Report{
		Packets: m.packets, Bytes: m.bytes, Session: 7, Lane: m.newest.lane, Counter: m.newest.counter,
		Received: m.newest.at + theirClock, Hold: now - m.newest.at, Samples: len(m.delays),
		DelayMin: m.delays[0] + theirZero, DelayP50: m.delays[len(m.delays)/2] + theirZero,
		DelayMax: m.delays[len(m.delays)-1] + theirZero, DelayLast: m.newest.delay + theirZero, Train: m.train,
	}
	m.delays, m.train = m.delays[:0], TrainSeen{}
	if m.drop != nil && m.drop(now) {
		return
	}
	m.reports, m.reportAt = append(m.reports, r), append(m.reportAt, now+m.prop)
}

// share is the part of the link that arrived from..to.
func (m *model) share(from, to time.Duration) func() float64 {
	got := 0.0
	m.delivered = func(now time.Duration, bytes float64) {
		if now >= from && now < to {
			got += bytes
		}
	}
	return func() float64 { return got / (m.rate(to) * (to - from).Seconds()) }
}

// worst is the p99 of the Critical packets since the first i.
func (m *model) worst(i int) time.Duration {
	d := slices.Sorted(slices.Values(m.critical[i:]))
	return d[len(d)*99/100]
}

func between[T int | float64 | time.Duration](t *testing.T, what string, got, low, high T) {
	t.Helper()
	if ok := got >= low && got <= high; !ok {
		t.Errorf("%s = %v, want %v to %v", what, got, low, high)
	}
}
