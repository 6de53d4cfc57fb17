// SPDX-License-Identifier: Apache-2.0

package delaybox

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// port is a port made of channels, so that fake time can pass.
type port struct {
	in, out chan []byte
	once    sync.Once
	done    chan struct{}
}

func newPort() *port {
	return &port{in: make(chan []byte), out: make(chan []byte, 4096), done: make(chan struct{})}
}

func (p *port) Read(b []byte) (int, error) {
	select {
	case f := <-p.in:
		return copy(b, f), nil
	case <-p.done:
		return 0, io.EOF
	}
}

func (p *port) Write(b []byte) (int, error) {
	p.out <- append([]byte(nil), b...)
	return len(b), nil
}

func (p *port) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// start runs a box between two channel ports until the test ends.
func start(t *testing.T, ab, ba Params) (box *Box, a, b *port) {
	t.Helper()
	a, b = newPort(), newPort()
	box, err := New(a, b, ab, ba)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range box.lanes {
		l.coarse = true
	}
	box.Start()
	return box, a, b
}

func TestDelayPerDirection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box, a, b := start(t, Params{Delay: 40 * time.Millisecond}, Params{Delay: 5 * time.Millisecond})
		defer box.Close()
		began := time.Now()
		a.in <- []byte("there")
		if got := string(<-b.out); got != "there" {
			t.Errorf("frame = %q, want there", got)
		}
		if d := time.Since(began); d != 40*time.Millisecond {
			t.Errorf("a to b took %v, want 40ms", d)
		}
		began = time.Now()
		b.in <- []byte("back")
		<-a.out
		if d := time.Since(began); d != 5*time.Millisecond {
			t.Errorf("b to a took %v, want 5ms", d)
		}
	})
}

func TestRateAndQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 1 Mbit/s and room for four frames of 1250 bytes: 10 ms each.
		box, a, b := start(t, Params{Rate: 1e6, Queue: 5000}, Params{})
		defer box.Close()
		began := time.Now()
		for range 6 {
			a.in <- make([]byte, 1250)
		}
		for i := range 4 {
			<-b.out
			if d, want := time.Since(began), time.Duration(i+1)*10*time.Millisecond; d != want {
				t.Errorf("frame %d left after %v, want %v", i, d, want)
			}
		}
		if s := box.Stats(AToB); s.In != 6 || s.Out != 4 || s.Full != 2 {
			t.Errorf("stats = %+v, want 6 in, 4 out, 2 full", s)
		}
	})
}

func TestLossJitterAndSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box, a, b := start(t, Params{Loss: 0.3, Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond}, Params{})
		defer box.Close()
		for range 1000 {
			a.in <- []byte{0}
		}
		time.Sleep(time.Second)
		s := box.Stats(AToB)
		if s.Lost < 200 || s.Lost > 400 || s.Lost+s.Out != 1000 {
			t.Errorf("stats = %+v, want about 300 lost and the rest out", s)
		}
		if len(b.out) != int(s.Out) {
			t.Errorf("port got %d frames, stats say %d", len(b.out), s.Out)
		}
		if err := box.Set(AToB, Params{Loss: 1}); err != nil {
			t.Fatal(err)
		}
		a.in <- []byte{0}
		synctest.Wait()
		if got := box.Stats(AToB); got.Lost != s.Lost+1 {
			t.Errorf("after loss 1: lost %d, want %d", got.Lost, s.Lost+1)
		}
	})
}

func TestValidate(t *testing.T) {
	for name, p := range map[string]Params{
		"delay": {Delay: -1}, "jitter": {Jitter: -1}, "loss": {Loss: 1.1}, "rate": {Rate: -1}, "queue": {Queue: -1},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(newPort(), newPort(), Params{}, p); err == nil {
				t.Errorf("New accepted %+v", p)
			}
		})
	}
}
