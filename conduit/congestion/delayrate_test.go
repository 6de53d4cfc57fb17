// SPDX-License-Identifier: Apache-2.0

package congestion

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// From nothing to the link, and staying there.
func TestFindsTheRate(t *testing.T) {
	for _, c := range []struct {
		mbit float64
		rtt  time.Duration
	}{{5, 40 * ms}, {20, 10 * ms}, {20, 40 * ms}, {20, 100 * ms}, {100, 40 * ms}, {1000, 10 * ms}} {
		t.Run(fmt.Sprintf("%v Mbit, %v", c.mbit, c.rtt), func(t *testing.T) {
			m := newModel(NewDelayRate(DelayRateConfig{}))
			m.rate = func(time.Duration) float64 { return c.mbit * mbit }
			m.queue = max(m.queue, 0.05*c.mbit*mbit)
			m.prop = c.rtt / 2
			m.load = func(now time.Duration) bool { return now > time.Second }
			early := m.share(2*time.Second, 3*time.Second)
			m.run(3 * time.Second)
			between(t, "share of the second second", early(), 0.85, 1.01)
			late := m.share(5*time.Second, 15*time.Second)
			m.run(15 * time.Second)
			between(t, "share", late(), 0.93, 1.01)
			between(t, "p99", m.worst(100), 0, max(5*ms, time.Duration(1410*4/(c.mbit*mbit)*1e9)))
			if m.dropped > 0 {
				t.Errorf("%d dropped", m.dropped)
			}
		})
	}
}

func TestLinkFallsAndRises(t *testing.T) {
	m := newModel(NewDelayRate(DelayRateConfig{}))
	m.rate = func(now time.Duration) float64 {
		if now > 5*time.Second && now < 10*time.Second {
			return 5 * mbit
		}
		return 20 * mbit
	}
	m.run(5300 * ms)
	n := len(m.critical)
	share := m.share(5500*ms, 9500*ms)
	m.run(9900 * ms)
	between(t, "share of 5 Mbit/s", share(), 0.9, 1.02)
	between(t, "p99 soon after", m.worst(n), 0, 12*ms)
	share = m.share(12*time.Second, 14*time.Second)
	m.run(15 * time.Second)
	between(t, "share of 20 Mbit/s", share(), 0.9, 1.01)
	if m.dropped > 0 {
		t.Errorf("%d dropped", m.dropped)
	}
}

// A drain lasts as long as the queue, by the account of bytes.
func TestDrainEndsByTheAccount(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	m := newModel(c)
	var start time.Duration
	var least, drains float64 = 1, 0
	draining := false
	m.tick = func(now time.Duration) {
		if d := c.State(now).Draining; d != draining {
			if draining = d; d {
				start = now
				drains++
			} else {
				least = min(least, m.backlog/m.rate(now))
				between(t, "length of a drain", now-start, 2*ms, 60*ms)
				between(t, "queue behind a drain", m.backlog/m.rate(now), 0, 0.0025)
			}
		}
	}
	m.run(20 * time.Second)
	between(t, "drains", drains, 10, 40)
	if least > 0.001 {
		t.Errorf("least queue behind a drain = %v s", least)
	}
}

func TestUntestedRateIsAMemory(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	m := newModel(c)
	m.rate = func(time.Duration) float64 { return 100 * mbit }
	m.load = func(now time.Duration) bool { return now < 4*time.Second || now > 8*time.Second }
	m.run(7 * time.Second)
	before := c.Rate(m.now)
	between(t, "rate while nothing is sent", before, 90*mbit, 101*mbit)
	m.run(8*time.Second + 10*ms)
	if s := c.State(m.now); !s.Startup {
		t.Error("no new start after 4 s without Bulk")
	}
	between(t, "rate", c.Rate(m.now), before/4-1, before/4+1)
	m.run(9 * time.Second)
	between(t, "rate again", c.Rate(m.now), 0.85*100*mbit, 101*mbit)

	// Two seconds are no reason.
	m = newModel(NewDelayRate(DelayRateConfig{}))
	m.load = func(now time.Duration) bool { return now < 4*time.Second || now > 6*time.Second }
	m.run(6*time.Second + 10*ms)
	if m.st.State(m.now).Startup {
		t.Error("new start after 2 s without Bulk")
	}
}

func TestSilence(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	m := newModel(c)
	m.drop = func(now time.Duration) bool { return now > 5*time.Second && now < 6*time.Second }
	m.run(5*time.Second + 100*ms)
	between(t, "rate at first", c.Rate(m.now), 17*mbit, 21*mbit)
	m.run(5*time.Second + 800*ms)
	between(t, "rate after 0.8 s of silence", c.Rate(m.now), MinRate, 2*mbit)
	share := m.share(8*time.Second, 10*time.Second)
	m.run(10 * time.Second)
	between(t, "share afterwards", share(), 0.9, 1.01)

	// Nothing sent is nothing to report.
	m = newModel(NewDelayRate(DelayRateConfig{}))
	m.load = func(now time.Duration) bool { return now < 3*time.Second }
	m.run(5900 * ms)
	for end := m.now + time.Second; m.now < end; {
		between(t, "rate without Bulk", m.st.Rate(m.now), 15*mbit, 21*mbit)
		m.run(m.now + 10*ms)
	}
}

