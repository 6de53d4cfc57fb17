// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func TestOrder(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	p := u.AddPipe(congestion.NewNull(), 60)
	q := u.AddPipe(nil, 60)
	r.put(p, pkt(packet.Bulk, 1, 100))
	r.put(p, pkt(packet.Telemetry, 2, 100))
	r.put(q, pkt(packet.Critical, 3, 100), pkt(packet.Critical, 4, 100))
	r.put(p, pkt(packet.Critical, 5, 100))
	r.put(nil, pkt(packet.Critical, 6, 100), pkt(packet.Critical, 7, 100))
	r.check()
	var got []uint32
	var pipes []*Pipe
	for r.step(64, func(p *Pipe, b *packet.Buf, _ bool) {
		got = append(got, b.FlowHash)
		pipes = append(pipes, p)
	}) > 0 {
		r.check()
	}
	if want := "[6 7 3 4 5 2 1]"; fmt.Sprint(got) != want {
		t.Errorf("left: %v, want %s", got, want)
	}
	if pipes[0] != nil || pipes[2] != q || pipes[4] != p || pipes[6] != p {
		t.Errorf("left on %v", pipes)
	}
	r.check()
}

// Whoever floods Critical waits behind the others.
func TestCriticalRoundRobin(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	p, q := u.AddPipe(nil, 60), u.AddPipe(nil, 60)
	r.fill(p, 500, packet.Critical, 1, 100)
	r.fill(q, 3, packet.Critical, 2, 100)
	n, at := 0, 0
	for r.step(64, func(o *Pipe, _ *packet.Buf, _ bool) {
		if n++; o == q {
			at = n
		}
	}) > 0 {
		r.check()
	}
	if n != 503 || at > 8+3 {
		t.Errorf("the last of the other's packets left as number %d of %d", at, n)
	}
	r.check()
}

// Telemetry, Bulk and what is demoted share a limit 3 : 1 : 1/8, and whoever is
// alone gets all.
func TestLaneShares(t *testing.T) {
	for _, limit := range []string{"pipe", "uplink"} {
		for _, size := range []int{200, 1350} {
			r := newRig(t, Config{Telemetry: 1e6, Bulk: 1e6})
			u := r.AddUplink()
			p := u.AddPipe(congestion.NewFixed(1e6), 60)
			q := p
			if limit == "uplink" {
				u.SetRate(1e6)
				p, q = u.AddPipe(nil, 60), u.AddPipe(congestion.NewNull(), 60)
			}
			var got [numClasses]int
			top := func() {
				for p.n[packet.Telemetry] < 20 {
					r.put(p, pkt(packet.Telemetry, 1, size))
				}
				for q.n[packet.Bulk] < 20 {
					r.put(q, pkt(packet.Bulk, uint32(got[2])%7, size))
				}
				for q.n[demoted] < 20 {
					b := pkt(packet.Bulk, 9, size)
					b.Demoted = true
					r.put(q, b)
				}
			}
			top()
			for r.clock < int64(20*time.Second) {
				r.clock = r.NextAt()
				for r.step(64, func(_ *Pipe, b *packet.Buf, _ bool) { got[class(b)] += b.N + 60 }) > 0 {
					top()
				}
			}
			sum := float64(got[1] + got[2] + got[3])
			if math.Abs(sum/20e6-1) > 0.01 {
				t.Errorf("%s, %d bytes: %.0f in 20 s of 1e6/s", limit, size, sum)
			}
			for c, want := range []float64{0, 3 / 4.125, 1 / 4.125, .125 / 4.125} {
				if share := float64(got[c]) / sum; math.Abs(share-want) > 0.015 {
					t.Errorf("%s, %d bytes: class %d has %.3f, want %.3f", limit, size, c, share, want)
				}
			}
			r.check()
		}
	}
}

