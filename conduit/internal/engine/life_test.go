// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
)

// flow counts up from one node to another.
type flow struct {
	w        *world
	from, to *node
	sent     uint64
	got      []uint64
}

// run sends every gap for a time.
func (f *flow) run(d, gap time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); pass(gap) {
		f.sent++
		f.from.send(f.to, f.sent)
		f.got = append(f.got, f.to.received()...)
	}
}

// check waits for the last packets: all must have come once and in order.
func (f *flow) check() {
	f.w.t.Helper()
	pass(2 * time.Second)
	f.got = append(f.got, f.to.received()...)
	for i, n := range f.got {
		if n != uint64(i+1) { //nolint:gosec // small
			f.w.t.Fatalf("%s to %s: packet %d came as number %d of %d (sent %d)", f.from.name, f.to.name, n, i+1, len(f.got), f.sent)
		}
	}
	if uint64(len(f.got)) != f.sent {
		f.w.t.Fatalf("%s to %s: %d of %d packets came", f.from.name, f.to.name, len(f.got), f.sent)
	}
}

// keysOf counts a node's sessions with another and their keys.
func (n *node) keysOf(o *node) (sessions, keys int) {
	n.do(o, func(p *peer, _ time.Time) {
		for _, s := range p.sessions {
			sessions++
			keys += len(s.keys)
		}
	})
	return sessions, keys
}

// connect lets two nodes meet, until both have a direct path.
func (w *world) connect(a, b *node) {
	w.t.Helper()
	if err := a.engine.Connect(context.Background(), b.id(), nil); err != nil {
		w.t.Fatalf("%s to %s: %v", a.name, b.name, err)
	}
	w.until(5*time.Second, "a direct path at both ends", func() bool {
		return a.sees(b).PathType == "direct" && b.sees(a).PathType == "direct"
	})
}

// TestFirstPacket: a first packet brings session and direct path about.
func TestFirstPacket(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		a, b := w.nodes[0], w.nodes[1]
		a.send(b, 1)
		took := w.until(time.Second, "the first packet", func() bool { return len(b.received()) == 1 })
		if took > 50*time.Millisecond { // a few round trips of 4 ms
			t.Errorf("first packet after %v", took)
		}
		w.until(time.Second, "direct", func() bool { return a.sees(b).PathType == "direct" && b.sees(a).PathType == "direct" })
	})
}

// TestRekeysWithoutHub: while the hub is away, traffic goes on through rekeys and a
// full handshake inside the session, and old keys are dropped.
func TestRekeysWithoutHub(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		a, b := w.nodes[0], w.nodes[1]
		for _, n := range w.nodes {
			n.stop()
			n.hourly = 10 * time.Minute
			n.start()
		}
		w.connect(a, b)
		w.setHub(false)
		there, back := flow{w: w, from: a, to: b}, flow{w: w, from: b, to: a}
		for range 11 * 60 {
			there.run(time.Second, time.Second)
			back.run(200*time.Millisecond, 200*time.Millisecond)
		}
		there.check()
		back.check()
		for _, n := range w.nodes {
			st := n.sees(w.nodes[0])
			if n == a {
				st = n.sees(b)
			}
			if st.Rekeys < 5 || st.Rekeys > 8 || st.Handshakes != 2 || st.PathType != "direct" {
				t.Errorf("%s: %d rekeys and %d handshakes in 13 minutes, path %s", n.name, st.Rekeys, st.Handshakes, st.PathType)
			}
			if time.Since(st.KeysSince) > 10*time.Minute {
				t.Errorf("%s: keys in use since %v", n.name, st.KeysSince)
			}
		}
		pass(30 * time.Second)
		for i, n := range w.nodes {
			if s, k := n.keysOf(w.nodes[1-i]); s != 1 || k > 2 || n.reserved() > 3 {
				t.Errorf("%s has %d sessions, %d keys, %d indexes", n.name, s, k, n.reserved())
			}
		}
		if w.signals > 20 {
			t.Errorf("%d messages by the hub", w.signals)
		}
	})
}

