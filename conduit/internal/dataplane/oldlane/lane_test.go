// SPDX-License-Identifier: Apache-2.0

package oldlane

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

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

func TestCloseEndsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := New(Config{})
		done := make(chan struct{}) // ends the test where Close does not
		defer close(done)
		got := make(chan bool, 3)
		for range cap(got) {
			go func() { got <- u.Wait(done) }()
		}
		synctest.Wait() // all of them wait
		u.Close()
		synctest.Wait()
		if len(got) != cap(got) {
			t.Errorf("Close ended %d of %d Waits", len(got), cap(got))
		}
		for range len(got) {
			if <-got {
				t.Error("Wait = true after Close")
			}
		}
	})
}

// released tells whether b is back in the pool, and puts it there.
func released(b *packet.Buf) (yes bool) {
	defer func() { yes = recover() != nil }()
	b.Release()
	return false
}

// Whatever the Uplink took and did not give back was released, and counted.
func TestDrops(t *testing.T) {
	flows := &flowCount{n: map[uint32]int{}}
	u := New(Config{Critical: 2, Telemetry: 2, Bulk: 2, Flows: flows})
	all := make(map[*packet.Buf]packet.Lane)
	fill := func() {
		for l := range packet.Lane(packet.NumLanes) {
			var batch []*packet.Buf
			for i := range 5 {
				b := buf(l, 100+i)
				b.FlowHash = uint32(l)
				all[b] = l
				flows.add(uint32(l), 1)
				batch = append(batch, b)
			}
			u.Enqueue(batch)
		}
	}
	fill()
	for l, s := range u.Stats() {
		want := Stats{Enqueued: 5, Overflow: 3, Depth: 2, Bytes: 104 + 105}
		if packet.Lane(l) == packet.Bulk {
			want.Enqueued, want.Bytes = 2, 101+102
		}
		if s != want {
			t.Errorf("%v: %+v, want %+v", packet.Lane(l), s, want)
		}
	}
	dst := make([]*packet.Buf, 1)
	u.Dequeue(dst)
	delete(all, dst[0])
	dst[0].Release()
	if s := u.Stats()[packet.Critical]; s.Dequeued != 1 || s.Bytes != 105 {
		t.Errorf("after one left: %+v, want 1 dequeued and 105 bytes", s)
	}
	u.Close()
	for l, s := range u.Stats() {
		if s.Depth != 0 || s.Bytes != 0 {
			t.Errorf("%v after Close: %+v, want nothing", packet.Lane(l), s)
		}
	}
	for b, l := range all {
		if !released(b) {
			t.Errorf("a buffer of %v was not released", l)
		}
	}
	clear(all)
	fill()
	for b, l := range all {
		if !released(b) {
			t.Errorf("a buffer of %v that came after Close was not released", l)
		}
	}
	for flow, n := range flows.n {
		if n != 0 {
			t.Errorf("lane %d: %d packets never left", flow, n)
		}
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
	for waiting := true; waiting; { // the drainer takes what is left
		waiting = false
		for _, s := range u.Stats() {
			waiting = waiting || s.Depth > 0
		}
		runtime.Gosched()
	}
	u.Close()
	<-finished
	st := u.Stats()
	in := st[packet.Critical].Enqueued + st[packet.Telemetry].Enqueued + st[packet.Bulk].Enqueued
	evicted := st[packet.Critical].Overflow + st[packet.Telemetry].Overflow
	if uint64(got) != in-evicted || in+st[packet.Bulk].Overflow != 6000 {
		t.Errorf("dequeued %d of %d less %d evicted, %d refused", got, in, evicted, st[packet.Bulk].Overflow)
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

// A full lane is when allocating would hurt most.
func TestOverflowAllocs(t *testing.T) {
	for _, l := range []packet.Lane{packet.Critical, packet.Bulk} {
		u := New(Config{Critical: 4, Bulk: 4})
		const batch, runs = 128, 50
		spare := make([]*packet.Buf, batch*(runs+1)) // AllocsPerRun warms up once
		for i := range spare {
			spare[i] = buf(l, i)
		}
		if n := testing.AllocsPerRun(runs, func() {
			u.Enqueue(spare[:batch])
			spare = spare[batch:]
		}); n != 0 {
			t.Errorf("%v: %d packets into a full lane allocate %v times, want 0", l, batch, n)
		}
		u.Close()
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
