// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// count is how many probes n sends on id while d passes.
func (n *node) count(id ID, d time.Duration) int {
	from := len(n.probes[id])
	n.w.run(d)
	return len(n.probes[id]) - from
}

// TestGaps holds the probes of one path in one state to what they should be.
func TestGaps(t *testing.T) {
	relay, direct := ID{9, ap(bv4)}, ID{1, ap(b1)}
	block := func(w *world, on bool) { w.both(ap(a1), ap(b1), func(l *link) { l.block = on }) }
	noRelay := func(w *world) { w.both(ap(av4), ap(bv4), func(l *link) { l.block = true }) }
	for _, tc := range []struct {
		name     string
		set      func(w *world) // after 3 s Active
		id       ID
		d        time.Duration
		min, max int
	}{
		{"spare relay, active", func(*world) {}, relay, time.Minute, 11, 13},
		{"spare relay, warm", func(w *world) { w.demand(Warm) }, relay, time.Minute, 11, 13},
		{"spare relay, idle", func(w *world) { w.demand(Idle) }, relay, 4 * time.Minute, 3, 5},
		{"direct, idle", func(w *world) { w.demand(Idle) }, direct, 4 * time.Minute, 15, 17},
		{"direct, warm", func(w *world) { w.demand(Warm) }, direct, time.Minute, 59, 66},
		{"direct, active", func(*world) {}, direct, 10 * time.Second, 38, 105},
		{"serving relay, warm", func(w *world) { block(w, true); w.demand(Warm); w.run(20 * time.Second) }, relay, time.Minute, 59, 61},
		{"serving relay, idle", func(w *world) { block(w, true); w.run(20 * time.Second); w.demand(Idle) }, relay, 4 * time.Minute, 15, 17},
		{"suspect", func(w *world) { block(w, true); w.run(300 * time.Millisecond) }, direct, 4 * time.Second, 78, 82},
		{"suspect, nothing else", func(w *world) { block(w, true); noRelay(w); w.run(8 * time.Second) }, direct, 5 * time.Second, 19, 21},
		{"suspect for long", func(w *world) { block(w, true); noRelay(w); w.run(18 * time.Second) }, direct, 10 * time.Second, 9, 11},
		{"suspect, idle", func(w *world) { block(w, true); w.run(300 * time.Millisecond); w.demand(Idle) }, direct, 4 * time.Second, 3, 5},
		{"dead, active", func(w *world) { block(w, true); w.run(8 * time.Second) }, direct, 10 * time.Second, 9, 11},
		{"dead, warm", func(w *world) { block(w, true); w.run(8 * time.Second); w.demand(Warm) }, direct, 20 * time.Second, 9, 11},
		{"dead, idle", func(w *world) { block(w, true); w.run(8 * time.Second); w.demand(Idle) }, direct, time.Minute, 3, 5},
		{"dead relay", func(w *world) { noRelay(w); w.run(30 * time.Second) }, relay, time.Minute, 11, 13},
	} {
		w := single(t, 1)
		w.run(3 * time.Second)
		tc.set(w)
		if n := w.a().count(tc.id, tc.d); n < tc.min || n > tc.max {
			t.Errorf("%s: %d probes in %v, want %d to %d (%s)", tc.name, n, tc.d, tc.min, tc.max, w.a().status(tc.id).State)
		}
	}
}

// feed keeps path id heard for d without anybody answering on it.
func feed(s *Set, id ID, now *time.Time, d time.Duration, answer bool) (probes int) {
	for end := now.Add(d); now.Before(end); {
		*now = now.Add(10 * time.Millisecond)
		s.Heard(id, *now, *now)
		s.Tick(*now)
		p, _, _ := ready(s)
		for _, o := range p {
			if o.ID == id && o.Size == 0 {
				probes++
				if answer {
					s.Acked(id, wire.ProbeAck{Probe: o.Probe, Size: 48}, *now, *now)
				}
			}
		}
	}
	return probes
}

// What is heard counts as an answer: one probe a second remains. Where that one
// stays unanswered, more follow at once, and the path is in doubt although it is
// heard.
func TestPassive(t *testing.T) {
	s, now := steady(t, nil)
	id := ID{1, ap(b1)}
	s.Demand(Active, now)
	feed(s, id, &now, 3*time.Second, true)
	if n := feed(s, id, &now, 10*time.Second, true); n < 9 || n > 11 {
		t.Errorf("%d probes in 10 s of a path that is heard, want 10", n)
	}
	feed(s, id, &now, 1500*time.Millisecond, false)
	if st := s.paths[0]; st.id != id || st.state != StateSuspect {
		t.Errorf("%v is %s, want suspect", st.id, st.state)
	}
}

