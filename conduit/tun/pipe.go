// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// pipeBytes bounds what waits in each direction of a pipe.
const pipeBytes = 64 << 10

// Pipe returns a Device in memory and the application's end of it. It needs no
// root and no kernel. mtu zero means DefaultMTU. Closing either end closes both.
func Pipe(mtu int) (Device, *PipeApp) {
	if mtu == 0 {
		mtu = DefaultMTU
	}
	p := &pipe{mtu: mtu, done: make(chan struct{})}
	p.up.wake, p.down.wake = make(chan struct{}, 1), make(chan struct{}, 1)
	p.up.room, p.down.room = make(chan struct{}, 1), make(chan struct{}, 1)
	return pipeDevice{p}, &PipeApp{p}
}

// pipe is two bounded queues: up from the application to the node, down back.
type pipe struct {
	mtu      int
	up, down pipeQueue
	done     chan struct{}
	once     sync.Once
}

type pipeQueue struct {
	wake, room chan struct{} // signals of one slot

	mu    sync.Mutex // guards the rest
	pkts  [][]byte
	bytes int
}

// push appends a copy of b. Where there is no room, evict decides whether the
// oldest goes or push refuses.
func (q *pipeQueue) push(b []byte, evict bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes+len(b) > pipeBytes {
		if !evict || len(b) > pipeBytes {
			return false
		}
		q.bytes -= len(q.pkts[0])
		q.pkts = q.pkts[1:]
	}
	q.pkts = append(q.pkts, append([]byte(nil), b...))
	q.bytes += len(b)
	signal(q.wake)
	return true
}

func (q *pipeQueue) pop() ([]byte, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pkts) == 0 {
		return nil, false
	}
	b := q.pkts[0]
	q.pkts = q.pkts[1:]
	q.bytes -= len(b)
	if len(q.pkts) > 0 {
		signal(q.wake)
	}
	signal(q.room)
	return b, true
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (p *pipe) close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

type pipeDevice struct{ p *pipe }

func (d pipeDevice) Name() string   { return "pipe" }
func (d pipeDevice) MTU() int       { return d.p.mtu }
func (d pipeDevice) Queues() int    { return 1 }
func (d pipeDevice) BatchSize() int { return 16 }
func (d pipeDevice) Close() error   { return d.p.close() }

// Read implements Device.
func (d pipeDevice) Read(_ int, bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n := 0
		for n < len(bufs) {
			b, ok := d.p.up.pop()
			if !ok {
				break
			}
			sizes[n] = copy(bufs[n][offset:], b)
			n++
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-d.p.done:
			return 0, net.ErrClosed
		case <-d.p.up.wake:
		}
	}
}

// Write implements Device. What the application does not read is dropped, the
// oldest first.
func (d pipeDevice) Write(_ int, bufs [][]byte, offset int) (int, error) {
	select {
	case <-d.p.done:
		return 0, net.ErrClosed
	default:
	}
	for _, b := range bufs {
		d.p.down.push(b[offset:], true)
	}
	return len(bufs), nil
}

// PipeApp is the application's end of a Pipe. Its methods are safe for concurrent
// use.
type PipeApp struct{ p *pipe }

// Send hands one IP packet to the node and waits while 64 KiB are waiting
// already. It keeps no reference. After Close it returns net.ErrClosed.
func (a *PipeApp) Send(ctx context.Context, pkt []byte) error {
	if len(pkt) > a.p.mtu {
		return fmt.Errorf("send packet of %d bytes: MTU is %d", len(pkt), a.p.mtu)
	}
	for {
		select {
		case <-a.p.done:
			return net.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if a.p.up.push(pkt, false) {
			return nil
		}
		select {
		case <-a.p.done:
			return net.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		case <-a.p.up.room:
		}
	}
}

// Recv waits for one IP packet, copies it into buf and returns its length. After
// Close it returns net.ErrClosed.
func (a *PipeApp) Recv(ctx context.Context, buf []byte) (int, error) {
	for {
		if b, ok := a.p.down.pop(); ok {
			return copy(buf, b), nil
		}
		select {
		case <-a.p.done:
			return 0, net.ErrClosed
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-a.p.down.wake:
		}
	}
}

// Close closes both ends.
func (a *PipeApp) Close() error { return a.p.close() }
