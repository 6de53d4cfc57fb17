// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Stream is a one-way run of numbered datagrams. Both ends belong to this
// process, so that one clock stamps both.
type Stream struct {
	run  *run
	to   netip.AddrPort
	req  Requests
	stop context.CancelFunc
	sent chan struct{} // closed when the last one was sent
	read chan struct{} // closed when the receiver has ended
	at   *net.UDPConn

	mu      sync.Mutex // guards the rest
	count   int        // sent so far
	arrived []arrival
	err     error
}

type arrival struct {
	seq int
	at  time.Duration // since run.start
}

// StartStream sends r.Count datagrams from a socket to another, whose address is
// to where the sender is. The sockets stay open. A datagram that the socket
// refuses counts as sent.
func StartStream(from, at *net.UDPConn, to netip.AddrPort, r Requests) (*Stream, error) {
	r, err := r.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Stream{
		run: newRun(r.Count), to: to, req: r, stop: stop, at: at,
		sent: make(chan struct{}), read: make(chan struct{}),
	}
	go s.receive()
	go func() {
		defer close(s.sent)
		n, err := s.run.send(ctx, from, to, r)
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		s.mu.Lock()
		s.count, s.err = n, err
		s.mu.Unlock()
	}()
	return s, nil
}

func (s *Stream) receive() {
	defer close(s.read)
	buf := make([]byte, maxDatagram)
	for {
		n, _, err := s.at.ReadFromUDPAddrPort(buf)
		now := time.Since(s.run.start)
		if err != nil {
			var ne net.Error
			if errors.Is(err, net.ErrClosed) || errors.As(err, &ne) && ne.Timeout() {
				return
			}
			continue // an ICMP error
		}
		if n < header || binary.LittleEndian.Uint64(buf) != s.run.id {
			continue
		}
		if seq := binary.LittleEndian.Uint64(buf[8:]); seq < uint64(s.req.Count) {
			s.mu.Lock()
			s.arrived = append(s.arrived, arrival{int(seq), now})
			s.mu.Unlock()
		}
	}
}

// Got is how many datagrams have come so far, copies included.
func (s *Stream) Got() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.arrived)
}

// Wait waits until all datagrams were sent, and r.Linger longer for the last
// ones, and returns the account.
func (s *Stream) Wait(ctx context.Context) (Delivery, error) {
	select {
	case <-s.sent:
	case <-ctx.Done():
	}
	return s.end(ctx)
}

// Stop is Wait without sending the rest.
func (s *Stream) Stop(ctx context.Context) (Delivery, error) {
	s.stop()
	<-s.sent
	return s.end(ctx)
}

func (s *Stream) end(ctx context.Context) (Delivery, error) {
	s.stop()
	<-s.sent
	linger := time.NewTimer(s.req.Linger)
	defer linger.Stop()
	select {
	case <-linger.C:
	case <-ctx.Done():
	}
	_ = s.at.SetReadDeadline(time.Unix(1, 0))
	<-s.read
	_ = s.at.SetReadDeadline(time.Time{})
	err := s.err
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = fmt.Errorf("stream to %v: %w", s.to, err)
	}
	return s.account(), err
}

// Delivery is what became of a stream.
type Delivery struct {
	Sent int `json:"sent"`
	Got  int `json:"got"` // each counted once
	Lost int `json:"lost"`
	// Duplicated counts copies after the first, Reordered those that came after
	// one that was sent later.
	Duplicated int `json:"duplicated"`
	Reordered  int `json:"reordered"`
	// MaxGap is the longest time between two arrivals, one after the other, of
	// datagrams that had not come before.
	MaxGap time.Duration `json:"max_gap_ns"`
	// P50, P99 and Max are the times from sending to arrival.
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
	// Missing are the numbers of those that were lost.
	Missing []int `json:"missing,omitempty"`

	start   time.Time
	sent    []time.Duration
	arrived []arrival // first copies, in the order of arrival
}

func (s *Stream) account() Delivery {
	d := Delivery{Sent: s.count, start: s.run.start, sent: s.run.sent[:s.count]}
	seen := make([]bool, s.count)
	var delays []time.Duration
	last, newest := time.Duration(-1), -1
	for _, a := range s.arrived {
		if seen[a.seq] {
			d.Duplicated++
			continue
		}
		seen[a.seq] = true
		d.arrived = append(d.arrived, a)
		delays = append(delays, a.at-d.sent[a.seq])
		if a.seq < newest {
			d.Reordered++
		}
		newest = max(newest, a.seq)
		if last >= 0 {
			d.MaxGap = max(d.MaxGap, a.at-last)
		}
		last = a.at
	}
	for seq, ok := range seen {
		if !ok {
			d.Missing = append(d.Missing, seq)
		}
	}
	d.Got, d.Lost = len(d.arrived), len(d.Missing)
	d.P50, d.P99, d.Max = percentiles(delays)
	return d
}

// Resumed returns how long after t the first datagram came that was sent at t or
// later; false where none did.
func (d *Delivery) Resumed(t time.Time) (time.Duration, bool) {
	from := t.Sub(d.start)
	for _, a := range d.arrived {
		if d.sent[a.seq] >= from {
			return a.at - from, true
		}
	}
	return 0, false
}

// GapWithin is MaxGap of what came between two times.
func (d *Delivery) GapWithin(t0, t1 time.Time) time.Duration {
	from, to := t0.Sub(d.start), t1.Sub(d.start)
	last, longest := from, time.Duration(0)
	for _, a := range d.arrived {
		if a.at < from {
			continue
		}
		if a.at > to {
			break
		}
		longest = max(longest, a.at-last)
		last = a.at
	}
	return max(longest, to-last)
}

// LostWithin counts the lost ones of those sent between two times.
func (d *Delivery) LostWithin(t0, t1 time.Time) (lost int) {
	from, to := t0.Sub(d.start), t1.Sub(d.start)
	for _, seq := range d.Missing {
		if d.sent[seq] >= from && d.sent[seq] < to {
			lost++
		}
	}
	return lost
}

// LostFrom lists when the lost ones were sent, counted from t.
func (d *Delivery) LostFrom(t time.Time) (at []time.Duration) {
	for _, seq := range d.Missing {
		at = append(at, d.sent[seq]-t.Sub(d.start))
	}
	return at
}

// String is one line for logs.
func (d *Delivery) String() string {
	return fmt.Sprintf("%d sent, %d lost, %d twice, %d late, gap %v, delay %v/%v/%v",
		d.Sent, d.Lost, d.Duplicated, d.Reordered, d.MaxGap.Round(time.Millisecond), d.P50.Round(100*time.Microsecond),
		d.P99.Round(100*time.Microsecond), d.Max.Round(100*time.Microsecond))
}

func percentiles(v []time.Duration) (p50, p99, most time.Duration) {
	if len(v) == 0 {
		return 0, 0, 0
	}
	slices.Sort(v)
	at := func(p float64) time.Duration { return v[min(int(p*float64(len(v))), len(v)-1)] }
	return at(0.50), at(0.99), v[len(v)-1]
}

// First returns the time from the first sending to the first arrival; false
// where nothing came.
func (d *Delivery) First() (time.Duration, bool) {
	if len(d.arrived) == 0 {
		return 0, false
	}
	return d.arrived[0].at - d.sent[0], true
}

// LostAfterFirst counts the lost ones of those sent after the first that came.
func (d *Delivery) LostAfterFirst() (lost int) {
	for _, seq := range d.Missing {
		if len(d.arrived) > 0 && seq > d.arrived[0].seq {
			lost++
		}
	}
	return lost
}