// Only what was heard after the probe ends the wait for it.
func TestHeardBeforeProbe(t *testing.T) {
	s, now := steady(t, nil)
	s.Demand(Active, now)
	id := ID{1, ap(b1)}
	p := s.byID[id]
	sentAt := now
	for p.unanswered == 0 {
		now = now.Add(time.Millisecond)
		s.Tick(now)
		ready(s)
		sentAt = now
	}
	now = now.Add(50 * time.Millisecond)
	s.Heard(id, sentAt.Add(-time.Millisecond), now)
	if p.firstOut == 0 {
		t.Error("an old packet ended the wait")
	}
	s.Heard(id, sentAt.Add(time.Millisecond), now)
	if p.firstOut != 0 {
		t.Error("a new packet did not end the wait")
	}
}

func TestHoldIsNotRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		hold uint32
		want time.Duration
	}{{0, 100 * time.Millisecond}, {40_000, 60 * time.Millisecond}, {200_000, 100 * time.Millisecond}} {
		s := New(Config{})
		s.SetLocals([]Local{udp(1, 1)}, start)
		id := ID{1, ap(b1)}
		s.AddPath(id, start)
		p, _, _ := ready(s)
		at := start.Add(100 * time.Millisecond)
		s.Acked(id, wire.ProbeAck{Probe: p[0].Probe, Hold: tc.hold}, at, at.Add(time.Second))
		if st := s.Status(at); st[0].RTT != tc.want {
			t.Errorf("hold %d µs: RTT %v, want %v", tc.hold, st[0].RTT, tc.want)
		}
		s.Acked(id, wire.ProbeAck{Probe: p[0].Probe}, at, at.Add(time.Second)) // once more
		if s.paths[0].q.rttN != 1 {
			t.Error("one answer was counted twice")
		}
	}
}

// A dead path needs three answers in a row while another serves; one that never
// answered needs one.
func TestHealing(t *testing.T) {
	w := bond(t, 1)
	a, id := w.a(), ID{1, ap(b1)}
	w.run(3 * time.Second)
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(10 * time.Second)
	p := a.set.byID[id]
	if p.state != StateDead || p.q.loss() == 0 {
		t.Fatalf("%s, loss %v", p.state, p.q.loss())
	}
	var states []State
	for len(states) < healAnswers {
		n := len(a.probes[id])
		w.run(time.Millisecond)
		if len(a.probes[id]) > n {
			a.set.Acked(id, wire.ProbeAck{Probe: wire.Probe{Seq: p.ring.at(p.ring.n - 1).seq}}, w.now, w.now)
			states = append(states, p.state)
		}
	}
	if states[0] != StateDead || states[1] != StateDead || states[2] != StateValid || p.q.loss() != 0 {
		t.Errorf("states %v after answers, loss %v", states, p.q.loss())
	}
	other := a.set.byID[ID{1, ap(b2)}]
	for other.state != StateDead {
		w.run(time.Second)
	}
	a.set.Heard(other.id, w.now, w.now) // from there, of all things
	a.pump()
	if other.state != StateProbing {
		t.Fatalf("%s after a packet from there", other.state)
	}
	a.set.Acked(other.id, wire.ProbeAck{Probe: wire.Probe{Seq: other.ring.at(other.ring.n - 1).seq}}, w.now, w.now)
	if other.state != StateValid {
		t.Errorf("%s after the first answer ever", other.state)
	}
}

// One lost probe is looked at for two seconds, two of 32 for four.
func TestBoost(t *testing.T) {
	for losses, want := range []time.Duration{0, boostFor / 2, boostFor, boostFor} {
		w := single(t, 1)
		w.run(3 * time.Second)
		p := w.a().set.byID[ID{1, ap(b1)}]
		p.q.boost = 0
		for range losses {
			w.a().set.lose(p, &sent{})
		}
		if got := p.q.boost; want == 0 && got != 0 || want != 0 && got-w.a().set.now != want {
			t.Errorf("%d lost: boost for %v, want %v", losses, got-w.a().set.now, want)
		}
	}
}

// After short doubts losses still count, after a long outage they do not.
func TestOutageIsNoLoss(t *testing.T) {
	for _, tc := range []struct {
		d    time.Duration
		kept bool
	}{{300 * time.Millisecond, true}, {3 * time.Second, false}} {
		w := single(t, 1)
		w.run(5 * time.Second)
		w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
		w.run(tc.d)
		w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
		w.run(200 * time.Millisecond)
		st := w.a().status(ID{1, ap(b1)})
		if st.State != StateValid || (st.Loss > 0) != tc.kept {
			t.Errorf("%v outage: %s, loss %v", tc.d, st.State, st.Loss)
		}
	}
}

