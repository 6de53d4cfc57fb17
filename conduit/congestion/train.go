// SPDX-License-Identifier: Apache-2.0

package congestion

import "time"

const (
	trainEvery = 200 * time.Millisecond
	veryFast   = 1e12  // bytes/s: what no dispersion stands for
	openRate   = 150e6 // bytes/s
	// backToBack is how far apart what makes one train may leave: the receiver sees
	// stamps of 64 us.
	backToBack = 200 * time.Microsecond
	openAge    = 10 * time.Second
)

// train is the one train that may be under way.
type train struct {
	asked  time.Duration // Tick named a size; never: it is not waited for
	left   time.Duration // it left; never: none is under way
	what   Train
	next   time.Duration // not before
	result time.Duration // of the last result, or when none was needed
	count  int           // results since the start
	rate   float64       // last result, bytes/s
	before float64       // the one before
}

func (t *train) reset(now time.Duration) {
	t.asked, t.left, t.next, t.result = never, never, now, now
	t.count, t.rate, t.before = 0, 0, 0
}

// free tells whether another train may leave.
func (t *train) free(now time.Duration, rtt float64) bool {
	if t.left != never && now-t.left > duration(rtt+0.15) {
		t.left = never
	}
	if t.asked != never && now-t.asked > 5*time.Millisecond {
		t.asked = never // it came to nothing
	}
	return t.left == never && t.asked == never && now >= t.next && rtt > 0
}

func (t *train) out() bool { return t.left != never }

func (t *train) sent(now time.Duration, what Train) {
	t.asked = never
	if what.Bytes <= 0 || what.Packets < 2 {
		return
	}
	t.left, t.what = now, what
}

// take looks for the train in a report; 0: it is not there.
func (c *DelayRate) take(now time.Duration, r *Report) float64 {
	t, s := &c.train, &r.Train
	if t.left == never || s.Bytes <= 0 || !c.ours(s) {
		return 0
	}
	t.left, t.result, t.next = never, now, now+trainEvery
	t.count++
	t.note(s)
	return t.rate
}

// ours tells whether what was seen is the train that is out, or as good as it: to
// the receiver it is one with what left just before or just behind it, and one
// whose first packets were lost is shorter.
func (c *DelayRate) ours(s *TrainSeen) bool {
	w := &c.train.what
	if s.First == w.First && s.Bytes == w.Bytes {
		return true
	}
	if s.First > w.Last || s.First < w.First && s.Bytes < w.Bytes {
		return false
	}
	at, _, ok := c.find(w.Session, Bulk, w.First)
	before, _, known := c.find(w.Session, Bulk, s.First)
	return ok && known && at-before <= backToBack && c.together(s.First, s.Bytes)
}

func (t *train) note(s *TrainSeen) {
	t.before, t.rate = t.rate, veryFast
	if s.Dispersion > 0 {
		t.rate = min(float64(s.Bytes)/seconds(s.Dispersion), veryFast)
	}
}

// chance looks for a train that was none of ours: at high rates a batch is as long
// as a train, and the receiver reports the longest. It shows what the link can
// do, but not what it cannot.
func (c *DelayRate) chance(h *heard, r *Report) float64 {
	t, s := &c.train, &r.Train
	if c.rate < fastRate || h.noisy {
		return 0
	}
	if t.out() && h.sentAt > t.left+5*time.Millisecond {
		t.left = never // it would have been reported by now
		if !c.startup {
			t.next = h.now + trainEvery
		}
	}
	if float64(s.Bytes) < 15*c.packet || s.Dispersion < 0 || !c.together(s.First, s.Bytes) {
		return 0
	}
	t.note(s)
	return t.rate
}

// open is the gate of links that are faster than we are: no limit at all, until
// a queue stands.
type open struct {
	on    bool
	until time.Duration // not to be opened before
	fails int
}

// shut closes the gate for longer each time.
func (o *open) shut(now time.Duration) {
	o.on = false
	o.until = now + openAge<<min(o.fails, 6)
	o.fails++
}

// peaks is the largest rate of the last ten minutes, by the minute.
type peaks struct {
	minute [10]float64
	at     time.Duration
	begun  bool
}

func (p *peaks) add(now time.Duration, rate float64) {
	if !p.begun {
		p.begun, p.at = true, now
	}
	if behind := (now - p.at) / time.Minute; behind > 0 {
		k := min(int(min(behind, 10)), len(p.minute))
		copy(p.minute[k:], p.minute[:len(p.minute)-k])
		clear(p.minute[:k])
		p.at += behind * time.Minute
	}
	p.minute[0] = max(p.minute[0], rate)
}

// lower forgets what was more.
func (p *peaks) lower(rate float64) {
	for i := range p.minute {
		p.minute[i] = min(p.minute[i], rate)
	}
}

func (p *peaks) max() float64 {
	m := 0.0
	for _, x := range p.minute {
		m = max(m, x)
	}
	return m
}
