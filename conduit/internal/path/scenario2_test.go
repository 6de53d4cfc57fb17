// SPDX-License-Identifier: Apache-2.0

package path

import (
	"slices"
	"testing"
	"time"
)

// A lossy or slow direct path loses Critical to the relay, and gets it back.
func TestQualityDemotes(t *testing.T) {
	relay, direct := ID{9, ap(bv4)}, ID{1, ap(b1)}
	onRelay := func(w *Ways) bool { return slices.Contains(w.Critical, relay) }
	off := func(w *Ways) bool { return slices.Equal(w.Critical, []ID{direct}) }
	for name, spoil := range map[string]func(l *link){
		"loss 10 %": func(l *link) { l.loss = 0.10 },
		"loss 5 %":  func(l *link) { l.loss = 0.05 },
		"slow":      func(l *link) { l.delay = 60 * time.Millisecond },
		"jitter":    func(l *link) { l.jit = 90 * time.Millisecond },
	} {
		for seed := range uint64(5) {
			w := single(t, seed)
			a := w.a()
			w.run(5 * time.Second)
			if !off(a.ways) {
				t.Fatalf("%s: ways %s, want the direct path", name, waysString(a.ways))
			}
			bad := w.now
			w.both(ap(a1), ap(b1), func(l *link) { spoil(l) })
			w.run(20 * time.Second)
			d, ok := a.firstChange(bad, onRelay)
			if !ok || d > 12*time.Second {
				t.Errorf("%s, seed %d: relay %v after (%v)", name, seed, d, ok)
			}
			t.Logf("%s, seed %d: relay after %v, %d changes", name, seed, d, len(a.changes))
			good := w.now
			w.both(ap(a1), ap(b1), func(l *link) { *l = w.def })
			w.run(60 * time.Second)
			if d, ok = a.firstChange(good, off); !ok || d > 25*time.Second || !off(a.ways) {
				t.Errorf("%s, seed %d: direct again %v after (%v), now %s", name, seed, d, ok, waysString(a.ways))
			}
		}
	}
}

// Chance must not make the choice of paths flap.
func TestNoFlapping(t *testing.T) {
	relay := ID{9, ap(bv4)}
	for _, loss := range []float64{0.005, 0.01, 0.02, 0.03, 0.05} {
		total, on := 0, 0
		for seed := range uint64(5) {
			w := single(t, seed)
			a := w.a()
			w.run(time.Second)
			w.both(ap(a1), ap(b1), func(l *link) { l.loss = loss; l.jit = 5 * time.Millisecond })
			n := 0
			last := slices.Contains(a.ways.Critical, relay)
			from := len(a.changes)
			w.run(5 * time.Minute)
			for _, c := range a.changes[from:] {
				if is := slices.Contains(c.ways.Critical, relay); is != last {
					last = is
					n++
				}
			}
			if n > 16 {
				t.Errorf("loss %v, seed %d: the relay came and went %d times in 5 minutes", loss, seed, n)
			}
			total += n
			if last {
				on++
			}
		}
		t.Logf("loss %v each way: %d changes in 25 minutes, on the relay at the end %d of 5", loss, total, on)
	}
}

// Two equal paths with noise: the choice between them stays.
func TestEqualPathsStay(t *testing.T) {
	w := newWorld(t, 3)
	for i := range 3 {
		w.a().open(udp(i, 1), a1[:len(a1)-1]+string(rune('1'+i)))
		w.b().open(udp(i, 1), b1[:len(b1)-1]+string(rune('1'+i)))
	}
	w.def.jit = 15 * time.Millisecond
	w.exchange()
	w.demand(Active)
	w.run(3 * time.Second)
	from := len(w.a().changes)
	w.run(2 * time.Minute)
	n, last := 0, w.a().changes[from-1].ways.Critical
	for _, c := range w.a().changes[from:] {
		if !slices.Equal(c.ways.Critical, last) {
			n++
			last = c.ways.Critical
		}
	}
	if n > 4 {
		t.Errorf("%d changes of Critical among equal paths in 2 minutes", n)
	}
}

