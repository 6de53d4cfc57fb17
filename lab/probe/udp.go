// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// header is a datagram's run id and sequence number.
	header = 16
	// MaxRequests bounds one RoundTrips call.
	MaxRequests = 1_000_000
	maxDatagram = 1 << 16
)

// Echo sends every datagram back to where it came from.
type Echo struct {
	conn *net.UDPConn
	done chan struct{}
}

// StartEcho answers on conn, which it owns, until Close.
func StartEcho(conn *net.UDPConn) *Echo {
	e := &Echo{conn: conn, done: make(chan struct{})}
	go e.run()
	return e
}

func (e *Echo) run() {
	defer close(e.done)
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := e.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		_, _ = e.conn.WriteToUDPAddrPort(buf[:n], from) // lost is lost
	}
}

// Addr is the address that the echo listens on.
func (e *Echo) Addr() netip.AddrPort { return e.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Close stops the echo and waits for its goroutine. It may be called again.
func (e *Echo) Close() error {
	err := e.conn.Close()
	<-e.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Requests says how RoundTrips sends.
type Requests struct {
	Count    int           // 1 to MaxRequests; zero means 100
	Interval time.Duration // between two requests; zero means 10 ms
	Size     int           // payload bytes, at least 16; zero means 64
	// Linger is how long to wait for answers after the last request. Zero
	// means 1 s; all answers in hand end it early.
	Linger time.Duration
}

func (r Requests) withDefaults() (Requests, error) {
	if r.Count == 0 {
		r.Count = 100
	}
	if r.Interval == 0 {
		r.Interval = 10 * time.Millisecond
	}
	if r.Size == 0 {
		r.Size = 64
	}
	if r.Linger == 0 {
		r.Linger = time.Second
	}
	if r.Count < 0 || r.Count > MaxRequests || r.Interval < 0 || r.Linger < 0 || r.Size < header || r.Size > maxDatagram-64 {
		return r, fmt.Errorf("requests %+v: out of range", r)
	}
	return r, nil
}

// run is the book of one RoundTrips call.
type run struct {
	id       uint64
	start    time.Time
	complete chan struct{} // closed when want requests were answered

	mu   sync.Mutex
	sent []time.Duration // since start
	rtt  []time.Duration // 0 = unanswered
	got  int
	want int
}

func newRun(n int) *run {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return &run{
		id: binary.LittleEndian.Uint64(id[:]), start: time.Now(), complete: make(chan struct{}),
		sent: make([]time.Duration, n), rtt: make([]time.Duration, n), want: n,
	}
}

func (r *run) send(ctx context.Context, conn *net.UDPConn, to netip.AddrPort, q Requests) (int, error) {
	pkt := make([]byte, q.Size)
	binary.LittleEndian.PutUint64(pkt, r.id)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range q.Count {
		timer.Reset(time.Until(r.start.Add(time.Duration(i) * q.Interval)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return i, context.Cause(ctx)
		}
		binary.LittleEndian.PutUint64(pkt[8:], uint64(i))
		r.mu.Lock()
		r.sent[i] = time.Since(r.start)
		r.mu.Unlock()
		if _, err := conn.WriteToUDPAddrPort(pkt, to); errors.Is(err, net.ErrClosed) {
			return i, fmt.Errorf("send request: %w", err)
		}
	}
	return q.Count, nil
}

func (r *run) receive(conn *net.UDPConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		now := time.Since(r.start)
		if err != nil {
			var ne net.Error
			if errors.Is(err, net.ErrClosed) || errors.As(err, &ne) && ne.Timeout() {
				return
			}
			continue // an ICMP error of an earlier request
		}
		if n < header || binary.LittleEndian.Uint64(buf) != r.id {
			continue
		}
		if seq := binary.LittleEndian.Uint64(buf[8:]); seq < uint64(len(r.rtt)) {
			r.answered(int(seq), now)
		}
	}
}

func (r *run) answered(seq int, now time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rtt[seq] != 0 {
		return // a duplicate
	}
	r.rtt[seq] = max(now-r.sent[seq], 1)
	if r.got++; r.got == r.want {
		close(r.complete)
	}
}

// WaitAnswer asks an echo every interval (zero means 20 ms) until it answers
// and returns how long that took. conn should not be connected, so that its
// source address follows the routes as interfaces appear.
func WaitAnswer(ctx context.Context, conn *net.UDPConn, to netip.AddrPort, interval time.Duration) (time.Duration, error) {
	if interval <= 0 {
		interval = 20 * time.Millisecond
	}
	r := newRun(1)
	received := make(chan struct{})
	go func() {
		defer close(received)
		r.receive(conn)
	}()
	defer func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		<-received
		_ = conn.SetReadDeadline(time.Time{})
	}()
	pkt := make([]byte, 64)
	binary.LittleEndian.PutUint64(pkt, r.id)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if _, err := conn.WriteToUDPAddrPort(pkt, to); errors.Is(err, net.ErrClosed) {
			return 0, fmt.Errorf("send request: %w", err)
		}
		select {
		case <-r.complete:
			return time.Since(r.start), nil
		case <-tick.C:
		case <-ctx.Done():
			return time.Since(r.start), fmt.Errorf("wait for an answer from %v: %w", to, context.Cause(ctx))
		}
	}
}

// expect has complete closed after fewer answers than were planned.
func (r *run) expect(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n < r.want && n <= r.got {
		close(r.complete)
	}
	r.want = min(n, r.want)
}
