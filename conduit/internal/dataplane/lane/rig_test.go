// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ms = int64(time.Millisecond)

// fakeStrategy has a rate and gives one train.
type fakeStrategy struct {
	rate    float64 // 0: no limit
	train   int
	rtt     time.Duration
	ticks   []time.Duration
	waiting int
	sent    []congestion.Sent
	trains  []congestion.Train
	reports int
	last    time.Duration
	back    bool // time went back
}

func (f *fakeStrategy) at(now time.Duration) {
	f.back = f.back || now < f.last
	f.last = now
}

func (f *fakeStrategy) Sent(now time.Duration, s congestion.Sent) {
	f.at(now)
	f.sent = append(f.sent, s)
}

func (f *fakeStrategy) Report(now time.Duration, _ *congestion.Report) {
	f.at(now)
	f.reports++
}

func (f *fakeStrategy) Tick(now time.Duration, waiting int) int {
	f.at(now)
	f.ticks = append(f.ticks, now)
	f.waiting = waiting
	n := f.train
	f.train = 0
	return n
}

func (f *fakeStrategy) TrainSent(now time.Duration, t congestion.Train) {
	f.at(now)
	f.trains = append(f.trains, t)
}

func (f *fakeStrategy) Rate(now time.Duration) float64 {
	f.at(now)
	if f.rate == 0 {
		return math.Inf(1)
	}
	return f.rate
}

func (f *fakeStrategy) State(now time.Duration) congestion.State {
	f.at(now)
	return congestion.State{Name: "fake", RTT: f.rtt}
}

// rig drives a Scheduler in virtual time.
type rig struct {
	*Scheduler
	t     testing.TB
	clock int64
	drops [NumDrops]int
	left  map[uint32]int // by flow: entered less left
	onDr  func(*packet.Buf, Drop)
}

func (r *rig) Left(flow uint32, _ packet.Lane) { r.left[flow]-- }

func newRig(t testing.TB, cfg Config) *rig {
	r := &rig{t: t, left: map[uint32]int{}}
	cfg.Flows = r
	cfg.Now = func() int64 { return r.clock }
	cfg.OnDrop = func(b *packet.Buf, d Drop) {
		r.drops[d]++
		if r.onDr != nil {
			r.onDr(b, d)
		}
	}
	r.Scheduler = New(cfg)
	return r
}

// pkt is a packet of size bytes.
func pkt(l packet.Lane, flow uint32, size int) *packet.Buf {
	b := packet.Get()
	b.Lane, b.FlowHash, b.N = l, flow, size
	return b
}

// datagram is one in n fragments.
func datagram(l packet.Lane, flow uint32, key uint64, n int) (bufs []*packet.Buf) {
	for i := range n {
		b := pkt(l, flow, 1300)
		b.Datagram, b.FirstFragment, b.LastFragment = key, i == 0, i == n-1
		bufs = append(bufs, b)
	}
	return bufs
}

func (r *rig) put(p *Pipe, bufs ...*packet.Buf) {
	pipes := make([]*Pipe, len(bufs))
	for i, b := range bufs {
		pipes[i] = p
		r.left[b.FlowHash]++
	}
	r.Enqueue(bufs, pipes)
}

// fill puts n packets of one kind.
func (r *rig) fill(p *Pipe, n int, l packet.Lane, flow uint32, size int) {
	for range n {
		r.put(p, pkt(l, flow, size))
	}
}

// step dequeues at most n packets and debits them. f sees each.
func (r *rig) step(n int, f func(p *Pipe, b *packet.Buf, train bool)) int {
	dst := make([]*packet.Buf, n)
	n, p, train := r.Dequeue(dst)
	bytes := 0
	for _, b := range dst[:n] {
		bytes += b.N
		if b.Lane != dst[0].Lane {
			r.t.Fatalf("%v and %v in one batch", b.Lane, dst[0].Lane)
		}
		if p != nil {
			bytes += p.perPacket
		}
	}
	if n > 0 && p != nil {
		p.Sent(congestion.Sent{Lane: uint8(dst[0].Lane), Session: 1, Packets: n, Bytes: bytes})
	}
	for _, b := range dst[:n] {
		if f != nil {
			f(p, b, train)
		}
		b.Release()
	}
	return n
}

