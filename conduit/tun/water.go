// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/songgao/water"
)

// waterDevice adapts songgao/water, which moves one packet per call and runs on
// Linux, macOS and Windows.
type waterDevice struct {
	ifce *water.Interface
	mtu  int
	once sync.Once
	err  error
	gone chan struct{}
}

func openWater(cfg Config) (Device, error) {
	ifce, err := water.New(waterConfig(cfg))
	if err != nil {
		return nil, fmt.Errorf("open tun %s with water: %w", cfg.Name, err)
	}
	cfg.Name = ifce.Name() // macOS numbers its utun devices itself
	if err := setUp(cfg); err != nil {
		_ = ifce.Close()
		return nil, fmt.Errorf("open tun %s: %w", cfg.Name, err)
	}
	return &waterDevice{ifce: ifce, mtu: cfg.MTU, gone: make(chan struct{})}, nil
}

func (d *waterDevice) Name() string   { return d.ifce.Name() }
func (d *waterDevice) MTU() int       { return d.mtu }
func (d *waterDevice) Queues() int    { return 1 }
func (d *waterDevice) BatchSize() int { return 1 }

// Read implements Device.
func (d *waterDevice) Read(_ int, bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.ifce.Read(bufs[0][offset:])
	if err != nil {
		return 0, d.wrap("read", err)
	}
	sizes[0] = n
	return 1, nil
}

// Write implements Device.
func (d *waterDevice) Write(_ int, bufs [][]byte, offset int) (n int, err error) {
	for _, b := range bufs {
		if _, e := d.ifce.Write(b[offset:]); e != nil {
			err = d.wrap("write", e)
			continue
		}
		n++
	}
	return n, err
}

// Close implements Device.
func (d *waterDevice) Close() error {
	d.once.Do(func() {
		close(d.gone)
		d.err = d.ifce.Close()
	})
	return d.err
}

func (d *waterDevice) wrap(verb string, err error) error {
	select {
	case <-d.gone:
		return net.ErrClosed
	default:
	}
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return fmt.Errorf("%s tun %s: %w", verb, d.ifce.Name(), err)
}
