// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"
	"sync"
)

// idle is the device of a node without interface: nothing comes out of it, and
// what goes into it is gone. Such a node still holds sessions and relays.
type idle struct {
	mtu  int
	done chan struct{}
	once sync.Once
}

func newIdle(mtu int) *idle { return &idle{mtu: mtu, done: make(chan struct{})} }

func (d *idle) Name() string   { return "none" }
func (d *idle) MTU() int       { return d.mtu }
func (d *idle) Queues() int    { return 1 }
func (d *idle) BatchSize() int { return 1 }

func (d *idle) Read(int, [][]byte, []int, int) (int, error) {
	<-d.done
	return 0, net.ErrClosed
}

func (d *idle) Write(_ int, bufs [][]byte, _ int) (int, error) {
	select {
	case <-d.done:
		return 0, net.ErrClosed
	default:
		return len(bufs), nil
	}
}

func (d *idle) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}
