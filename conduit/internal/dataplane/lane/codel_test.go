// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// ipv4 makes an IPv4 packet with a right checksum.
func ipv4(b *packet.Buf, tos byte) {
	h := b.Bytes()[:20]
	copy(h, []byte{0x45, tos, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	binary.BigEndian.PutUint16(h[2:], uint16(b.N))
	binary.BigEndian.PutUint16(h[10:], ^onesSum(h))
}

func onesSum(h []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// standing keeps a queue of the given depth for some time, and returns when packets
// were dropped or marked.
func standing(t *testing.T, depth int, tos byte, rtt time.Duration, end int64) (drops, marks []int64) {
	st := &fakeStrategy{rate: 1e6, rtt: rtt}
	r := newRig(t, Config{})
	r.onDr = func(_ *packet.Buf, why Drop) {
		if why == CoDel {
			drops = append(drops, r.clock)
		} else {
			t.Errorf("dropped for %v", why)
		}
	}
	p := r.AddUplink().AddPipe(st, 60)
	p.Report(&congestion.Report{})
	for r.clock < end {
		for p.n[packet.Bulk] < depth {
			b := pkt(packet.Bulk, 1, 940)
			ipv4(b, tos)
			r.put(p, b)
		}
		r.clock = r.NextAt()
		r.step(1, func(_ *Pipe, b *packet.Buf, _ bool) {
			if onesSum(b.Bytes()[:20]) != 0xffff {
				t.Fatal("a checksum is wrong")
			}
			switch ecn := b.Bytes()[1] & 3; {
			case ecn == tos&3:
			case ecn == ce && tos&3 != 0:
				marks = append(marks, r.clock)
			default:
				t.Fatalf("ECN field %d became %d", tos&3, ecn)
			}
		})
	}
	r.check()
	if n := r.Stats()[packet.Bulk].Marked; int(n) != len(marks) {
		t.Errorf("%d marked, says %d", len(marks), n)
	}
	return drops, marks
}

// A queue that stands at 20 ms, with the target at 15, is told at CoDel's times.
func TestCoDelLaw(t *testing.T) {
	for _, tt := range []struct {
		name     string
		tos      byte
		rtt      time.Duration
		interval float64 // ms
	}{
		{"drop", 0, 0, 150},
		{"mark", 0xb8 | 2, 0, 150},
		{"mark, the other code point", 1, 100 * time.Millisecond, 150},
		{"long way", 0, 200 * time.Millisecond, 300},
	} {
		t.Run(tt.name, func(t *testing.T) {
			drops, marks := standing(t, 21, tt.tos, tt.rtt, 3000*ms)
			at := drops
			if tt.tos != 0 {
				at = marks
				if len(drops) > 0 {
					t.Errorf("%d that may be marked were dropped", len(drops))
				}
			}
			if len(at) < 5 {
				t.Fatalf("%d in 3 s", len(at))
			}
			next := float64(at[0]) / 1e6 // the time it is first above the target, 15 to 20 ms, and an interval
			if next < tt.interval+15 || next > tt.interval+25 {
				t.Errorf("the first one at %.1f ms", next)
			}
			count, sum := 0, 0.0
			for sum < 3000-next {
				count++
				sum += tt.interval / math.Sqrt(float64(count))
			}
			for i, a := range at {
				if d := float64(a)/1e6 - next; d < -0.1 || d > 4 {
					t.Errorf("number %d at %.1f ms, want %.1f", i, float64(a)/1e6, next)
				}
				next += tt.interval / math.Sqrt(float64(i+1))
			}
			if len(at) < count-2 || len(at) > count+1 {
				t.Errorf("%d in 3 s, want %d", len(at), count)
			}
		})
	}
}

func TestCoDelSpares(t *testing.T) {
	if drops, marks := standing(t, 14, 2, 0, 3000*ms); len(drops)+len(marks) > 0 {
		t.Errorf("a queue of 14 ms: %d drops, %d marks", len(drops), len(marks))
	}
}

// A queue that only waits for a pause to end is not congestion: neither the short
// pauses in which a bottleneck drains, nor a long one.
func TestCoDelPauses(t *testing.T) {
	for _, pause := range []int64{20 * ms, 400 * ms} {
		st := &fakeStrategy{rate: 1e6}
		r := newRig(t, Config{})
		u := r.AddUplink()
		p := u.AddPipe(st, 60)
		for range 20 {
			for range 100 { // each 1 ms a packet, which is 5 % less than the rate
				r.fill(p, 1, packet.Bulk, 1, 890)
				r.run(r.clock+ms, 1, nil)
			}
			u.Hold(packet.Bulk)
			for range pause / ms {
				r.run(r.clock+ms, 1, nil)
			}
			r.fill(p, int(pause/ms/4), packet.Bulk, 1, 890)
			u.Unhold(packet.Bulk)
			r.run(r.clock+pause, 1, nil)
		}
		if r.drops[CoDel] > 0 {
			t.Errorf("pauses of %d ms: %d drops", pause/ms, r.drops[CoDel])
		}
		r.check()
	}
}

// One flow's queue is no reason to drop from another.
func TestCoDelFlows(t *testing.T) {
	r := newRig(t, Config{})
	r.onDr = func(b *packet.Buf, _ Drop) {
		if b.FlowHash != 1 {
			t.Errorf("flow %d lost a packet", b.FlowHash)
		}
	}
	p := r.AddUplink().AddPipe(congestion.NewFixed(1e6), 60)
	got := map[uint32]int{}
	for r.clock < 5000*ms {
		r.fill(p, max(0, 100-p.n[packet.Bulk]), packet.Bulk, 1, 1000)
		r.fill(p, 1, packet.Bulk, 2, 300)
		r.fill(p, 1, packet.Bulk, 3, 900)
		r.run(r.clock+5*ms, 64, func(_ *Pipe, b *packet.Buf, _ bool) { got[b.FlowHash] += b.N })
	}
	if r.drops[CoDel] < 20 {
		t.Errorf("%d drops", r.drops[CoDel])
	}
	if got[2] < 295e3 || got[3] < 890e3 {
		t.Errorf("left: %v", got)
	}
	r.check()
}

// Flows share a pipe.
func TestFlowShares(t *testing.T) {
	r := newRig(t, Config{})
	p := r.AddUplink().AddPipe(congestion.NewFixed(1e6), 0)
	got := map[uint32]int{}
	for r.clock < 5000*ms {
		for f := range uint32(4) {
			r.fill(p, 5, packet.Bulk, f, 200+300*int(f))
		}
		r.run(r.clock+2*ms, 64, func(_ *Pipe, b *packet.Buf, _ bool) { got[b.FlowHash] += b.N })
	}
	for f := range uint32(4) {
		if share := float64(got[f]) / 5e6; math.Abs(share-.25) > .01 {
			t.Errorf("flow %d has %.3f, want 0.25", f, share)
		}
	}
	r.check()
}

// Flow queues go to whoever needs them.
func TestFlowQueuesReuse(t *testing.T) {
	r := newRig(t, Config{})
	u := r.AddUplink()
	one := func(p *Pipe) {
		r.fill(p, 1, packet.Bulk, 1, 100)
		r.step(1, nil)
		r.check()
	}
	p, q, o := u.AddPipe(nil, 0), u.AddPipe(nil, 0), u.AddPipe(nil, 0)
	one(p)
	fq := p.fq
	one(q)
	if q.fq == fq {
		t.Error("queues that were just used went to another pipe")
	}
	r.clock += 2 * int64(time.Second)
	one(q)
	one(o)
	if o.fq != fq || p.fq != nil {
		t.Error("queues that were idle were not used anew")
	}
	one(p)
	r.clock += idleAfter + 1
	one(o)
	if p.fq != nil && q.fq != nil {
		t.Error("idle queues are kept for ever")
	}
	for range 5 {
		one(p)
		one(q)
	}
}

func TestMarkRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    func(b *packet.Buf)
	}{
		{"unaware", func(b *packet.Buf) { ipv4(b, 0xfc) }},
		{"unaware, IPv6", func(b *packet.Buf) { b.Bytes()[0], b.Bytes()[1] = 0x6f, 0xcf }},
		{"not IP", func(b *packet.Buf) { ipv4(b, 2); b.Type = 12 }},
		{"short", func(b *packet.Buf) { ipv4(b, 2); b.N = 19 }},
		{"other version", func(b *packet.Buf) { ipv4(b, 2); b.Bytes()[0] = 0x55 }},
	} {
		b := pkt(packet.Bulk, 1, 100)
		tt.f(b)
		was := string(b.Bytes())
		if mark(b) || was != string(b.Bytes()) {
			t.Errorf("%s: marked", tt.name)
		}
		b.Release()
	}
}

// mark changes the ECN field and keeps the checksum as right as it was.
func FuzzMark(f *testing.F) {
	b := pkt(packet.Bulk, 1, 60)
	for _, tos := range []byte{0, 1, 2, 3, 0xff} {
		ipv4(b, tos)
		f.Add(append([]byte(nil), b.Bytes()...))
	}
	f.Add(append([]byte{0x60, 0x20}, make([]byte, 38)...))
	f.Add([]byte{0x6f, 0xdf, 0, 0})
	b.Release()
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > packet.MaxInner {
			return
		}
		b := packet.Get()
		defer b.Release()
		b.N = copy(b.Raw()[packet.Headroom:], in)
		ok := mark(b)
		out := b.Bytes()
		if !ok {
			if string(in) != string(out) {
				t.Fatal("a packet that is not marked changed")
			}
			return
		}
		want := append([]byte(nil), in...)
		if in[0]>>4 == 6 {
			want[1] |= 0x30
		} else {
			want[1] |= 3
			copy(want[10:12], out[10:12])
			// x and y are equal as one's complement numbers, where 0xffff is 0
			if x, y := onesSum(in[:20])%0xffff, onesSum(out[:20])%0xffff; x != y {
				t.Fatalf("the sum was %#x, is %#x", x, y)
			}
		}
		if string(want) != string(out) {
			t.Fatalf("marked %x, is %x", in, out)
		}
	})
}
