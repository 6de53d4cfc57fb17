// SPDX-License-Identifier: Apache-2.0

package path

import (
	"slices"
	"testing"
	"time"
)

// One path is slow and loses a third: every packet comes, and nothing but the
// good one has Bulk.
func TestSkewAndLoss(t *testing.T) {
	for _, delay := range []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond, 1500 * time.Millisecond} {
		w := bond(t, 5)
		w.both(ap(a2), ap(b2), func(l *link) { l.delay, l.loss = delay+time.Millisecond, 0.3 })
		a := w.a()
		a.stream(40*time.Second, 10*time.Millisecond)
		w.run(20 * time.Second)
		if !slices.Equal(a.ways.Bulk, []ID{{1, ap(b1)}}) {
			t.Errorf("skew %v: Bulk on %v", delay, a.ways.Bulk)
		}
		from := len(a.changes)
		w.run(24 * time.Second)
		if n := len(a.changes) - from; n > 30 {
			t.Errorf("skew %v: ways changed %d times in 24 s", delay, n)
		}
		if m := w.b().missing(); len(m) > 3 {
			t.Errorf("skew %v: %d lost: %v", delay, len(m), m)
		}
	}
}

// A path that was idle is not in doubt when somebody sends again.
func TestIdleThenActive(t *testing.T) {
	w := single(t, 1)
	w.run(3 * time.Second)
	for _, idle := range []time.Duration{20 * time.Second, 61 * time.Second, 600 * time.Second} {
		w.demand(Idle)
		w.run(idle)
		from := len(w.a().changes)
		w.demand(Active)
		w.run(2 * time.Second)
		for _, c := range w.a().changes[from:] {
			t.Errorf("ways changed after %v idle: %s", idle, waysString(c.ways))
		}
	}
}

