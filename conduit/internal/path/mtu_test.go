// SPDX-License-Identifier: Apache-2.0

package path

import (
	"testing"
	"time"
)

// sizes gives both directions of the only link an MTU of the IP packet.
func sizes(w *world, outer int) {
	w.both(ap(a1), ap(b1), func(l *link) { l.mtu = outer - ipHeaders4 })
}

func direct(t *testing.T, outer int) *world {
	w := newWorld(t, 1)
	w.a().open(udp(1, 1), a1)
	w.b().open(udp(1, 1), b1)
	sizes(w, outer)
	w.exchange()
	w.demand(Active)
	return w
}

func TestMTUSearch(t *testing.T) {
	for _, tc := range []struct{ link, want int }{
		{1500, 1500}, {9000, 1500}, {1492, 1492}, {1480, 1452}, {1410, 1410}, {1409, 1400}, {1400, 1400}, {1300, 1280}, {1280, 1280},
	} {
		w := direct(t, tc.link)
		w.run(200 * time.Millisecond)
		a := w.a()
		if got := a.ways.MTU; got < 1382 && tc.link >= 1410 {
			t.Errorf("link %d: starts with %d, want 1382 or more", tc.link, got)
		}
		w.run(5 * time.Second)
		st := a.status(ID{1, ap(b1)})
		if st.MTU != tc.want-28 || a.ways.MTU != tc.want-28 || st.State != StateValid {
			t.Errorf("link %d: %d, ways %d (%s), want %d", tc.link, st.MTU, a.ways.MTU, st.State, tc.want-28)
		}
		if st.Loss > 0 {
			t.Errorf("link %d: lost large probes count as loss %v", tc.link, st.Loss)
		}
		n := len(a.probes[ID{1, ap(b1)}])
		w.run(25 * time.Second)
		if st = a.status(ID{1, ap(b1)}); st.MTU != tc.want-28 {
			t.Errorf("link %d: %d after a while", tc.link, st.MTU)
		}
		if got := len(a.probes[ID{1, ap(b1)}]) - n; got > 26*10 {
			t.Errorf("link %d: %d probes in 25 s", tc.link, got)
		}
	}
}

// How fast an optimistic start is taken back.
func TestMTUStartTooLarge(t *testing.T) {
	w := direct(t, 1300)
	w.run(time.Second)
	if d, ok := w.a().firstChange(start, func(w *Ways) bool { return w.MTU == 1280-28 }); !ok || d > 600*time.Millisecond {
		t.Errorf("base in use %v after (%v)", d, ok)
	}
}

func TestMTUBlackHoleAndRaise(t *testing.T) {
	w := direct(t, 1500)
	w.run(5 * time.Second)
	a := w.a()
	sizes(w, 1420)
	shrunk := w.now
	w.run(40 * time.Second)
	if d, ok := a.firstChange(shrunk, func(w *Ways) bool { return w.MTU == 1420-28 }); !ok || d > 33*time.Second {
		t.Errorf("1420 in use %v after (%v), ways %s", d, ok, waysString(a.ways))
	}
	sizes(w, 1500)
	w.run(11 * time.Minute)
	if a.ways.MTU != 1500-28 {
		t.Errorf("MTU %d ten minutes after the link grew", a.ways.MTU)
	}
}

// While large packets are sent, a router that begins to drop them is found out
// within two seconds.
func TestMTUBlackHoleUnderLoad(t *testing.T) {
	w := direct(t, 1500)
	w.run(5 * time.Second)
	a := w.a()
	sizes(w, 1400)
	shrunk := w.now
	for range 40 {
		w.run(100 * time.Millisecond)
		a.set.Loaded(ID{1, ap(b1)}, w.now)
	}
	if d, ok := a.firstChange(shrunk, func(w *Ways) bool { return w.MTU <= 1400-28 }); !ok || d > 2*time.Second {
		t.Errorf("a size that passes in use %v after (%v), ways %s", d, ok, waysString(a.ways))
	}
}

// Loss of everything says nothing of the size.
func TestMTUSurvivesOutage(t *testing.T) {
	w := direct(t, 1500)
	w.run(5 * time.Second)
	w.both(ap(a1), ap(b1), func(l *link) { l.block = true })
	w.run(3 * time.Second)
	w.both(ap(a1), ap(b1), func(l *link) { l.block = false })
	w.run(3 * time.Second)
	for _, c := range w.a().changes[3:] {
		if c.ways.MTU != 0 && c.ways.MTU < 1382 {
			t.Errorf("MTU %d after an outage", c.ways.MTU)
		}
	}
	w.both(ap(a1), ap(b1), func(l *link) { l.loss = 0.2 })
	w.run(3 * time.Minute)
	if st := w.a().status(ID{1, ap(b1)}); st.MTU < 1382 {
		t.Errorf("MTU %d on a lossy link", st.MTU)
	}
}

func TestMTUTooBig(t *testing.T) {
	w := direct(t, 1500)
	w.run(5 * time.Second)
	a, id := w.a(), ID{1, ap(b1)}
	sizes(w, 1400)
	for range 5 {
		a.set.TooBig(id, w.now)
	}
	a.pump()
	if a.ways.MTU != 1280-28 {
		t.Errorf("MTU %d at once after the kernel refused, want the base", a.ways.MTU)
	}
	w.run(3 * time.Second)
	if a.ways.MTU != 1400-28 {
		t.Errorf("MTU %d, want %d", a.ways.MTU, 1400-28)
	}
	a.set.TooBig(ID{1, ap(a2)}, w.now) // unknown
}

func TestMTUOfKinds(t *testing.T) {
	for _, tc := range []struct {
		kind   Kind
		remote string
		want   int
	}{
		{Direct, "10.0.0.1:1", 1410 - 28},
		{Direct, "[2001:db8::1]:1", 1430 - 48},
		{Turn, "10.0.0.1:1", 1452 - 28 - 40},
		{Turn, "[2001:db8::1]:1", 1492 - 48 - 40},
		{Peer, av4, 1410 - 28 - 80},
		{Hub, av4, 1500},
	} {
		s, now := New(Config{}), start
		s.SetLocals([]Local{{Bind: 1, Kind: tc.kind, V4: tc.kind < Peer, V6: tc.kind < Peer}}, now)
		s.AddPath(ID{1, ap(tc.remote)}, now)
		if st := s.Status(now); len(st) != 1 || st[0].MTU != tc.want || st[0].Kind != tc.kind {
			t.Errorf("%s over %s: %+v, want %d", tc.kind, tc.remote, st, tc.want)
		}
	}
}