// Peers share an uplink by bytes, whatever their packets.
func TestPeerShares(t *testing.T) {
	r := newRig(t, Config{Bulk: 1e6})
	u := r.AddUplink()
	u.SetRate(2e6)
	const peers = 5
	var pipes [peers]*Pipe
	got := map[*Pipe]int{}
	for i := range pipes {
		pipes[i] = u.AddPipe(congestion.NewNull(), 60)
	}
	top := func() {
		for i, p := range pipes {
			for p.n[packet.Bulk] < 100 {
				r.put(p, pkt(packet.Bulk, uint32(i), 100+300*i))
			}
		}
	}
	top()
	for r.clock < int64(5*time.Second) {
		r.clock = r.NextAt()
		for r.step(64, func(p *Pipe, b *packet.Buf, _ bool) { got[p] += b.N + 60 }) > 0 {
			top()
		}
	}
	for i, p := range pipes {
		if share := float64(got[p]) / 1e7; math.Abs(share-.2) > .005 {
			t.Errorf("peer %d has %.3f, want 0.2", i, share)
		}
	}
	r.check()
}

// A peer whose path is slow does not hold up the others.
func TestSlowPeer(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	slow, quick := u.AddPipe(congestion.NewFixed(8e3), 60), u.AddPipe(congestion.NewFixed(1e6), 60)
	r.fill(slow, 100, packet.Bulk, 1, 1350)
	got := map[*Pipe]int{}
	for r.clock < int64(time.Second) {
		r.fill(quick, 10, packet.Bulk, 2, 1350)
		r.run(r.clock+10*ms, 64, func(p *Pipe, b *packet.Buf, _ bool) { got[p] += b.N + 60 })
	}
	if n := got[quick]; n < 990e3 || n > 1010e3 {
		t.Errorf("quick sent %d in 1 s of 1e6/s", n)
	}
	if n := got[slow]; n < 7000 || n > 8000+2*1410 {
		t.Errorf("slow sent %d in 1 s of 8e3/s", n)
	}
	r.check()
}

// Uplinks do not wait for each other.
func TestUplinks(t *testing.T) {
	r := newRig(t, Config{})
	var pipes []*Pipe
	for range 3 {
		pipes = append(pipes, r.AddUplink().AddPipe(nil, 60))
		r.fill(pipes[len(pipes)-1], 300, packet.Bulk, 1, 1000)
	}
	pipes[0].u.Hold(packet.Bulk)
	order := ""
	for r.step(64, func(p *Pipe, _ *packet.Buf, _ bool) {
		if p == pipes[0] {
			t.Fatal("a held uplink sends")
		}
		if p == pipes[1] {
			order += "1"
		} else {
			order += "2"
		}
	}) > 0 {
		if len(order) == 4*64 && (order[0] == order[64] || order[64] == order[128]) {
			t.Errorf("order %s", order)
		}
	}
	if len(order) != 600 {
		t.Errorf("%d packets left, want 600", len(order))
	}
	r.check()
	r.put(pipes[0], pkt(packet.Telemetry, 1, 100), pkt(packet.Critical, 1, 100))
	if n := r.step(64, nil); n != 1 {
		t.Errorf("%d left, want Critical", n)
	}
	if n := r.step(64, nil); n != 1 {
		t.Errorf("%d left, want Telemetry", n)
	}
	pipes[0].u.Hold(packet.Telemetry)
	r.put(pipes[0], pkt(packet.Telemetry, 1, 100))
	if n := r.step(64, nil); n != 0 || r.NextAt() != math.MaxInt64 {
		t.Errorf("%d left of what is held", n)
	}
	pipes[0].u.Unhold(packet.Telemetry)
	pipes[0].u.Unhold(packet.Bulk)
	n := 0
	for r.step(64, func(*Pipe, *packet.Buf, bool) { n++ }) > 0 {
		r.check()
	}
	if n != 301 {
		t.Errorf("%d left, want 301", n)
	}
	r.check()
}