// A path that the kernel refuses is dead at once where another is valid, and in
// doubt where none is.
func TestLost(t *testing.T) {
	s, now := settledBond(t)
	one, two := ID{1, ap1}, ID{2, ap2}
	s.Lost(ID{1, ap2}, now) // never answered
	s.Lost(ID{7, ap1}, now) // unknown
	if s.byID[ID{1, ap2}].state == StateSuspect || len(s.paths) != 4 {
		t.Error("a path that was not valid changed")
	}
	s.Lost(one, now)
	if got := s.byID[one].state; got != StateDead {
		t.Errorf("%s, want dead", got)
	}
	s.Lost(two, now)
	if got := s.byID[two].state; got != StateSuspect {
		t.Errorf("%s, want suspect", got)
	}
	s.Lost(two, now)
	if !s.Usable() {
		t.Error("the last one ended")
	}
}

// A path that is known to be good goes before what is only a candidate.
func TestAddPathGoesFirst(t *testing.T) {
	s, now := New(Config{}), start
	s.SetLocals([]Local{udp(1, 1)}, now)
	s.AddRemote(ap(b1), "host", now)
	s.AddRemote(ap(b2), "host", now)
	good := ID{1, ap(b2)}
	if s.IDs()[0] == good {
		t.Fatal("it is the first already")
	}
	s.AddPath(good, now)
	if p, _, _ := ready(s); p[0].ID != good || len(p) != 2 {
		t.Errorf("probed %v first", p[0].ID)
	}
	s.ResetRemotes(now)
	if l := s.IDs(); len(l) != 1 || l[0] != good {
		t.Errorf("%v left, want what was added", l)
	}
}

// Only where a socket went away does the next one of its uplink tell of a move.
func TestMovedOnlyWhenReplaced(t *testing.T) {
	moved := func(s *Set) (n int) {
		p, _, _ := ready(s)
		for _, o := range p {
			if o.Probe.Flags&wire.ProbeMoved != 0 {
				n++
			}
		}
		return n
	}
	s, now := New(Config{}), start
	s.AddRemote(ap(b1), "host", now)
	s.SetLocals([]Local{udp(1, 1)}, now)
	s.SetLocals([]Local{udp(1, 1), udp(2, 2)}, now)
	s.SetLocals([]Local{udp(1, 1), udp(2, 2), udp(3, 1)}, now) // IPv6 came
	if n := moved(s); n > 0 {
		t.Errorf("%d probes tell of a move that was none", n)
	}
	s.SetLocals([]Local{udp(2, 2), udp(3, 1)}, now)
	s.SetLocals([]Local{udp(2, 2), udp(3, 1), udp(4, 2)}, now)
	if n := moved(s); n > 0 {
		t.Errorf("%d probes tell of the move of another uplink", n)
	}
	s.SetLocals([]Local{udp(2, 2), udp(3, 1), udp(4, 2), udp(5, 1)}, now)
	if n := moved(s); n == 0 {
		t.Error("no probe tells of the move")
	}
}

// A candidate that is repeated is looked for anew, for as long as the first time.
func TestRepeatedCandidate(t *testing.T) {
	s, now := New(Config{}), start
	s.SetLocals([]Local{udp(1, 1)}, now)
	s.AddRemote(ap(b1), "host", now)
	first, _, _ := drive(s, &now, 30*time.Second)
	if st := s.Status(now); len(first) != len(findGaps)+1 && len(first) != len(findGaps) || st[0].State != StateDead {
		t.Fatalf("%d probes, %s", len(first), st[0].State)
	}
	s.AddRemote(ap(b1), "host", now)
	if again, _, _ := drive(s, &now, 30*time.Second); len(again) != len(first) {
		t.Errorf("%d probes when it was repeated, want %d", len(again), len(first))
	}
}

// With the last session what was proved is void; the next one proves it anew, and
// the ways are told again.
func TestSleepAndWake(t *testing.T) {
	w := direct(t, 1500)
	w.run(5 * time.Second)
	a := w.a()
	a.set.Sleep(w.now)
	w.run(time.Millisecond)
	if n := len(a.ways.Critical); n != 0 {
		t.Errorf("%d ways without a session", n)
	}
	a.set.Wake(w.now)
	w.run(200 * time.Millisecond)
	if n := len(a.ways.Critical); n != 1 {
		t.Errorf("%d ways after a new session, want 1", n)
	}
}