// A path that broke while nobody sent is found broken as soon as somebody does.
func TestBrokenWhileIdle(t *testing.T) {
	w := single(t, 1)
	a := w.a()
	w.run(3 * time.Second)
	w.demand(Idle)
	w.run(7 * time.Second)
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(2 * time.Second)
	w.demand(Active)
	now := w.now
	a.stream(2*time.Second, 10*time.Millisecond)
	w.run(3 * time.Second)
	if d, ok := a.firstChange(now, func(w *Ways) bool { return slices.Contains(w.Critical, ID{9, ap(bv4)}) }); !ok || d > 300*time.Millisecond {
		t.Errorf("relay after %v (%v)", d, ok)
	}
	if m := w.b().missing(); len(m) > 0 {
		t.Errorf("%d lost", len(m))
	}
	w.demand(Idle)
	w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
	w.run(40 * time.Second)
	if !slices.Equal(a.ways.Critical, []ID{{1, ap(b1)}}) {
		t.Errorf("ways %s after healing", waysString(a.ways))
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(25 * time.Second)
	if !slices.Contains(a.ways.Critical, ID{9, ap(bv4)}) {
		t.Errorf("ways %s 25 s after a cut", waysString(a.ways))
	}
}

// Both behind NATs that let in only whom they wrote to; the candidates come at
// different times.
func TestPunch(t *testing.T) {
	for name, tc := range map[string]struct {
		nat  func(a, b *sock)
		skew time.Duration
		want time.Duration
	}{
		"restricted":                   {func(a, b *sock) { a.restrict, b.restrict = true, true }, 0, 200 * time.Millisecond},
		"restricted, late":             {func(a, b *sock) { a.restrict, b.restrict = true, true }, 800 * time.Millisecond, time.Second},
		"symmetric to open":            {func(a, _ *sock) { a.restrict, a.symmetric = true, true }, 100 * time.Millisecond, 200 * time.Millisecond},
		"open to symmetric":            {func(_, b *sock) { b.restrict, b.symmetric = true, true }, 100 * time.Millisecond, 300 * time.Millisecond},
		"symmetric to port-restricted": {func(a, b *sock) { a.restrict, a.symmetric, b.restrict = true, true, true }, 0, 0},
	} {
		w := newWorld(t, 1)
		a, b := w.a(), w.b()
		a.open(udp(1, 1), a1)
		b.open(udp(1, 1), b1)
		tc.nat(a.socks[1], b.socks[1])
		w.demand(Active)
		a.set.AddRemote(ap(b1), "srflx", w.now)
		w.at(tc.skew, func() { b.set.AddRemote(ap(a1), "srflx", w.now) })
		w.run(5 * time.Second)
		for _, n := range w.nodes {
			d, ok := n.firstChange(start, func(w *Ways) bool { return len(w.Critical) > 0 })
			if ok != (tc.want > 0) || d > tc.want {
				t.Errorf("%s: %s has a path after %v (%v), want %v", name, n.name, d, ok, tc.want)
			}
		}
	}
}

// With a relay only, silent pairs are tried again every 30 s while wanted.
func TestUpgradeLater(t *testing.T) {
	w := single(t, 1)
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(60 * time.Second)
	if !slices.Equal(w.a().ways.Critical, []ID{{9, ap(bv4)}}) {
		t.Fatalf("ways %s", waysString(w.a().ways))
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
	w.run(31 * time.Second)
	if !slices.Equal(w.a().ways.Critical, []ID{{1, ap(b1)}}) {
		t.Errorf("ways %s, want the direct path", waysString(w.a().ways))
	}
}

// All paths are dead while there is no session; with the next one they are
// found again at once.
func TestWake(t *testing.T) {
	w := single(t, 1)
	w.run(3 * time.Second)
	for _, s := range []string{a1, av4} {
		for _, o := range []string{b1, bv4} {
			w.both(ap(s), ap(o), func(l *link) { l.block = true })
		}
	}
	w.demand(Idle)
	w.run(3 * time.Minute)
	a := w.a()
	if a.set.Usable() || len(a.ways.Critical) > 0 {
		t.Fatalf("usable without any path: %s", waysString(a.ways))
	}
	if got, want := a.set.LastHeard(), start.Add(3*time.Second+50*time.Millisecond); got.Before(start) || got.After(want) {
		t.Errorf("heard last at %v, want before %v", got, want)
	}
	for _, s := range []string{a1, av4} {
		for _, o := range []string{b1, bv4} {
			w.both(ap(s), ap(o), func(l *link) { l.block = false })
		}
	}
	now := w.now
	for _, n := range w.nodes {
		n.set.Wake(w.now)
	}
	w.run(time.Second)
	if d, ok := a.firstChange(now, func(w *Ways) bool { return slices.Contains(w.Critical, ID{1, ap(b1)}) }); !ok || d > 50*time.Millisecond {
		t.Errorf("path again after %v (%v)", d, ok)
	}
}

func TestGeneration(t *testing.T) {
	s, now := steady(t, nil)
	gen, known := s.Generation(), s.IDs()
	s.Tick(now)
	s.AddRemote(ap(b1), "host", now)
	if s.Generation() != gen || len(known) != 2 {
		t.Errorf("generation changed without a reason, or paths %v", known)
	}
	s.AddRemote(ap(b2), "host", now)
	if s.Generation() == gen || len(s.IDs()) != 4 {
		t.Error("new paths are not seen")
	}
	gen = s.Generation()
	s.SetLocals(nil, now)
	if s.Generation() == gen || len(s.IDs()) != 0 {
		t.Error("that paths went is not seen")
	}
}

// Modes other than the default ones.
func TestModes(t *testing.T) {
	two := []ID{{1, ap(b1)}, {2, ap(b2)}}
	for _, tc := range []struct {
		modes [3]Mode
		want  [3]int
	}{
		{[3]Mode{}, [3]int{2, 1, 2}},
		{[3]Mode{ActiveBackup, ActiveBackup, ActiveBackup}, [3]int{1, 1, 1}},
		{[3]Mode{RedundantAdaptive, Duplicate, Duplicate}, [3]int{1, 2, 2}},
		{[3]Mode{Balance, Balance, RedundantAdaptive}, [3]int{1, 1, 2}},
	} {
		w := bond(t, 2)
		a := w.a()
		s := New(Config{Modes: tc.modes})
		s.SetLocals(a.set.locals, w.now)
		s.AddRemote(ap(b1), "host", w.now)
		s.AddRemote(ap(b2), "host", w.now)
		s.Demand(Active, w.now)
		a.set = s
		w.run(4 * time.Second)
		for i, l := range [][]ID{a.ways.Critical, a.ways.Telemetry, a.ways.Bulk} {
			if len(l) != tc.want[i] || !slices.Contains(two, l[0]) {
				t.Errorf("modes %v, lane %d: %v, want %d", tc.modes, i, l, tc.want[i])
			}
		}
		w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
		w.run(500 * time.Millisecond)
		if len(a.ways.Critical) != 2 || !slices.Equal(a.ways.Bulk, two[1:]) || a.ways.Telemetry[0] != two[1] {
			t.Errorf("modes %v: ways %s with one in doubt", tc.modes, waysString(a.ways))
		}
	}
}