// The only uplink gets another address: the peer is told, proves the new one
// and drops the old one at once.
func TestAddressChange(t *testing.T) {
	for _, rebind := range []bool{true, false} {
		w := single(t, 1)
		a, b := w.a(), w.b()
		w.run(time.Second)
		a.stream(5*time.Second, 10*time.Millisecond)
		b.stream(5*time.Second, 10*time.Millisecond)
		w.run(2 * time.Second)
		moved := w.now
		const a1new = "10.1.0.77:9"
		if rebind { // a new socket
			a.close(1)
			a.open(udp(5, 1), a1new)
		} else { // the same one behind another address
			a.socks[1].addr = ap(a1new)
			a.set.Moved(1, w.now)
		}
		w.run(2 * time.Second)
		d, ok := b.firstChange(moved, func(w *Ways) bool { return slices.Equal(w.Critical, []ID{{1, ap(a1new)}}) })
		if !ok || d > 100*time.Millisecond {
			t.Errorf("rebind %v: peer moved after %v (%v), want 100ms", rebind, d, ok)
		}
		if st := b.status(ID{1, ap(a1)}); st.State != StateDead && st.Why != "not there" {
			t.Errorf("old path is %s", st.State)
		}
		w.run(2 * time.Second)
		w.run(2 * time.Second)
		for _, n := range w.nodes {
			if m := n.missing(); len(m) > 0 {
				t.Errorf("rebind %v: %s lost %d Critical packets: %v", rebind, n.name, len(m), m)
			}
		}
		if st := a.set.Status(w.now)[0]; st.Kind != Direct || st.RemoteUplink != 1 || st.Uplink != 1 {
			t.Errorf("first of a's paths: %+v", st)
		}
	}
}

// A NAT gives the flow another port without a word.
func TestRebinding(t *testing.T) {
	w := single(t, 1)
	a, b := w.a(), w.b()
	w.run(time.Second)
	b.stream(9*time.Second, 10*time.Millisecond)
	w.run(2 * time.Second)
	moved := w.now
	a.socks[1].addr = ap("10.1.0.1:999")
	w.run(8 * time.Second)
	d, ok := b.firstChange(moved, func(w *Ways) bool { return slices.Contains(w.Critical, ID{1, ap("10.1.0.1:999")}) })
	if !ok || d > 600*time.Millisecond {
		t.Errorf("peer moved after %v (%v), want 600ms", d, ok)
	}
	w.run(2 * time.Second)
	if m := a.missing(); len(m) > 0 {
		t.Errorf("%d Critical packets lost: %v", len(m), m)
	}
}