// run drives until end, with batches of at most n.
func (r *rig) run(end int64, n int, f func(p *Pipe, b *packet.Buf, train bool)) {
	for {
		at := r.NextAt()
		if at > end {
			r.clock = end
			return
		}
		r.clock = max(r.clock, at)
		for more := true; more; {
			more = r.step(n, f) > 0
		}
		if r.NextAt() <= r.clock {
			r.t.Fatalf("at %d: something is due, and nothing comes", r.clock)
		}
	}
}

// check verifies that all counts and lists agree, and that no flow is counted wrong.
func (r *rig) check() {
	r.t.Helper()
	s := r.Scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	var depth, bytes [packet.NumLanes]int
	add := func(l packet.Lane, q *list) (n, size int) {
		var prev *packet.Buf
		for b := q.head; b != nil; prev, b = b, b.Next {
			n++
			size += b.N
			if b.Lane != l {
				r.t.Fatalf("%v in a queue of %v", b.Lane, l)
			}
		}
		if prev != q.tail || n != q.n {
			r.t.Fatalf("a list of %d says %d, or its tail is wrong", n, q.n)
		}
		depth[l] += n
		bytes[l] += size
		return n, size
	}
	add(packet.Critical, &s.control)
	crit := 0
	seen := map[*Pipe]bool{}
	visit := func(p *Pipe) {
		if seen[p] {
			return
		}
		seen[p] = true
		for c := range numClasses {
			n, size := 0, 0
			if c == int(packet.Bulk) {
				if p.fq != nil {
					for i := range p.fq.flows {
						m, sz := add(packet.Bulk, &p.fq.flows[i].list)
						n, size = n+m, size+sz
						if p.fq.bytes[i] != sz+64*m {
							r.t.Fatalf("flow %d has %d bytes, says %d", i, sz+64*m, p.fq.bytes[i])
						}
						if m > 0 && p.fq.flows[i].in == inNone {
							r.t.Fatalf("flow %d has packets and no turn", i)
						}
					}
				}
			} else {
				n, size = add(laneOf(c), &p.queues[c])
			}
			if n != p.n[c] || size != p.bytes[c] {
				r.t.Fatalf("class %d of a pipe has %d packets, %d bytes, says %d, %d", c, n, size, p.n[c], p.bytes[c])
			}
			if c == int(packet.Critical) {
				crit += n
			} else if in := p.links[c].in; in != (n > 0 && !p.blocked) {
				r.t.Fatalf("class %d has %d, blocked %v, and in the ring %v", c, n, p.blocked, in)
			}
		}
	}
	for p := s.critical.head; p != nil; p = p.links[packet.Critical].next {
		if p.n[packet.Critical] == 0 {
			r.t.Fatal("a pipe without Critical is in the ring")
		}
		visit(p)
	}
	for _, u := range s.uplinks {
		var n [numClasses]int
		for p := u.waiting.head; p != nil; p = p.links[inWaiting].next {
			visit(p)
			if !p.waits() {
				r.t.Fatal("a pipe waits for nothing")
			}
			for c := range n {
				n[c] += p.n[c]
			}
			if p.blocked && u.scanAt > p.readyAt {
				r.t.Fatalf("a pipe is ready at %d, and looked at at %d", p.readyAt, u.scanAt)
			}
			if most := max(onePacket, p.bucket.rate*burst); p.bucket.tokens > most {
				r.t.Fatalf("%f tokens of %f", p.bucket.tokens, most)
			}
		}
		for c := int(packet.Telemetry); c < numClasses; c++ {
			if n[c] != u.n[c] {
				r.t.Fatalf("class %d of an uplink has %d, says %d", c, n[c], u.n[c])
			}
		}
	}
	if crit != s.nCrit {
		r.t.Fatalf("%d Critical, says %d", crit, s.nCrit)
	}
	in := 0
	for l := range depth {
		st := &s.lanes[l]
		if depth[l] != st.depth || bytes[l] != st.bytes {
			r.t.Fatalf("lane %d has %d packets, %d bytes, says %d, %d", l, depth[l], bytes[l], st.depth, st.bytes)
		}
		out := st.dequeued
		for _, d := range st.drops {
			out += d
		}
		if st.enqueued != out+uint64(st.depth) {
			r.t.Fatalf("lane %d took %d and lost %d of them", l, st.enqueued, st.enqueued-out-uint64(st.depth))
		}
		in += depth[l]
	}
	for _, n := range r.left {
		in -= n
	}
	if in != 0 {
		r.t.Fatalf("flows are off by %d", in)
	}
	if s.anyDead {
		r.t.Fatal("dropped packets were not released")
	}
}