// TestBeginRekey: a rekey of each end, and of both at once, loses nothing.
func TestBeginRekey(t *testing.T) {
	for name, who := range map[string][]int{"A": {0}, "B": {1}, "both": {0, 1}} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				a, b := w.nodes[0], w.nodes[1]
				w.connect(a, b)
				there, back := flow{w: w, from: a, to: b}, flow{w: w, from: b, to: a}
				for round := range 5 {
					there.run(500*time.Millisecond, 10*time.Millisecond)
					back.run(time.Second, 10*time.Millisecond)
					for _, i := range who {
						w.nodes[i].do(w.nodes[1-i], func(p *peer, now time.Time) {
							p.newest().rekey.Begin(now)
							p.newest().flushRekey(now)
						})
					}
					there.run(100*time.Millisecond, time.Millisecond)
					if at, bt := a.sees(b).Rekeys, b.sees(a).Rekeys; at != uint64(round+1) || bt != uint64(round+1) { //nolint:gosec // small
						t.Fatalf("round %d: %d and %d rekeys", round, at, bt)
					}
				}
				there.check()
				back.check()
				pass(20 * time.Second)
				for i, n := range w.nodes {
					if s, k := n.keysOf(w.nodes[1-i]); s != 1 || k != 1 || n.reserved() != 1 {
						t.Errorf("%s has %d sessions, %d keys, %d indexes", n.name, s, k, n.reserved())
					}
				}
			})
		})
	}
}

// TestStuckRekey: where rekeys do not get through, a full handshake makes new keys
// before the old ones end.
func TestStuckRekey(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		a, b := w.nodes[0], w.nodes[1]
		w.connect(a, b)
		f := flow{w: w, from: a, to: b}
		for i, n := range w.nodes { // a rekeyer that never begins
			n.do(w.nodes[1-i], func(p *peer, _ time.Time) { p.newest().rekey.Close() })
		}
		f.run(200*time.Second, time.Second)
		f.check()
		if st := a.sees(b); st.Handshakes != 2 || st.State != stateConnected {
			t.Errorf("%d handshakes, %s", st.Handshakes, st.State)
		}
	})
}

// TestRelayOnly: without UDP the hub's stream carries all, and when UDP is let
// through the path becomes direct without a loss.
func TestRelayOnly(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		a, b := w.nodes[0], w.nodes[1]
		w.setUDP(noUDP)
		f := flow{w: w, from: a, to: b}
		f.run(10*time.Second, 10*time.Millisecond)
		for _, st := range []PeerStatus{a.sees(b), b.sees(a)} {
			if st.PathType != "hub-relay" || st.State != stateConnected || !slices.Equal(carriersOf(st), []path.Kind{path.Hub}) {
				t.Errorf("path %s (%s), Critical on %v", st.PathType, st.State, carriersOf(st))
			}
		}
		w.setUDP(nil)
		opened := time.Now()
		for a.sees(b).PathType != "direct" || b.sees(a).PathType != "direct" {
			f.run(10*time.Millisecond, 10*time.Millisecond)
			if time.Since(opened) > 30*time.Second {
				t.Fatalf("still %s and %s", a.sees(b).PathType, b.sees(a).PathType)
			}
		}
		t.Logf("direct %v after UDP was let through", time.Since(opened))
		f.run(time.Second, 10*time.Millisecond)
		w.setUDP(noUDP)
		cut := time.Now()
		for slices.Contains(carriersOf(a.sees(b)), path.Direct) || slices.Contains(carriersOf(b.sees(a)), path.Direct) {
			f.run(10*time.Millisecond, 10*time.Millisecond)
			if time.Since(cut) > 5*time.Second {
				t.Fatalf("still direct: %+v", a.sees(b).Paths)
			}
		}
		t.Logf("on the relay %v after UDP was cut", time.Since(cut))
		f.run(2*time.Second, 10*time.Millisecond)
		f.check()
	})
}

