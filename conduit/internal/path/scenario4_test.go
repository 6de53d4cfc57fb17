// SPDX-License-Identifier: Apache-2.0

package path

import (
	"slices"
	"testing"
	"time"
)

// disorder counts packets of the peer that came, for the first time, after a
// later one.
func (n *node) disorder() (out int) {
	last := time.Time{}
	for _, k := range n.peer.backlog {
		if at, ok := n.got[k.serial]; ok {
			if at.Before(last) {
				out++
			}
			last = maxTime(last, at)
		}
	}
	return out
}

// Nothing is lost and the order is kept when a direct path takes over from the
// relay, fails, and comes back.
func TestOrderAcrossChanges(t *testing.T) {
	for seed := range uint64(10) {
		w := single(t, seed)
		a := w.a()
		w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
		w.run(500 * time.Millisecond)
		a.stream(15*time.Second, 10*time.Millisecond)
		w.run(time.Second + time.Duration(seed)*7*time.Millisecond)
		for i := range 3 {
			w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
			w.run(2500 * time.Millisecond)
			if !slices.Contains(a.ways.Critical, ID{1, ap(b1)}) {
				t.Errorf("seed %d: ways %s, want the direct path", seed, waysString(a.ways))
			}
			w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
			w.run(1500 * time.Millisecond)
			// While it is in doubt, copies go on it too. Where it comes back by itself
			// those overtake what is on its way over the relay.
			if late := w.b().disorder(); late > 2*i {
				t.Errorf("seed %d: %d out of order after %d doubts", seed, late, i)
			}
		}
		w.run(5 * time.Second)
		if lost := w.b().missing(); len(lost) > 0 {
			t.Errorf("seed %d: %d lost", seed, len(lost))
		}
	}
}

// A robot with Wi-Fi and LTE, a peer with one uplink, and the hub's relay.
func TestOneSidedBond(t *testing.T) {
	w := newWorld(t, 3)
	a, b := w.a(), w.b()
	lte := udp(2, 2)
	lte.Metered = true
	a.open(udp(1, 1), a1)
	a.open(lte, a2)
	b.open(udp(1, 1), b1)
	a.open(Local{Bind: 9, Kind: Hub}, av4)
	b.open(Local{Bind: 9, Kind: Hub}, bv4)
	w.both(ap(av4), ap(bv4), func(l *link) { l.delay = 30 * time.Millisecond })
	w.both(ap(a2), ap(b1), func(l *link) { l.delay = 25 * time.Millisecond })
	w.exchange()
	w.demand(Active)
	w.run(500 * time.Millisecond)
	a.stream(18*time.Second, 10*time.Millisecond)
	b.stream(18*time.Second, 10*time.Millisecond)
	w.run(3 * time.Second)
	wifi, cell, hub := ID{1, ap(b1)}, ID{2, ap(b1)}, ID{9, ap(bv4)}
	if !slices.Equal(a.ways.Critical, []ID{wifi, cell}) || !slices.Equal(a.ways.Bulk, []ID{wifi}) || !a.set.bond {
		t.Errorf("ways %s", waysString(a.ways))
	}
	if !slices.Equal(b.ways.Critical, []ID{{1, ap(a1)}, {1, ap(a2)}}) || !b.set.bond {
		t.Errorf("the peer's ways %s, want both uplinks of the robot", waysString(b.ways))
	}
	cut := w.now
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(time.Second)
	if d, ok := a.firstChange(cut, func(w *Ways) bool { return slices.Contains(w.Critical, hub) && w.Bulk[0] == cell }); !ok || d > 150*time.Millisecond {
		t.Errorf("everywhere after %v (%v)", d, ok)
	}
	w.both(ap(a2), ap(b1), func(l *link) { l.block = true })
	w.run(2 * time.Second)
	if !slices.Equal(a.ways.Bulk, []ID{hub}) || !slices.Contains(a.ways.Critical, hub) {
		t.Errorf("ways %s without any direct path", waysString(a.ways))
	}
	for _, s := range []string{a1, a2} {
		w.both(ap(s), ap(b1), func(l *link) { l.block = false })
	}
	w.run(15 * time.Second)
	if !slices.Equal(a.ways.Critical, []ID{wifi, cell}) {
		t.Errorf("ways %s after healing", waysString(a.ways))
	}
	for _, n := range w.nodes {
		if lost := n.missing(); len(lost) > 0 {
			t.Errorf("%s: %d lost: %v", n.name, len(lost), lost)
		}
	}
}

// Where all pairs of two times two uplinks work, two copies are enough, and they
// stay where they are.
func TestFullMeshOfUplinks(t *testing.T) {
	w := newWorld(t, 4)
	w.def.jit = 3 * time.Millisecond
	w.a().open(udp(1, 1), a1)
	w.a().open(udp(2, 2), a2)
	w.b().open(udp(1, 1), b1)
	w.b().open(udp(2, 2), b2)
	w.exchange()
	w.demand(Active)
	w.run(4 * time.Second)
	a := w.a()
	check := func(when string) {
		t.Helper()
		c := a.ways.Critical
		if len(c) != 2 || c[0].Bind == c[1].Bind || c[0].Remote == c[1].Remote {
			t.Errorf("%s: Critical on %v, want each uplink once", when, c)
		}
	}
	check("at first")
	from := len(a.changes)
	w.run(2 * time.Minute)
	check("later")
	if n := len(a.changes) - from; n > 3 {
		t.Errorf("%d changes in two quiet minutes", n)
	}
}

// Without a direct path, two TURN allocations over two uplinks are a bond too.
func TestTurnBond(t *testing.T) {
	w := newWorld(t, 5)
	for i, s := range []string{a1, a2} {
		w.a().open(Local{Bind: i + 1, Kind: Turn, Uplink: uint8(i + 1), V4: true}, s)
	}
	w.b().open(udp(1, 1), b1)
	w.exchange()
	w.demand(Active)
	w.run(3 * time.Second)
	if c := w.a().ways.Critical; len(c) != 2 || w.a().status(c[0]).Kind != Turn {
		t.Errorf("ways %s", waysString(w.a().ways))
	}
	// The peer's relayed candidate is no direct path either.
	w.b().set.AddRemote(ap("198.51.100.1:7"), "relay", w.now)
	if st := w.b().status(ID{1, ap("198.51.100.1:7")}); st.Kind != Turn {
		t.Errorf("kind %s of a relayed candidate", st.Kind)
	}
}

// A path that was in doubt is preferred again when it answered for two seconds,
// though it is by far the best.
func TestPreferredAgainLater(t *testing.T) {
	w := bond(t, 6)
	w.both(ap(a2), ap(b2), func(l *link) { l.delay = 60 * time.Millisecond })
	a := w.a()
	w.run(5 * time.Second)
	fast, slow := ID{1, ap(b1)}, ID{2, ap(b2)}
	if a.ways.Telemetry[0] != fast {
		t.Fatalf("ways %s", waysString(a.ways))
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(400 * time.Millisecond)
	if a.ways.Telemetry[0] != slow {
		t.Fatalf("ways %s", waysString(a.ways))
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
	heal := w.now
	w.run(6 * time.Second)
	d, ok := a.firstChange(heal, func(w *Ways) bool { return w.Telemetry[0] == fast })
	if !ok || d < settleFor || d > settleFor+200*time.Millisecond {
		t.Errorf("preferred again after %v (%v), want 2s", d, ok)
	}
	if d, ok = a.firstChange(heal, func(w *Ways) bool { return len(w.Bulk) == 2 }); !ok || d > time.Second {
		t.Errorf("flows again after %v (%v), want 1s", d, ok)
	}
}
