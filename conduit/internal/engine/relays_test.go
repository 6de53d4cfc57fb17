// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// relayWorld is a world of two nodes without UDP between them, and of one that both
// reach and that is willing to relay. The hub carries no packets.
func relayWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.nodes[2].stop()
		w.nodes[2].relays = true
		w.nodes[2].start()
		w.setStreams(false)
		w.cutUDP(0, 1)
		synctest.Wait()
		for _, n := range w.nodes[:2] {
			w.connect(n, w.nodes[2])
		}
		f(t, w)
	})
}

// TestPeerRelay: where two nodes do not reach each other, a willing third one
// carries their packets, and lets go when they do.
func TestPeerRelay(t *testing.T) {
	relayWorld(t, func(t *testing.T, w *world) {
		a, b, r := w.nodes[0], w.nodes[1], w.nodes[2]
		a.send(b, 0) // both are wanted, and look for a way
		b.send(a, 0)
		w.until(15*time.Second, "a way through the willing node", func() bool {
			a.send(b, 0)
			b.send(a, 0)
			return a.sees(b).PathType == "peer-relay" && b.sees(a).PathType == "peer-relay"
		})
		pass(time.Second)
		a.received()
		b.received()
		there, back := flow{w: w, from: a, to: b}, flow{w: w, from: b, to: a}
		before := r.plane.Stats().Lanes[0].RxPackets
		for range 20 {
			there.run(100*time.Millisecond, 10*time.Millisecond)
			back.run(100*time.Millisecond, 10*time.Millisecond)
		}
		if after := r.plane.Stats().Lanes[0].RxPackets; after != before {
			t.Errorf("the relay's application got %d packets of others", after-before)
		}
		w.setUDP(nil)
		start := time.Now()
		for a.sees(b).PathType != "direct" || b.sees(a).PathType != "direct" {
			there.run(10*time.Millisecond, 10*time.Millisecond)
			if time.Since(start) > 30*time.Second {
				t.Fatalf("still %s and %s", a.sees(b).PathType, b.sees(a).PathType)
			}
		}
		there.run(time.Second, 10*time.Millisecond)
		there.check()
		back.check()
		pass(15 * time.Second) // nobody talks any more
		for _, n := range []*node{a, b} {
			other := a
			if n == a {
				other = b
			}
			if slices.ContainsFunc(n.sees(other).Paths, func(p PathStatus) bool { return p.Kind == path.Peer }) {
				t.Errorf("%s still keeps the relay: %+v", n.name, n.sees(other).Paths)
			}
		}
	})
}

// TestPeerRelayRefused: the relay asks its own policy, and asks it anew when that
// changes.
func TestPeerRelayRefused(t *testing.T) {
	relayWorld(t, func(t *testing.T, w *world) {
		a, b, r := w.nodes[0], w.nodes[1], w.nodes[2]
		apart := &policy.Document{Version: 1, Allow: []policy.Rule{
			{Src: []string{"name:node0"}, Dst: []string{"name:node2"}}, {Src: []string{"name:node1"}, Dst: []string{"name:node2"}},
		}}
		r.engine.Policy(7, apart.Marshal())
		try := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); pass(50 * time.Millisecond) {
				a.send(b, 1)
				b.send(a, 1)
			}
		}
		try(10 * time.Second)
		if got := len(a.received()) + len(b.received()); got > 0 || a.sees(b).State == stateConnected {
			t.Fatalf("%d packets went through a relay whose policy keeps the two apart; %s", got, a.sees(b).State)
		}
		if n := r.plane.Stats().RxDropped["relay"]; n == 0 {
			t.Error("the relay counts nothing that it refused")
		}
		r.engine.Policy(8, policy.Default().Marshal())
		try(15 * time.Second)
		if len(a.received()) == 0 || len(b.received()) == 0 || a.sees(b).PathType != "peer-relay" {
			t.Errorf("nothing through a relay whose policy lets the two talk: %s (%s)", a.sees(b).State, a.sees(b).Reason)
		}
		r.engine.Policy(9, apart.Marshal())
		pass(100 * time.Millisecond)
		a.received()
		b.received()
		try(5 * time.Second)
		if got := len(a.received()) + len(b.received()); got > 0 {
			t.Errorf("%d packets after the policy changed", got)
		}
	})
}

