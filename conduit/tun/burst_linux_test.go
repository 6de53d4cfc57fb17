// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A camera's image of 1 MB, in UDP datagrams of 64 KB each, is in the kernel's queue
// as a whole before anybody reads: 800 fragments arrive in a millisecond, faster than
// they can be read. What does not fit is counted.
func TestBurst(t *testing.T) {
	const datagrams, pieces = 16, 50
	for _, tc := range []struct{ length, fits int }{{0, datagrams * pieces}, {500, 500}} {
		inNamespace(t, func(t *testing.T) {
			dev, err := Open(Config{
				Name: "bxtest7", Driver: "linux", TxQueueLen: tc.length,
				Addrs:  []netip.Prefix{netip.MustParsePrefix("10.66.0.2/32")},
				Routes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16")},
			})
			if err != nil {
				t.Error(err)
				return
			}
			defer dev.Close()
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 66, 0, 9), Port: 7})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if err := c.SetWriteBuffer(4 << 20); err != nil {
				t.Error(err)
			}
			for range datagrams {
				// What the queue does not take is no error of the sender on most kernels.
				if _, err := c.Write(make([]byte, 65507)); err != nil && !errors.Is(err, unix.ENOBUFS) {
					t.Error(err)
				}
			}
			counter, ok := dev.(DropCounter)
			if !ok {
				t.Error("does not count what is dropped")
				return
			}
			dropped, err := counter.Dropped()
			if want := datagrams*pieces - tc.fits; err != nil || dropped != uint64(want) {
				t.Errorf("queue of %d: dropped %d, %v; want %d", tc.length, dropped, err, want)
			}
			// From another thread, which is in another namespace.
			done := make(chan uint64)
			go func() {
				n, _ := counter.Dropped()
				done <- n
			}()
			if n := <-done; n != dropped {
				t.Errorf("another thread counts %d, want %d", n, dropped)
			}
			_ = dev.Close()
			if _, err := counter.Dropped(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v, want ErrClosed", err)
			}
		})
	}
}
