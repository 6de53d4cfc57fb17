// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math/rand/v2"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Whatever is done to a Scheduler, each packet leaves once, flows keep their order
// within a lane, no datagram leaves in part, and all counts agree.
func FuzzScheduler(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{10, 300, 3000} {
		ops := make([]byte, n)
		for i := range ops {
			ops[i] = byte(rng.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(random)
}

func TestRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for range 40 {
		ops := make([]byte, 1200)
		for i := range ops {
			ops[i] = byte(rng.Uint32())
		}
		random(t, ops)
		if t.Failed() {
			return
		}
	}
}

func random(t *testing.T, ops []byte) {
	r := newRig(t, Config{Critical: 50, Telemetry: 60, Bulk: 100})
	held := map[*packet.Buf]bool{} // in the Scheduler
	frags := watch(r)
	onDr := r.onDr
	gone := func(b *packet.Buf) {
		if !held[b] {
			t.Fatal("a packet left twice, or was never put in")
		}
		delete(held, b)
	}
	r.onDr = func(b *packet.Buf, d Drop) {
		gone(b)
		onDr(b, d)
	}
	type flowKey struct {
		p    *Pipe
		flow uint32
		c    int
	}
	seq := map[flowKey]int64{}
	var serial int64
	next := func() int {
		if len(ops) == 0 {
			return 0
		}
		b := ops[0]
		ops = ops[1:]
		return int(b)
	}
	var uplinks []*Uplink
	var pipes []*Pipe
	var fakes []*fakeStrategy
	addUplink := func() {
		u := r.AddUplink()
		uplinks = append(uplinks, u)
		for i := range 3 {
			var st congestion.Strategy
			if i > 0 {
				fake := &fakeStrategy{rate: []float64{0, 200e3, 5e6}[i]}
				fakes = append(fakes, fake)
				st = fake
			}
			pipes = append(pipes, u.AddPipe(st, 60))
		}
	}
	addUplink()
	addUplink()
	holds := make(map[*Uplink][packet.NumLanes]int)
	put := func(p *Pipe, bufs ...*packet.Buf) {
		for _, b := range bufs {
			held[b] = true
			serial++
			b.Enqueued = serial
		}
		r.put(p, bufs...)
	}
	left := func(p *Pipe, b *packet.Buf, train bool) {
		gone(b)
		frags.left(p, b, train)
		k := flowKey{p, b.FlowHash, class(b)}
		if b.Enqueued <= seq[k] {
			t.Fatalf("flow %d on lane %v is out of order", b.FlowHash, b.Lane)
		}
		seq[k] = b.Enqueued
		if train && b.Lane != packet.Bulk {
			t.Fatalf("%v in a train", b.Lane)
		}
		if p != nil && b.Lane != packet.Critical && p.u.open() <= int(b.Lane) {
			t.Fatalf("%v left a held uplink", b.Lane)
		}
	}
	datagrams := uint64(0)
	for len(ops) > 0 && !t.Failed() {
		op, x := next(), next()
		p := pipes[x%len(pipes)]
		u := uplinks[x%len(uplinks)]
		switch op % 16 {
		case 0, 1, 2, 3: // packets
			for i := range 1 + x/16 {
				b := pkt(packet.Lane(op/16%3), uint32(i*x%11), 40+x*5)
				b.Demoted = op/64 == 3
				if b.Lane == packet.Bulk && x%3 == 0 {
					ipv4(b, 2)
				}
				put(p, b)
			}
		case 4, 5: // a datagram
			datagrams++
			d := datagram(packet.Lane(op/16%3), uint32(x%7), datagrams, 2+x%47)
			for i, b := range d {
				put(p, b)
				if i%7 == op/64 {
					r.step(2, left)
				}
			}
		case 6:
			put(nil, pkt(packet.Lane(x%3), 1, x))
		case 7, 8, 9:
			r.step(1+x%64, left)
		case 10:
			r.run(r.clock+int64(x)*ms/4, 1+op, left)
		case 11:
			h := holds[u]
			l := packet.Lane(1 + op/16%2)
			if h[l] > 0 {
				h[l]--
				u.Unhold(l)
			} else {
				h[l]++
				u.Hold(l)
			}
			holds[u] = h
		case 12:
			u.SetRate(float64(x%4) * 300e3)
		case 13:
			fk := fakes[x%len(fakes)]
			fk.train = x * 100
			fk.rate = []float64{0, 8e3, 400e3, 1e8}[op/64]
		case 14:
			p.Report(&congestion.Report{})
		case 15:
			switch op / 16 {
			case 0:
				p.Close()
			case 1:
				u.Close()
			case 2:
				if len(uplinks) < 5 {
					addUplink()
				}
			default:
				p.Sent(congestion.Sent{Bytes: x * 100})
			}
		}
		r.check()
	}
	frags.check(t, nil)
	for u := range holds {
		for l, n := range holds[u] {
			for range n {
				u.Unhold(packet.Lane(l))
			}
		}
	}
	for range len(held) / 8 {
		r.step(4, left)
	}
	frags.check(t, nil)
	r.Close()
	r.check()
	if len(held) > 0 {
		t.Fatalf("%d packets never left", len(held))
	}
	for flow, n := range r.left {
		if n != 0 {
			t.Fatalf("flow %d: Left is off by %d", flow, n)
		}
	}
	for _, fk := range fakes {
		if fk.back {
			t.Fatal("a strategy's time went back")
		}
	}
	b := pkt(packet.Bulk, 1, 100)
	held[b] = true
	r.put(pipes[0], b)
	if r.drops[Closed] == 0 || len(held) > 0 {
		t.Fatal("a packet entered after Close")
	}
}