func TestMetered(t *testing.T) {
	w := newWorld(t, 1)
	lte := udp(2, 2)
	lte.Metered = true
	w.a().open(udp(1, 1), a1)
	w.a().open(lte, a2)
	w.b().open(udp(1, 1), b1)
	w.exchange()
	w.demand(Active)
	w.def.delay = 10 * time.Millisecond
	w.both(ap(a1), ap(b1), func(l *link) { l.delay = 40 * time.Millisecond }) // slower, but free
	w.run(4 * time.Second)
	a := w.a()
	wifi, cell := ID{1, ap(b1)}, ID{2, ap(b1)}
	if !slices.Equal(a.ways.Telemetry, []ID{wifi}) || !slices.Equal(a.ways.Bulk, []ID{wifi}) || len(a.ways.Critical) != 2 {
		t.Errorf("metered: ways %s", waysString(a.ways))
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(time.Second)
	if !slices.Equal(a.ways.Telemetry[:1], []ID{cell}) || !slices.Equal(a.ways.Bulk, []ID{cell}) {
		t.Errorf("metered alone: ways %s", waysString(a.ways))
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
	w.run(5 * time.Second)
	// Its budget is used up: not even Critical.
	lte.Spent = true
	a.set.SetLocals([]Local{udp(1, 1), lte}, w.now)
	w.run(time.Second)
	for _, l := range [][]ID{a.ways.Critical, a.ways.Telemetry, a.ways.Bulk} {
		if !slices.Equal(l, []ID{wifi}) {
			t.Errorf("spent: ways %s", waysString(a.ways))
		}
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(time.Second)
	if a.ways.Critical[0] != cell || a.ways.Bulk[0] != cell {
		t.Errorf("spent, but nothing else: ways %s", waysString(a.ways))
	}
}

func TestFallback(t *testing.T) {
	w := newWorld(t, 1)
	wild := Local{Bind: 7, V4: true, V6: true, Fallback: true}
	w.a().open(wild, "10.9.0.1:1")
	w.b().open(udp(1, 1), b1)
	w.exchange()
	w.demand(Active)
	w.run(2 * time.Second)
	a := w.a()
	if !slices.Equal(a.ways.Critical, []ID{{7, ap(b1)}}) {
		t.Fatalf("ways %s, want the fallback's", waysString(a.ways))
	}
	a.open(udp(1, 1), a1)
	w.run(2 * time.Second)
	for _, l := range [][]ID{a.ways.Critical, a.ways.Telemetry, a.ways.Bulk} {
		if !slices.Equal(l, []ID{{1, ap(b1)}}) {
			t.Errorf("ways %s, want the uplink's only", waysString(a.ways))
		}
	}
	before := len(a.probes[ID{7, ap(b1)}])
	w.run(time.Minute)
	if n := len(a.probes[ID{7, ap(b1)}]) - before; n > 0 {
		t.Errorf("%d probes of the fallback while the uplink serves", n)
	}
	cut := w.now
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(2 * time.Second)
	if d, ok := a.firstChange(cut, func(w *Ways) bool { return slices.Contains(w.Critical, ID{7, ap(b1)}) }); !ok || d > 500*time.Millisecond {
		t.Errorf("fallback serves after %v (%v)", d, ok)
	}
}

// The path is dead in our direction only: the peer is heard all the time.
func TestOneWay(t *testing.T) {
	w := single(t, 1)
	w.run(time.Second)
	w.b().stream(9*time.Second, 10*time.Millisecond)
	w.a().stream(9*time.Second, 10*time.Millisecond)
	w.run(2 * time.Second)
	cut := w.now
	w.link(ap(a1), ap(b1)).block = true
	w.run(4 * time.Second)
	for _, n := range w.nodes {
		if m := n.missing(); len(m) > 12 { // on their way still
			t.Errorf("%s: %d packets lost", n.name, len(m))
		}
	}
	d, ok := w.a().firstChange(cut, func(w *Ways) bool { return slices.Contains(w.Critical, ID{9, ap(bv4)}) })
	if !ok || d > 2*time.Second {
		t.Errorf("relay after %v (%v), want 2s", d, ok)
	}
	if _, ok := w.b().firstChange(cut, func(w *Ways) bool { return slices.Contains(w.Critical, ID{9, ap(av4)}) }); !ok {
		t.Error("the peer did not notice")
	}
}

func TestGoneSocket(t *testing.T) {
	w := bond(t, 1)
	a := w.a()
	a.stream(4*time.Second, 10*time.Millisecond)
	w.run(2 * time.Second)
	a.close(1)
	a.pump()
	if !slices.Equal(a.ways.Critical, []ID{{2, ap(b2)}}) || !slices.Equal(a.ways.Bulk, a.ways.Critical) {
		t.Errorf("ways %s after the socket went", waysString(a.ways))
	}
	a.close(2)
	a.pump()
	if len(a.ways.Critical)+len(a.ways.Telemetry)+len(a.ways.Bulk) > 0 || a.set.Usable() || a.ways.MTU != 0 {
		t.Errorf("ways %s without a socket", waysString(a.ways))
	}
	w.run(300 * time.Millisecond)
	a.open(udp(3, 1), "10.1.0.99:1")
	w.both(ap("10.1.0.99:1"), ap(b2), func(l *link) { l.block = true })
	w.run(4 * time.Second)
	var lost int
	for _, m := range w.b().missing() {
		if m > 3 {
			lost++
		}
	}
	if lost > 33 { // while there was no socket at all
		t.Errorf("%d lost", lost)
	}
}