// TestRestartsWithoutHub: nodes that start from a State while the hub is away find
// each other again, whichever of them restarted.
func TestRestartsWithoutHub(t *testing.T) {
	for name, which := range map[string][]int{"one": {0}, "other": {1}, "both": {0, 1}} {
		for _, how := range []string{"stop", "crash"} {
			t.Run(name+"/"+how, func(t *testing.T) {
				inWorld(t, 2, func(t *testing.T, w *world) {
					a, b := w.nodes[0], w.nodes[1]
					w.connect(a, b)
					w.setHub(false)
					pass(time.Second)
					for _, i := range which {
						w.nodes[i].save()
						if how == "stop" {
							w.nodes[i].stop()
						} else {
							w.nodes[i].crash()
						}
					}
					for _, i := range which {
						w.nodes[i].start()
					}
					for n, x := range [][2]*node{{a, b}, {b, a}} {
						start := time.Now()
						for number := uint64(1000 * (n + 1)); ; number++ { //nolint:gosec // small
							x[0].send(x[1], number)
							pass(20 * time.Millisecond)
							if len(x[1].received()) > 0 {
								break
							}
							if time.Since(start) > 3*time.Second {
								t.Fatalf("%s to %s: nothing in %v: %+v and %+v", x[0].name, x[1].name, time.Since(start), x[0].sees(x[1]), x[1].sees(x[0]))
							}
						}
						t.Logf("%s to %s after %v", x[0].name, x[1].name, time.Since(start))
					}
					if st := a.sees(b); st.PathType != "direct" {
						t.Errorf("path %s", st.PathType)
					}
					if w.signals == 0 {
						t.Error("the first handshake went by no hub")
					}
				})
			})
		}
	}
}

// TestDeniedWithoutHub: a denial that came before the hub went away stays in force
// through a restart.
func TestDeniedWithoutHub(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
		w.connect(a, b)
		w.connect(a, c)
		w.setHub(false)
		a.engine.Denied([]Denial{{Serial: append([]byte{0}, b.cert.Serial.Bytes()...)}}, false)
		pass(100 * time.Millisecond)
		if st := a.sees(b); st.PathType != "none" || st.Reason != ErrDenied.Error() {
			t.Errorf("path %s, reason %q", st.PathType, st.Reason)
		}
		try := func(when string) {
			t.Helper()
			for i := range uint64(100) {
				b.send(a, i)
				a.send(b, i)
				pass(100 * time.Millisecond)
			}
			if ab, ba := a.received(), b.received(); len(ab)+len(ba) > 0 || a.sees(b).State == stateConnected {
				t.Errorf("%s: %d and %d packets went through, %s", when, len(ab), len(ba), a.sees(b).State)
			}
		}
		try("before the restart")
		a.save()
		a.stop()
		a.start()
		pass(time.Second)
		try("after the restart")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := b.engine.Connect(ctx, a.id(), nil); err == nil {
			t.Error("who is shut out connected")
		}
		f := flow{w: w, from: c, to: a}
		w.connect(c, a)
		f.run(time.Second, 100*time.Millisecond)
		f.check()
		a.engine.Denied([]Denial{{ID: c.id()}}, false)
		pass(time.Second)
		if err := a.engine.Connect(ctx, c.id(), nil); !errors.Is(err, ErrDenied) {
			t.Errorf("Connect = %v", err)
		}
	})
}

// TestAddressChange: the only uplink gets another address; traffic goes on.
func TestAddressChange(t *testing.T) {
	for _, hub := range []bool{true, false} {
		inWorld(t, 2, func(t *testing.T, w *world) {
			a, b := w.nodes[0], w.nodes[1]
			w.connect(a, b)
			w.setHub(hub)
			f := flow{w: w, from: b, to: a}
			f.run(3*time.Second, 100*time.Millisecond)
			f.check()
			old := a.addrs[0]
			a.addrs = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:4000")}
			w.mu.Lock()
			gone := w.binds[old]
			w.mu.Unlock()
			_ = gone.Close()
			a.engine.SetUplinks(a.open())
			start := time.Now()
			for len(a.received()) == 0 {
				f.run(10*time.Millisecond, 10*time.Millisecond)
				if len(f.got) > 30 || time.Since(start) > 5*time.Second {
					break
				}
			}
			if d := time.Since(start); d > 500*time.Millisecond {
				t.Errorf("hub up: %v: traffic again after %v", hub, d)
			}
			f.run(2*time.Second, 100*time.Millisecond)
			if st := a.sees(b); st.PathType != "direct" {
				t.Errorf("path %s", st.PathType)
			}
		})
	}
}