// Delay that comes and goes by itself is no queue.
func TestNoise(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	m := newModel(c)
	m.noise = func(now time.Duration) time.Duration { return 9*ms - (now+ms)%(9*ms) } // grants, as of LTE
	m.load = func(now time.Duration) bool { return now > 2*time.Second }
	m.run(2 * time.Second)
	between(t, "noise", c.State(m.now).Noise, 7*ms, 9*ms)
	m.run(3 * time.Second)
	s := c.State(m.now)
	if !s.Noisy {
		t.Fatalf("not noisy: %+v", s)
	}
	m.run(6 * time.Second)
	n := len(m.critical)
	share := m.share(6*time.Second, 20*time.Second)
	m.run(20 * time.Second)
	between(t, "share", share(), 0.9, 1.01)
	between(t, "p99 of the queue", m.worst(n), 0, 14*ms)
}

// A queue that does not go while Bulk stands still is somebody else's.
func TestForeignQueue(t *testing.T) {
	for _, c := range []struct{ floor, low, high float64 }{{0, 0.27, 0.33}, {0.1, 0.08, 0.12}, {-1, 0, 0.1}} {
		t.Run(fmt.Sprint(c.floor), func(t *testing.T) {
			s := NewDelayRate(DelayRateConfig{Floor: c.floor})
			m := newModel(s)
			m.cross = func(now time.Duration) float64 { // takes what it can get
				if now < 5*time.Second || now > 15*time.Second {
					return 0
				}
				return max(0, (0.8*m.queue-m.backlog)/0.05)
			}
			m.run(8 * time.Second)
			if !s.State(m.now).Competing {
				t.Errorf("not competing: %+v", s.State(m.now))
			}
			share := m.share(10*time.Second, 15*time.Second)
			m.run(15 * time.Second)
			between(t, "share beside the foreign flow", share(), c.low, c.high)
			share = m.share(18*time.Second, 20*time.Second)
			m.run(20 * time.Second)
			if s.State(m.now).Competing {
				t.Error("still competing")
			}
			between(t, "share afterwards", share(), 0.9, 1.01)
		})
	}
}

// A floor from a better time must not keep a queue alive.
func TestFloorOfABetterLink(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	m := newModel(c)
	m.rate = func(now time.Duration) float64 {
		if now > 5*time.Second {
			return 4 * mbit
		}
		return 50 * mbit
	}
	m.run(12 * time.Second)
	n := len(m.critical)
	m.run(20 * time.Second)
	between(t, "p99", m.worst(n), 0, 15*ms)
}

// A policer shows no delay.
func TestPolicer(t *testing.T) {
	m := newModel(NewDelayRate(DelayRateConfig{}))
	m.queue = 4 << 10
	m.run(5 * time.Second)
	share := m.share(5*time.Second, 15*time.Second)
	lost := m.dropped
	sent := m.counters[Bulk]
	m.run(15 * time.Second)
	between(t, "share", share(), 0.9, 1.01)
	between(t, "share lost", float64(m.dropped-lost)/float64(m.counters[Bulk]-sent), 0, 0.1)
}

func TestTelemetryAloneFindsTheRate(t *testing.T) {
	m := newModel(NewDelayRate(DelayRateConfig{}))
	m.lane = Telemetry
	m.run(3 * time.Second)
	n := len(m.critical)
	share := m.share(5*time.Second, 10*time.Second)
	m.run(10 * time.Second)
	between(t, "share", share(), 0.9, 1.01)
	between(t, "p99", m.worst(n), 0, 5*ms)
}

// A receiver that never sees a train must not hold the search up.
func TestTrainsThatDoNotArrive(t *testing.T) {
	m := newModel(NewDelayRate(DelayRateConfig{}))
	m.deaf = true
	share := m.share(5*time.Second, 10*time.Second)
	m.run(10 * time.Second)
	between(t, "share", share(), 0.9, 1.01)
}

// What a busy host does to delays must not slow it down: pauses of 1 to 3 ms on
// a link that is faster than the host.
func TestFastLink(t *testing.T) {
	for _, c := range []struct {
		link, cpu   float64
		every, deaf bool
		early       float64
	}{
		{10, 3, false, false, 0.95},
		{100, 8, false, false, 0.95},
		{10, 1.5, false, false, 0.95},
		{10, 0.7, false, false, 0.95},
		{10, 3, true, false, 0.95},
		{100, 8, true, false, 0.95},
		{10, 0.7, true, false, 0.95},
		{10, 3, false, true, 0.5},
		{10, 1, false, true, 0.5},
	} {
		t.Run(fmt.Sprintf("%v of %v Gbit, %v, %v", c.cpu, c.link, c.every, c.deaf), func(t *testing.T) {
			run := func(st Strategy) (early, late float64) {
				m := newModel(st)
				m.deaf, m.every = c.deaf, c.every
				m.rate = func(time.Duration) float64 { return c.link * gbit }
				m.cpu, m.prop, m.queue = c.cpu*gbit, 100*time.Microsecond, 4<<20
				m.pause = func(r *rand.Rand) (time.Duration, time.Duration) {
					return 3*ms + time.Duration(r.IntN(20))*ms, ms + time.Duration(r.IntN(9))*step
				}
				share := m.share(time.Second, 2*time.Second)
				m.run(2 * time.Second)
				early = share()
				share = m.share(2*time.Second, 12*time.Second)
				m.run(12 * time.Second)
				return early, share()
			}
			early0, late0 := run(NewNull())
			early, late := run(NewDelayRate(DelayRateConfig{}))
			between(t, "of what Null has in the second second", early/early0, c.early, 1.02)
			between(t, "of what Null has", late/late0, 0.97, 1.01)
		})
	}
}

