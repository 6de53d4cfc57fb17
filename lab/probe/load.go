// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Bulk is TCP connections that are written to as fast as they take it, from one
// end to the other.
type Bulk struct {
	conns []net.Conn
	got   atomic.Int64
	wg    sync.WaitGroup
}

// StartBulk begins to write to each of the connections from and to read the other
// ends, which it owns from then on.
func StartBulk(from, to []net.Conn) *Bulk {
	b := &Bulk{conns: append(append([]net.Conn(nil), from...), to...)}
	for _, c := range from {
		b.wg.Go(func() {
			buf := make([]byte, 128<<10)
			for {
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		})
	}
	for _, c := range to {
		b.wg.Go(func() {
			buf := make([]byte, 128<<10)
			for {
				n, err := c.Read(buf)
				b.got.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	return b
}

// Bytes is how many have arrived.
func (b *Bulk) Bytes() int64 { return b.got.Load() }

// Close resets the connections, so that what waits in between is not sent, and
// waits for the goroutines. It may be called again.
func (b *Bulk) Close() {
	for _, c := range b.conns {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
	}
	b.wg.Wait()
}

// Blast is datagrams at a rate, whatever becomes of them.
type Blast struct {
	from, at *net.UDPConn
	done     chan struct{}
	once     sync.Once
	wg       sync.WaitGroup
	sent     atomic.Int64
	got      atomic.Int64
	packets  atomic.Int64
}

// StartBlast sends from a socket to another, whose address is to where the sender
// is: burst datagrams of size bytes at once, at so many bits per second on
// average. It owns the sockets.
func StartBlast(from, at *net.UDPConn, to netip.AddrPort, size, burst int, bits int64) *Blast {
	b := &Blast{from: from, at: at, done: make(chan struct{})}
	every := time.Duration(float64(size*burst*8) / float64(bits) * float64(time.Second))
	b.wg.Go(func() {
		pkt := make([]byte, size)
		tick := time.NewTicker(max(every, 2*time.Millisecond))
		defer tick.Stop()
		began, due := time.Now(), 0
		for {
			select {
			case <-tick.C:
			case <-b.done:
				return
			}
			for ; time.Duration(due/burst)*every <= time.Since(began); due++ {
				if _, err := from.WriteToUDPAddrPort(pkt, to); errors.Is(err, net.ErrClosed) {
					return
				} else if err == nil {
					b.sent.Add(1)
				}
			}
		}
	})
	b.wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, _, err := at.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				b.got.Add(int64(n))
				b.packets.Add(1)
			}
		}
	})
	return b
}

// Sent is how many datagrams the socket has taken.
func (b *Blast) Sent() int64 { return b.sent.Load() }

// Got is how many have arrived, and their bytes.
func (b *Blast) Got() (packets, bytes int64) { return b.packets.Load(), b.got.Load() }

// StopSending ends the sending alone.
func (b *Blast) StopSending() {
	b.once.Do(func() {
		close(b.done)
		_ = b.from.SetWriteDeadline(time.Unix(1, 0))
	})
}

// Close ends it and waits for the goroutines. It may be called again.
func (b *Blast) Close() {
	b.StopSending()
	_ = b.from.Close()
	_ = b.at.Close()
	b.wg.Wait()
}
