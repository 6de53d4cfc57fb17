// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math/rand/v2"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func buf(l packet.Lane, id int) *packet.Buf {
	b := packet.Get()
	b.Lane, b.N, b.FlowHash = l, 1+id%1000, uint32(id)
	return b
}

// flowCount checks that each packet that entered a lane also left it.
type flowCount struct {
	mu sync.Mutex
	n  map[uint32]int
}

func (f *flowCount) Left(flow uint32, _ packet.Lane) { f.add(flow, -1) }
func (f *flowCount) add(flow uint32, d int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n[flow] += d
}

// The queue agrees with three plain slices under random use.
func TestModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	caps := [packet.NumLanes]int{5, 7, 9}
	flows := &flowCount{n: map[uint32]int{}}
	var dropped []uint32
	u := New(Config{Critical: caps[0], Telemetry: caps[1], Bulk: caps[2], Flows: flows, OnDrop: func(b *packet.Buf) { dropped = append(dropped, b.FlowHash) }})
	var model [packet.NumLanes][]uint32
	id := 0
	for range 5000 {
		if rng.IntN(2) == 0 {
			var batch []*packet.Buf
			var want []uint32
			for range rng.IntN(12) {
				l := packet.Lane(rng.IntN(packet.NumLanes))
				id++
				batch = append(batch, buf(l, id))
				flows.add(uint32(id), 1)
				switch {
				case len(model[l]) < caps[l]:
					model[l] = append(model[l], uint32(id))
				case l == packet.Bulk:
					want = append(want, uint32(id))
				default:
					want = append(want, model[l][0])
					model[l] = append(model[l][1:], uint32(id))
				}
			}
			dropped = nil
			u.Enqueue(batch)
			if len(dropped) != len(want) {
				t.Fatalf("dropped %v, want %v", dropped, want)
			}
			for i := range want {
				if dropped[i] != want[i] {
					t.Fatalf("dropped %v, want %v", dropped, want)
				}
			}
			continue
		}
		dst := make([]*packet.Buf, 1+rng.IntN(6))
		n := u.Dequeue(dst)
		wantN := 0
		for l := range model {
			if len(model[l]) == 0 {
				continue
			}
			wantN = min(len(model[l]), len(dst))
			for i := range min(n, wantN) {
				if dst[i].FlowHash != model[l][i] || dst[i].Lane != packet.Lane(l) {
					t.Fatalf("dequeued %d of lane %v, want %d of %v", dst[i].FlowHash, dst[i].Lane, model[l][i], packet.Lane(l))
				}
				dst[i].Release()
			}
			model[l] = model[l][wantN:]
			break
		}
		if n != wantN {
			t.Fatalf("dequeued %d, want %d", n, wantN)
		}
		for l, s := range u.Stats() {
			if s.Depth != len(model[l]) || s.Enqueued-s.Dequeued-uint64(s.Depth) > s.Overflow {
				t.Fatalf("lane %d: %+v with %d in the model", l, s, len(model[l]))
			}
		}
	}
	u.Close()
	for flow, n := range flows.n {
		if n != 0 {
			t.Errorf("flow %d: %d packets never left", flow, n)
		}
	}
}

func TestWait(t *testing.T) {
	u := New(Config{})
	done := make(chan struct{})
	got := make(chan bool)
	go func() { got <- u.Wait(done) }()
	u.Enqueue([]*packet.Buf{buf(packet.Bulk, 1)})
	if !<-got {
		t.Error("Wait = false although a packet waits")
	}
	if !u.Wait(done) {
		t.Error("second Wait = false although the packet still waits")
	}
	dst := make([]*packet.Buf, 1)
	u.Dequeue(dst)
	dst[0].Release()
	go func() { got <- u.Wait(done) }()
	close(done)
	if <-got {
		t.Error("Wait = true after done")
	}
	u.Close()
	u.Close()
	if u.Wait(make(chan struct{})) {
		t.Error("Wait = true after Close")
	}
	u.Enqueue([]*packet.Buf{buf(packet.Bulk, 1)})
	if n := u.Dequeue(dst); n != 0 {
		t.Error("a packet entered after Close")
	}
}

func TestConcurrent(t *testing.T) {
	u := New(Config{Flows: &flowCount{n: map[uint32]int{}}})
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for i := range 2000 {
				u.Enqueue([]*packet.Buf{buf(packet.Lane(i%3), i)})
			}
		})
	}
	var got int
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		dst := make([]*packet.Buf, 8)
		for u.Wait(done) {
			n := u.Dequeue(dst)
			for i := range n {
				dst[i].Release()
			}
			got += n
		}
	}()
	wg.Wait()
	u.Close()
	<-finished
	var over uint64
	var in uint64
	for _, s := range u.Stats() {
		over += s.Overflow
		in += s.Enqueued
	}
	if got == 0 || uint64(got) > in || in > 6000 || over > 6000 {
		t.Errorf("dequeued %d of %d, overflow %d", got, in, over)
	}
}

func TestAllocs(t *testing.T) {
	u := New(Config{})
	defer u.Close()
	bufs := make([]*packet.Buf, 8)
	for i := range bufs { // kept, since the race detector makes sync.Pool forget
		bufs[i] = buf(packet.Bulk, i)
	}
	if n := testing.AllocsPerRun(1000, func() {
		u.Enqueue(bufs)
		u.Dequeue(bufs)
	}); n != 0 {
		t.Errorf("8 packets allocate %v times, want 0", n)
	}
}

func BenchmarkEnqueueDequeue(b *testing.B) {
	u := New(Config{})
	in, out := make([]*packet.Buf, 64), make([]*packet.Buf, 64)
	b.ReportAllocs()
	for b.Loop() {
		for i := range in {
			in[i] = buf(packet.Bulk, i)
		}
		u.Enqueue(in)
		for i := range u.Dequeue(out) {
			out[i].Release()
		}
	}
}
