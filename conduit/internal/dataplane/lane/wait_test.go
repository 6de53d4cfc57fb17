// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func put(s *Scheduler, p *Pipe, bufs ...*packet.Buf) {
	pipes := make([]*Pipe, len(bufs))
	for i := range pipes {
		pipes[i] = p
	}
	s.Enqueue(bufs, pipes)
}

// Wait wakes for a packet, for tokens at their time, for Wake and Unhold, and does
// not turn in circles between.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		looks := 0
		s := New(Config{Now: func() int64 { looks++; return int64(time.Since(start)) }})
		defer s.Close()
		u := s.AddUplink()
		p := u.AddPipe(congestion.NewFixed(100e3), 0)
		done := make(chan struct{})
		dst := make([]*packet.Buf, 8)
		// wait returns how long a Wait takes, where f is called after 5 ms.
		wait := func(f func()) time.Duration {
			t.Helper()
			from := time.Now()
			timer := time.AfterFunc(5*time.Millisecond, f)
			defer timer.Stop()
			looks = 0
			if !s.Wait(done) {
				t.Error("Wait = false")
			}
			d := time.Since(from)
			if most := 10 + 2*int(d/time.Millisecond); looks > most {
				t.Errorf("%d looks at the clock in %v", looks, d)
			}
			return d
		}
		take := func(want int) {
			t.Helper()
			n, from, _ := s.Dequeue(dst)
			if n != want {
				t.Errorf("%d left, want %d", n, want)
			}
			for _, b := range dst[:n] {
				if from != nil {
					from.Sent(congestion.Sent{Packets: 1, Bytes: b.N})
				}
				b.Release()
			}
		}
		if d := wait(func() { put(s, p, pkt(packet.Bulk, 1, 1500)) }); d != 5*time.Millisecond {
			t.Errorf("a packet was noticed after %v, want 5ms", d)
		}
		take(1)
		p.Sent(congestion.Sent{Bytes: 1000})
		put(s, p, pkt(packet.Bulk, 1, 1000))
		if d := wait(func() {}); d < 10*time.Millisecond || d > 10300*time.Microsecond {
			t.Errorf("tokens were there after %v, want 10ms", d)
		}
		take(1)
		put(s, p, pkt(packet.Bulk, 1, 1000))
		if d := wait(func() { put(s, p, pkt(packet.Critical, 1, 100)) }); d != 5*time.Millisecond {
			t.Errorf("Critical was noticed after %v, want 5ms", d)
		}
		take(1)
		p.Sent(congestion.Sent{Bytes: 1000})
		if d := wait(func() { p.Close() }); d != 5*time.Millisecond {
			t.Errorf("Close was noticed after %v, want 5ms", d)
		}
		take(1)
		u.Hold(packet.Bulk)
		put(s, p, pkt(packet.Bulk, 1, 1000))
		if d := wait(func() { u.Unhold(packet.Bulk) }); d != 5*time.Millisecond {
			t.Errorf("Unhold was noticed after %v, want 5ms", d)
		}
		take(1)
		s.Wake(int64(time.Since(start) + 20*time.Millisecond))
		s.Wake(int64(time.Since(start) + 30*time.Millisecond))
		if d := wait(func() {}); d != 20*time.Millisecond {
			t.Errorf("woken after %v, want 20ms", d)
		}
		if d := wait(func() { s.Wake(0) }); d != 5*time.Millisecond {
			t.Errorf("woken after %v, want 5ms", d)
		}
		u.SetRate(100e3)
		q := u.AddPipe(nil, 0)
		q.Sent(congestion.Sent{Bytes: 2500})
		put(s, q, pkt(packet.Bulk, 1, 1000))
		if d := wait(func() {}); d < 10*time.Millisecond || d > 10300*time.Microsecond {
			t.Errorf("the uplink had tokens after %v, want 10ms", d)
		}
		take(1)
		put(s, q, pkt(packet.Bulk, 1, 1000))
		if d := wait(func() { u.SetRate(0) }); d != 5*time.Millisecond {
			t.Errorf("SetRate was noticed after %v, want 5ms", d)
		}
		take(1)
		st := &fakeStrategy{rate: 8e3}
		o := u.AddPipe(st, 0)
		o.Sent(congestion.Sent{Bytes: 5000})
		put(s, o, pkt(packet.Bulk, 1, 1000))
		if d := wait(func() {
			s.mu.Lock()
			st.rate = 1e9
			s.mu.Unlock()
			o.Report(&congestion.Report{})
		}); d < 5*time.Millisecond || d > 6*time.Millisecond {
			t.Errorf("Report was noticed after %v, want 5ms", d)
		}
		take(1)
		o.Close()
		last := &fakeStrategy{rate: 100e3}
		o = u.AddPipe(last, 0)
		o.Sent(congestion.Sent{Bytes: 2500})
		if d := wait(func() { put(s, o, pkt(packet.Bulk, 1, 1000)) }); d < 10*time.Millisecond || d > 10300*time.Microsecond {
			t.Errorf("a blocked pipe was ready after %v, want 10ms", d)
		}
		take(1)
		o.Sent(congestion.Sent{Bytes: 5000})
		last.train = 1000
		if d := wait(func() { put(s, o, pkt(packet.Bulk, 1, 1000)) }); d != 5*time.Millisecond {
			t.Errorf("a train was noticed after %v, want 5ms", d)
		}
		take(1)
		close(done)
		if s.Wait(done) {
			t.Error("Wait = true after done")
		}
	})
}

func TestCloseEndsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		got := make(chan bool, 1)
		go func() { got <- s.Wait(nil) }()
		synctest.Wait() // it waits
		s.Close()
		s.Close()
		if <-got || s.Wait(nil) {
			t.Error("Wait = true after Close")
		}
		if n, _, _ := s.Dequeue(make([]*packet.Buf, 1)); n != 0 || s.NextAt() < 1<<62 {
			t.Error("a closed scheduler gives packets")
		}
	})
}

// All of it at once, under the race detector.
func TestConcurrent(t *testing.T) {
	var flows sync.Map
	s := New(Config{Flows: nil, OnDrop: func(b *packet.Buf, _ Drop) { flows.Store(b.FlowHash, true) }})
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		u := s.AddUplink()
		p := u.AddPipe(congestion.NewFixed(50e6), 60)
		wg.Go(func() {
			for j := range 2000 {
				put(s, p, pkt(packet.Lane(j%3), uint32(j), 200))
				switch j % 50 {
				case 10:
					p.Report(&congestion.Report{})
				case 20:
					u.Hold(packet.Telemetry)
				case 21:
					u.Unhold(packet.Telemetry)
				case 30:
					p.Police(int64(j), 100)
					p.State()
				case 40:
					s.Stats()
					s.Wake(0)
				case 49:
					u.SetRate(float64(j % 100 * 1e6))
				}
			}
			if i == 0 {
				p.Close()
			}
			u.SetRate(0)
		})
	}
	got := 0
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		dst := make([]*packet.Buf, 16)
		for s.Wait(done) {
			n, p, _ := s.Dequeue(dst)
			for _, b := range dst[:n] {
				p.Sent(congestion.Sent{Packets: 1, Bytes: b.N + 60})
				b.Release()
			}
			got += n
		}
	}()
	wg.Wait()
	for waiting := true; waiting; { // the drainer takes what is left
		waiting = false
		for _, st := range s.Stats() {
			waiting = waiting || st.Depth > 0
		}
		runtime.Gosched()
	}
	s.Close()
	<-finished
	for l, st := range s.Stats() {
		got -= int(st.Dequeued)
		sum := st.Dequeued
		for _, d := range st.Drops {
			sum += d
		}
		if st.Enqueued != 2000*3/3 && st.Enqueued != 2001 && st.Enqueued != 1998 || sum != st.Enqueued {
			t.Errorf("lane %d: %+v", l, st)
		}
	}
	if got != 0 {
		t.Errorf("dequeued %d more than counted", got)
	}
}