// TestUnwillingRelay: who did not say that it relays is asked by nobody, and
// carries nothing where somebody does.
func TestUnwillingRelay(t *testing.T) {
	relayWorld(t, func(t *testing.T, w *world) {
		a, b, r := w.nodes[0], w.nodes[1], w.nodes[2]
		r.stop()
		r.relays = false
		r.start()
		w.connect(a, r)
		w.connect(b, r)
		for range 100 {
			a.send(b, 1)
			b.send(a, 1)
			pass(50 * time.Millisecond)
		}
		if got := len(a.received()) + len(b.received()); got > 0 || r.plane.Stats().RxDropped["relay"] > 0 {
			t.Errorf("%d packets came, %d were refused", got, r.plane.Stats().RxDropped["relay"])
		}
		if p := r.engine.Forward(r.plane.PeerAt(a.virtual), b.id()); p != nil {
			t.Error("an unwilling node forwards")
		}
	})
}

// TestRelayLeaves: when the relay ends, the hub's stream takes over.
func TestRelayLeaves(t *testing.T) {
	relayWorld(t, func(t *testing.T, w *world) {
		a, b, r := w.nodes[0], w.nodes[1], w.nodes[2]
		w.setStreams(true)
		f := flow{w: w, from: a, to: b}
		f.run(10*time.Second, 20*time.Millisecond)
		if k := carriersOf(a.sees(b)); !slices.Contains(k, path.Peer) {
			t.Fatalf("Critical goes over %v, want the relay among them", k)
		}
		r.crash()
		f.run(5*time.Second, 20*time.Millisecond)
		f.check()
		if k := carriersOf(a.sees(b)); !slices.Equal(k, []path.Kind{path.Hub}) {
			t.Errorf("Critical goes over %v, want the hub", k)
		}
		r.start()
		for range 3 { // only who talks to it finds out
			a.send(r, 0)
			b.send(r, 0)
			f.run(time.Second, 20*time.Millisecond)
		}
		f.run(15*time.Second, 20*time.Millisecond) // a dead path is asked seldom
		f.check()
		if k := carriersOf(a.sees(b)); !slices.Contains(k, path.Peer) {
			t.Errorf("Critical goes over %v after the relay came back", k)
		}
	})
}

// TestForwards: the cache of decisions is bounded and forgets on a change.
func TestForwards(t *testing.T) {
	var f forwards
	key := func(i int) pair { return pair{from: idOf(i), to: idOf(-i)} }
	if _, known := f.get(key(1)); known {
		t.Error("the zero value knows something")
	}
	for i := range 3 * maxForwards {
		f.set(key(i), nil)
		if to, known := f.get(key(i)); !known || to != nil {
			t.Fatalf("%d: %v, %v", i, to, known)
		}
		if len(f.known) > maxForwards {
			t.Fatalf("%d decisions are kept", len(f.known))
		}
	}
	f.clear()
	if _, known := f.get(key(3*maxForwards - 1)); known {
		t.Error("a decision outlived the policy")
	}
}

// TestInbound: what came over a relay is forgotten with it, and only that.
func TestInbound(t *testing.T) {
	var in inbound
	in.forget(func(k pair) bool { return k.from == idOf(1) })
	in.set(pair{idOf(1), idOf(2)}, pathOf(1))
	in.set(pair{idOf(3), idOf(2)}, pathOf(3))
	in.forget(func(k pair) bool { return k.from == idOf(1) })
	if _, ok := in.get(pair{idOf(1), idOf(2)}); ok {
		t.Error("a relay that is gone still has a path")
	}
	if p, ok := in.get(pair{idOf(3), idOf(2)}); !ok || p.Bind != 3 {
		t.Error("the other relay's path is gone")
	}
}
