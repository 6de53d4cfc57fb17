// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package uplink

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// poll is how often the interfaces are read where there are no events.
const poll = 3 * time.Second

// portable is the system by way of package net.
type portable struct{}

func newSystem() system { return portable{} }

func (portable) binding() binding { return byNothing }

// ticks are events that come by the clock.
type ticks struct {
	ticker *time.Ticker
	done   chan struct{}
	once   *sync.Once
}

func (portable) subscribe() (events, error) {
	return ticks{time.NewTicker(poll), make(chan struct{}), new(sync.Once)}, nil
}

func (t ticks) wait() error {
	select {
	case <-t.ticker.C:
		return nil
	case <-t.done:
		return net.ErrClosed
	}
}

func (t ticks) close() {
	t.once.Do(func() {
		t.ticker.Stop()
		close(t.done)
	})
}

func (portable) scan() ([]link, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	out := make([]link, 1, len(ifaces)+1)
	out[0].src4 = source("udp4", "8.8.8.8:9")
	out[0].src6 = source("udp6", "[2001:4860:4860::8888]:9")
	for i := range ifaces {
		f := &ifaces[i]
		l := link{
			name: f.Name, index: f.Index, loopback: f.Flags&net.FlagLoopback != 0,
			up: f.Flags&net.FlagUp != 0 && f.Flags&net.FlagRunning != 0,
		}
		addrs, err := f.Addrs()
		if err != nil {
			continue // it went away between the two calls
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.addrs = append(l.addrs, p.Addr().Unmap())
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// source asks which source address the system chooses. Connecting a UDP socket
// sends nothing.
func source(network, to string) netip.Addr {
	c, err := net.Dial(network, to)
	if err != nil {
		return netip.Addr{}
	}
	defer func() { _ = c.Close() }()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}