// A flow that floods hurts itself: others lose nothing and pass it.
func TestFlood(t *testing.T) {
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(congestion.NewFixed(1e6), 60)
	lost := map[uint32]int{}
	r.onDr = func(b *packet.Buf, _ Drop) { lost[b.FlowHash]++ }
	var most int64
	sent := 0
	for i := range 4000 {
		r.fill(p, 10, packet.Bulk, 1, 1000) // 10 times the rate
		if i%10 == 0 {
			r.put(p, pkt(packet.Bulk, 2, 200))
			sent++
		}
		r.run(r.clock+ms, 64, func(_ *Pipe, b *packet.Buf, _ bool) {
			if b.FlowHash == 2 {
				sent--
				most = max(most, r.clock-b.Queued)
			}
		})
		if w := p.wire(int(packet.Bulk)); w > minBytes {
			t.Fatalf("%d bytes wait, want %d at most", w, minBytes)
		}
	}
	if lost[2] > 0 || sent > 1 || most > 5*ms {
		t.Errorf("the small flow lost %d, misses %d, waited for %d us", lost[2], sent, most/1000)
	}
	if lost[1] < 30000 {
		t.Errorf("the flood lost %d", lost[1])
	}
	r.check()
}

// Where an uplink is full the peer with the most gives.
func TestFatPipe(t *testing.T) {
	for _, l := range []packet.Lane{packet.Critical, packet.Telemetry, packet.Bulk} {
		r := newRig(t, Config{Critical: 100, Telemetry: 100, Bulk: 100})
		u := r.AddUplink()
		p, q := u.AddPipe(nil, 60), u.AddPipe(nil, 60)
		r.fill(p, 300, l, 1, 100)
		r.fill(q, 40, l, 2, 100)
		if p.n[l] != 60 || q.n[l] != 40 || r.drops[Overflow] != 240 {
			t.Errorf("%v: %d and %d wait, %d dropped", l, p.n[l], q.n[l], r.drops[Overflow])
		}
		r.check()
	}
}

// What is too old to be of use leaves the way free.
func TestAge(t *testing.T) {
	for _, tt := range []struct {
		name  string
		class int
		after int64
		why   Drop
		kept  int
	}{
		{"critical", 0, 249 * ms, Deadline, 3},
		{"critical", 0, 251 * ms, Deadline, 0},
		{"telemetry", 1, 199 * ms, Age, 3},
		{"telemetry", 1, 201 * ms, Age, 0},
		{"bulk", 2, 1e9, Age, 3},
		{"demoted", demoted, 199 * ms, Age, 3},
		{"demoted", demoted, 201 * ms, Age, 0},
	} {
		r := newRig(t, Config{})
		p := r.AddUplink().AddPipe(nil, 60)
		for range 3 {
			b := pkt(laneOf(tt.class), 1, 100)
			b.Demoted = tt.class == demoted
			r.put(p, b)
		}
		r.clock += tt.after
		n := r.step(64, nil)
		if n != tt.kept || r.drops[tt.why] != 3-tt.kept {
			t.Errorf("%s after %d ms: %d left, %v dropped", tt.name, tt.after/ms, n, r.drops)
		}
		r.check()
	}
	r := newRig(t, Config{}) // control has no deadline
	r.put(nil, pkt(packet.Critical, 1, 100))
	r.clock += 1e9
	if n := r.step(64, nil); n != 1 {
		t.Error("control was dropped")
	}
}

func TestDemotedCap(t *testing.T) {
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(nil, 60)
	for i := range maxDemoted + 10 {
		b := pkt(packet.Bulk, uint32(i), 100)
		b.Demoted = true
		r.put(p, b)
	}
	first := true
	r.step(1, func(_ *Pipe, b *packet.Buf, _ bool) { first = b.FlowHash == 10 })
	if !first || r.drops[Overflow] != 10 || r.Stats()[packet.Bulk].Demoted != maxDemoted+10 {
		t.Errorf("dropped %v, stats %+v, oldest kept: %v", r.drops, r.Stats()[packet.Bulk], first)
	}
	r.check()
}
