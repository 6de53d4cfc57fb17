// SPDX-License-Identifier: Apache-2.0

package path

import (
	"slices"
	"testing"
	"time"
)

const (
	a1, a2   = "10.1.0.1:1", "10.2.0.1:1"
	b1, b2   = "10.1.0.2:1", "10.2.0.2:1"
	av4, bv4 = "100.64.0.1:1", "100.64.0.2:1"
)

// isolate cuts all links between sockets that are not in the pairs.
func (w *world) isolate(pairs ...[2]string) {
	for _, s := range w.a().socks {
		for _, o := range w.b().socks {
			if s.relay || o.relay {
				continue
			}
			on := false
			for _, p := range pairs {
				on = on || s.addr == ap(p[0]) && o.addr == ap(p[1])
			}
			if !on {
				w.both(s.addr, o.addr, func(l *link) { l.block = true })
			}
		}
	}
}

// bond is two nodes with two uplinks each, in two networks.
func bond(t *testing.T, seed uint64) *world {
	w := newWorld(t, seed)
	w.a().open(udp(1, 1), a1)
	w.a().open(udp(2, 2), a2)
	w.b().open(udp(1, 1), b1)
	w.b().open(udp(2, 2), b2)
	w.isolate([2]string{a1, b1}, [2]string{a2, b2})
	w.exchange()
	w.demand(Active)
	return w
}

// single is one uplink each, and the hub's relay with a round trip of 60 ms.
func single(t *testing.T, seed uint64) *world {
	w := newWorld(t, seed)
	w.a().open(udp(1, 1), a1)
	w.b().open(udp(1, 1), b1)
	w.a().open(Local{Bind: 9, Kind: Hub}, av4)
	w.b().open(Local{Bind: 9, Kind: Hub}, bv4)
	w.both(ap(av4), ap(bv4), func(l *link) { l.delay = 30 * time.Millisecond })
	w.exchange()
	w.demand(Active)
	return w
}

func TestBondBlackHole(t *testing.T) {
	for seed := range uint64(12) {
		w := bond(t, seed)
		a := w.a()
		id1, id2 := ID{1, ap(b1)}, ID{2, ap(b2)}
		a.stream(20*time.Second, 10*time.Millisecond)
		w.run(5*time.Second + time.Duration(seed)*3*time.Millisecond)
		if len(a.ways.Critical) != 2 || len(a.ways.Bulk) != 2 || len(a.ways.Telemetry) != 1 {
			t.Fatalf("ways %s, want two for Critical and Bulk, one for Telemetry", waysString(a.ways))
		}
		cut := w.now
		first := a.ways.Telemetry[0]
		w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
		other := id2
		if first == id1 {
			_ = other
		}
		w.run(2 * time.Second)
		d, ok := a.firstChange(cut, func(w *Ways) bool { return !slices.Contains(w.Bulk, id1) && !slices.Contains(w.Telemetry, id1) })
		if !ok || d > 150*time.Millisecond {
			t.Errorf("seed %d: Bulk left the cut path after %v (%v), want 150ms", seed, d, ok)
		}
		heal := w.now
		w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
		w.run(6 * time.Second)
		if d, ok := a.firstChange(heal, func(w *Ways) bool { return len(w.Bulk) == 2 && slices.Contains(w.Critical, id1) }); !ok || d > 2*time.Second {
			t.Errorf("seed %d: both used %v after healing (%v), want 2s", seed, d, ok)
		}
		w.run(8 * time.Second)
		if m := w.b().missing(); len(m) > 0 {
			t.Errorf("seed %d: %d Critical packets lost", seed, len(m))
		}
	}
}

// After a long cut, when the path is dead, healing is seen as soon.
func TestBondHealsLate(t *testing.T) {
	w := bond(t, 1)
	w.run(3 * time.Second)
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(60 * time.Second)
	if st := w.a().status(ID{1, ap(b1)}); st.State != StateDead {
		t.Fatalf("state %s after a minute, want dead", st.State)
	}
	heal := w.now
	w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
	w.run(3 * time.Second)
	for _, n := range w.nodes {
		if d, ok := n.firstChange(heal, func(w *Ways) bool { return len(w.Bulk) == 2 && len(w.Critical) == 2 }); !ok || d > 2*time.Second {
			t.Errorf("%s: both used %v after healing (%v), want 2s", n.name, d, ok)
		}
	}
}

func TestLinkDown(t *testing.T) {
	w := bond(t, 1)
	a := w.a()
	a.stream(6*time.Second, 10*time.Millisecond)
	w.run(3 * time.Second)
	cut := w.now
	w.both(ap(a1), ap(b1), func(l *link) { l.down = true })
	w.run(3 * time.Second)
	if d, ok := a.firstChange(cut, func(w *Ways) bool { return len(w.Bulk) == 1 && w.Bulk[0] == ID{2, ap(b2)} }); !ok || d > 60*time.Millisecond {
		t.Errorf("left the path %v after the kernel refused (%v)", d, ok)
	}
	w.run(time.Second)
	if m := w.b().missing(); len(m) > 0 {
		t.Errorf("%d Critical packets lost", len(m))
	}
}

func TestRelayFirstThenDirect(t *testing.T) {
	w := single(t, 1)
	a := w.a()
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.at(200*time.Millisecond, func() { a.stream(20*time.Second, 10*time.Millisecond) })
	w.run(700 * time.Millisecond)
	relay, direct := ID{9, ap(bv4)}, ID{1, ap(b1)}
	if d, ok := a.firstChange(start, func(w *Ways) bool { return slices.Equal(w.Critical, []ID{relay}) }); !ok || d > 100*time.Millisecond {
		t.Fatalf("relay in use after %v (%v), want 100ms", d, ok)
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
	opened := w.now
	w.run(4 * time.Second)
	if d, ok := a.firstChange(opened, func(w *Ways) bool { return slices.Equal(w.Critical, []ID{direct}) }); !ok || d > 1100*time.Millisecond {
		t.Fatalf("direct path in use after %v (%v), want 1.1s", d, ok)
	}
	if got := a.changes[len(a.changes)-1].ways; got.Since.IsZero() && got.MTU == 0 {
		t.Errorf("ways %s", waysString(got))
	}
	cut := w.now
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(2 * time.Second)
	if d, ok := a.firstChange(cut, func(w *Ways) bool { return slices.Contains(w.Critical, relay) }); !ok || d > 400*time.Millisecond {
		t.Errorf("relay back after %v (%v), want 400ms", d, ok)
	}
	w.run(20 * time.Second)
	if m := w.b().missing(); len(m) > 0 {
		t.Errorf("%d Critical packets lost: %v", len(m), m)
	}
}
