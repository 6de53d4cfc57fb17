// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// A train that the strategy asks for at the dequeue itself is marked as one.
func TestTrainAtDequeue(t *testing.T) {
	st := &fakeStrategy{rate: 1e6}
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(st, 60)
	r.fill(p, 5, packet.Bulk, 1, 1340)
	st.train = 3 * 1400
	if n := r.step(64, func(_ *Pipe, _ *packet.Buf, train bool) {
		if !train {
			t.Error("not a train")
		}
	}); n != 3 {
		t.Errorf("the train has %d packets, want 3", n)
	}
	r.check()
}

// Where several lanes wait no batch is longer than a turn.
func TestTurn(t *testing.T) {
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(congestion.NewNull(), 60)
	r.fill(p, 200, packet.Bulk, 1, 1340)
	r.fill(p, 200, packet.Telemetry, 1, 1340)
	for p.n[packet.Telemetry] > 0 && p.n[packet.Bulk] > 0 {
		lane := packet.Telemetry
		n := r.step(64, func(_ *Pipe, b *packet.Buf, _ bool) { lane = b.Lane })
		if lane == packet.Bulk && n*1400 > maxTurn+1400 {
			t.Fatalf("%d of Bulk in one turn", n)
		}
	}
}

// Where the fattest flow is a datagram that has begun, another one gives.
func TestBegunIsFattest(t *testing.T) {
	r := newRig(t, Config{Bulk: 50})
	f := watch(r)
	p := r.AddUplink().AddPipe(nil, 60)
	d := datagram(packet.Bulk, 1, 7, 40)
	r.put(p, d[0])
	r.step(1, f.left)
	r.put(p, d[1:]...)
	r.fill(p, 30, packet.Bulk, 2, 100)
	if p.n[packet.Bulk] != 50 || r.drops[Overflow] != 19 {
		t.Errorf("%d wait, drops %v", p.n[packet.Bulk], r.drops)
	}
	for r.step(64, f.left) > 0 {
		r.check()
	}
	f.check(t, func(uint64) int { return 40 })
}

// Of a condemned datagram of Bulk nothing leaves, whatever the order.
func TestCondemnedBulk(t *testing.T) {
	r := newRig(t, Config{Bulk: 5})
	f := watch(r)
	p := r.AddUplink().AddPipe(nil, 60)
	d := datagram(packet.Bulk, 1, 7, 5)
	r.put(p, d[0], d[1], d[4], d[2], d[3])
	r.fill(p, 1, packet.Bulk, 2, 100)
	for r.step(64, f.left) > 0 {
		r.check()
	}
	if f.out[7] != 0 || r.drops[Overflow]+r.drops[Datagram] != 5 {
		t.Errorf("%d fragments left, drops %v", f.out[7], r.drops)
	}
}

// A pause of an interval or more starts CoDel's times anew.
func TestCoDelResumes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before int64 // how long the queue stands before the pause
	}{{"before the first drop", 120 * ms}, {"while dropping", 2000 * ms}} {
		r := newRig(t, Config{})
		u := r.AddUplink()
		p := u.AddPipe(&fakeStrategy{rate: 1e6}, 60)
		stand := func(d int64) {
			for end := r.clock + d; r.clock < end; {
				r.fill(p, max(0, 21-p.n[packet.Bulk]), packet.Bulk, 1, 940)
				r.run(r.clock+ms, 1, nil)
			}
		}
		stand(tt.before)
		was := r.drops[CoDel]
		u.Hold(packet.Bulk)
		r.run(r.clock+1000*ms, 1, nil)
		u.Unhold(packet.Bulk)
		r.run(r.clock+5*ms, 1, nil)
		if n := r.drops[CoDel] - was; n > 0 {
			t.Errorf("%s: %d drops right after a pause", tt.name, n)
		}
	}
}

// A queue that comes back soon is told at the pace of before (RFC 8289, section 5.4).
func TestCoDelRemembers(t *testing.T) {
	r := newRig(t, Config{})
	var at []int64
	r.onDr = func(*packet.Buf, Drop) { at = append(at, r.clock) }
	p := r.AddUplink().AddPipe(&fakeStrategy{rate: 1e6}, 60)
	depth := func(n int, d int64) {
		at = nil
		for end := r.clock + d; r.clock < end; {
			r.fill(p, max(0, n-p.n[packet.Bulk]), packet.Bulk, 1, 940)
			r.run(r.clock+ms, 1, nil)
		}
	}
	depth(25, 2000*ms)
	depth(5, 200*ms)
	depth(25, 500*ms)
	if len(at) < 3 || at[1]-at[0] > minInterval/2 {
		t.Errorf("drops at %v", at)
	}
}

// What a path once carried does not count for ever.
func TestRefFades(t *testing.T) {
	st := &fakeStrategy{rate: 10e6}
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(st, 60)
	st.rate = 100e3
	for r.clock < 20000*ms {
		r.fill(p, 1, packet.Bulk, 1, 1000)
		r.run(r.clock+20*ms, 64, nil)
	}
	n := 0
	for p.Police(r.clock, 140) {
		n += 200
	}
	if n > 5000 || p.maxBytes > minBytes {
		t.Errorf("a burst of %d Critical, %d bytes of Bulk", n, p.maxBytes)
	}
}

// Control is bounded, too, and the newest is kept.
func TestControlCap(t *testing.T) {
	r := newRig(t, Config{Critical: 3})
	for i := range uint32(5) {
		r.put(nil, pkt(packet.Critical, i, 100))
	}
	r.check()
	first := uint32(0)
	n := r.step(64, func(_ *Pipe, b *packet.Buf, _ bool) { first = max(first, 10-b.FlowHash) })
	if n != 3 || first != 8 || r.drops[Overflow] != 2 {
		t.Errorf("%d left, the oldest %d, drops %v", n, 10-first, r.drops)
	}
	r.check()
}

// An uplink that is closed is forgotten, and a pipe of it is not paced even where
// nothing waited.
func TestCloseIdleUplink(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	p := u.AddPipe(congestion.NewFixed(8e3), 60)
	u.Close()
	u.Close()
	if len(r.uplinks) != 1 {
		t.Errorf("%d uplinks are left", len(r.uplinks))
	}
	r.fill(p, 20, packet.Bulk, 1, 1000)
	n := 0
	for r.step(64, func(*Pipe, *packet.Buf, bool) { n++ }) > 0 {
		r.check()
	}
	if n != 20 || len(r.uplinks) != 1 {
		t.Errorf("%d left, %d uplinks", n, len(r.uplinks))
	}
}