// An open path is shut where a queue stands.
func TestOpenIsShut(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	m := newModel(c)
	m.prop, m.queue = ms, 16<<20
	m.rate = func(now time.Duration) float64 {
		if now > 3*time.Second {
			return gbit
		}
		return 40 * gbit
	}
	m.cpu = 5 * gbit
	m.run(3 * time.Second)
	between(t, "rate", c.Rate(m.now), MaxRate, MaxRate)
	m.run(4 * time.Second)
	n := len(m.critical)
	share := m.share(4*time.Second, 10*time.Second)
	m.run(10 * time.Second)
	between(t, "share", share(), 0.9, 1.01)
	between(t, "p99", m.worst(n), 0, 6*ms)
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg         DelayRateConfig
		rate, floor float64
		packet      float64
	}{
		{DelayRateConfig{}, 250e3, 0.3, 1410},
		{DelayRateConfig{Initial: 5e6, Floor: 0.5, PacketSize: 1300}, 5e6, 0.5, 1300},
		{DelayRateConfig{Initial: -1, Floor: -1, PacketSize: -1}, 250e3, 0, 1410},
		{DelayRateConfig{Initial: 1, Floor: 7}, MinRate, 1, 1410},
		{DelayRateConfig{Initial: 1e99}, MaxRate, 0.3, 1410},
	} {
		d := NewDelayRate(c.cfg)
		if d.Rate(0) != c.rate || d.floorShare != c.floor || d.packet != c.packet {
			t.Errorf("%+v: rate %v, floor %v, packet %v", c.cfg, d.Rate(0), d.floorShare, d.packet)
		}
		if s := d.State(0); s.Name != "delay-rate" || !s.Startup {
			t.Errorf("state %+v", s)
		}
	}
}

// Where batches are longer than trains, the receiver reports those.
func TestBatchesAreTrains(t *testing.T) {
	for _, c := range []struct {
		name       string
		first      uint64
		bytes      int
		dispersion time.Duration
		want       float64
	}{
		{"a batch", 101, 63 * 1410, 500 * time.Microsecond, 0.92 * 63 * 1410 / 500e-6},
		{"two batches in one go", 101, 100 * 1410, 500 * time.Microsecond, 200e6},
		{"too fast to be seen", 101, 63 * 1410, 0, 200e6},
		{"slow", 101, 63 * 1410, 5 * ms, 50e6},
		{"too short", 150, 14 * 1410, 0, 50e6},
		{"more than left together", 101, 140 * 1410, 0, 50e6},
		{"not known", 9999, 63 * 1410, 0, 50e6},
	} {
		d := NewDelayRate(DelayRateConfig{Initial: 50e6})
		for i, at := range []time.Duration{0, 100 * time.Microsecond, 400 * time.Microsecond} {
			first := uint64(101 + i*64)
			d.Sent(at, Sent{Lane: Bulk, Session: 1, First: first, Last: first + 63, Packets: 64, Bytes: 64 * 1410})
		}
		r := Report{Packets: 64, Bytes: 64 * 1410, Session: 1, Lane: Bulk, Counter: 164, Received: time.Second, Samples: 64}
		d.Report(2*ms, &r)
		for now := 2 * ms; now < 27*ms; now += ms {
			d.Tick(now, 1<<20)
		}
		r.Packets, r.Bytes, r.Counter, r.Received = 192, 192*1410, 292, time.Second+25*ms
		r.Train = TrainSeen{First: c.first, Bytes: c.bytes, Dispersion: c.dispersion}
		d.Report(27*ms, &r)
		if got := d.rate; math.Abs(got-c.want) > 1 {
			t.Errorf("%s: rate %v, want %v", c.name, got, c.want)
		}
	}
}

// What a trickle meets is not its queue, and its delivery is not the link's.
func TestTrickleKeepsTheRate(t *testing.T) {
	c := NewDelayRate(DelayRateConfig{})
	m := newModel(c)
	m.load = func(now time.Duration) bool { return now < 4*time.Second || now%(50*ms) == 0 }
	m.cross = func(now time.Duration) float64 {
		if now > 5*time.Second && now < 8*time.Second && m.backlog < 75e3 {
			return 40 * mbit
		}
		return 0
	}
	m.run(10 * time.Second)
	between(t, "rate", c.rate, 15*mbit, 21*mbit)
}
