// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"net"
	"sync"
	"time"
)

// FlowConfig says how a Flow sends.
type FlowConfig struct {
	Size     int           // bytes of a write; zero means 1200
	Interval time.Duration // between two writes; zero means 5 ms
}

// Flow is a TCP connection on which both ends write all the time. It remembers
// when each end read something, so that pauses can be told afterwards.
type Flow struct {
	conns [2]net.Conn
	done  chan struct{}
	wg    sync.WaitGroup
	once  sync.Once

	mu    sync.Mutex
	reads [2][]time.Time // [0]: what the first end read
	errs  [2]error
}

// StartFlow begins to write at both ends of a connection, which it owns.
func StartFlow(a, b net.Conn, cfg FlowConfig) *Flow {
	if cfg.Size == 0 {
		cfg.Size = 1200
	}
	if cfg.Interval == 0 {
		cfg.Interval = 5 * time.Millisecond
	}
	f := &Flow{conns: [2]net.Conn{a, b}, done: make(chan struct{})}
	for end := range f.conns {
		f.wg.Go(func() { f.write(end, cfg) })
		f.wg.Go(func() { f.read(end) })
	}
	return f
}

func (f *Flow) write(end int, cfg FlowConfig) {
	tick := time.NewTicker(cfg.Interval)
	defer tick.Stop()
	b := make([]byte, cfg.Size)
	for {
		select {
		case <-tick.C:
		case <-f.done:
			return
		}
		if _, err := f.conns[end].Write(b); err != nil {
			f.failed(end, err)
			return
		}
	}
}

func (f *Flow) read(end int) {
	b := make([]byte, 64<<10)
	for {
		n, err := f.conns[end].Read(b)
		if n > 0 {
			now := time.Now()
			f.mu.Lock()
			f.reads[end] = append(f.reads[end], now)
			f.mu.Unlock()
		}
		if err != nil {
			f.failed(end, err)
			return
		}
	}
}

func (f *Flow) failed(end int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.errs[end] == nil && !errors.Is(err, net.ErrClosed) {
		f.errs[end] = err
	}
}

// Close ends the flow and waits for its goroutines. It returns what hit the
// connection before, if anything.
func (f *Flow) Close() error {
	f.once.Do(func() {
		close(f.done)
		for _, c := range f.conns {
			_ = c.SetDeadline(time.Unix(1, 0))
		}
		f.mu.Lock()
		err := errors.Join(f.errs[0], f.errs[1])
		f.mu.Unlock()
		for _, c := range f.conns {
			_ = c.Close()
		}
		f.wg.Wait()
		f.mu.Lock()
		f.errs = [2]error{err}
		f.mu.Unlock()
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.errs[0]
}

// Gap returns the longest time between t0 and t1 in which an end (0 or 1) read
// nothing. The time is that of the wall clock, so pauses that reach beyond t1
// count as far as it.
func (f *Flow) Gap(end int, t0, t1 time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, longest := t0, time.Duration(0)
	for _, t := range f.reads[end] {
		if t.Before(t0) {
			continue
		}
		if t.After(t1) {
			break
		}
		longest = max(longest, t.Sub(last))
		last = t
	}
	return max(longest, t1.Sub(last))
}
