// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Latency sums up the round trips of a run.
type Latency struct {
	Sent int `json:"sent"`
	Got  int `json:"got"` // answered, each counted once
	// The percentiles and Max are round trip times, 0 when nothing was answered.
	P50  time.Duration `json:"p50_ns"`
	P99  time.Duration `json:"p99_ns"`
	P999 time.Duration `json:"p999_ns"`
	Max  time.Duration `json:"max_ns"`
	// LongestGap is the most requests in a row that went unanswered.
	LongestGap int `json:"longest_gap"`
}

// Loss is the share of unanswered requests, 0 to 1.
func (l Latency) Loss() float64 {
	if l.Sent == 0 {
		return 0
	}
	return 1 - float64(l.Got)/float64(l.Sent)
}

// Lost is how many requests went unanswered.
func (l Latency) Lost() int { return l.Sent - l.Got }

// RoundTrips sends requests to an echo over conn and times the answers. A
// request that the socket refuses counts as lost. When ctx ends the run ends,
// with the result so far and the error of ctx.
func RoundTrips(ctx context.Context, conn *net.UDPConn, to netip.AddrPort, r Requests) (Latency, error) {
	t, err := StartTrips(conn, to, r)
	if err != nil {
		return Latency{}, err
	}
	a, err := t.Wait(ctx)
	return a.All(), err
}

// Trips are round trips under way.
type Trips struct {
	run      *run
	conn     *net.UDPConn
	linger   time.Duration
	cancel   context.CancelFunc
	sent     chan struct{} // closed when the last request was sent
	received chan struct{} // closed when the receiver has ended

	// Valid when sent is closed.
	count int
	err   error
}

// StartTrips is RoundTrips that others may look at while it runs. The socket is
// its own until Wait or Stop has returned, and stays open.
func StartTrips(conn *net.UDPConn, to netip.AddrPort, r Requests) (*Trips, error) {
	r, err := r.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &Trips{
		run: newRun(r.Count), conn: conn, linger: r.Linger, cancel: cancel,
		sent: make(chan struct{}), received: make(chan struct{}),
	}
	go func() {
		defer close(t.received)
		t.run.receive(conn)
	}()
	go func() {
		defer close(t.sent)
		t.count, t.err = t.run.send(ctx, conn, to, r)
		if errors.Is(t.err, context.Canceled) {
			t.err = nil
		}
	}()
	return t, nil
}

// Wait waits until all requests were sent and answered, or for r.Linger after the
// last one.
func (t *Trips) Wait(ctx context.Context) (Answers, error) {
	select {
	case <-t.sent:
	case <-ctx.Done():
	}
	return t.end(ctx)
}

// Stop is Wait without sending the rest.
func (t *Trips) Stop(ctx context.Context) (Answers, error) {
	t.cancel()
	return t.end(ctx)
}

func (t *Trips) end(ctx context.Context) (Answers, error) {
	err := context.Cause(ctx)
	t.cancel()
	<-t.sent
	linger := time.NewTimer(t.linger)
	defer linger.Stop()
	t.run.expect(t.count)
	if err == nil {
		select {
		case <-t.run.complete:
		case <-linger.C:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	_ = t.conn.SetReadDeadline(time.Unix(1, 0)) // ends receive
	<-t.received
	_ = t.conn.SetReadDeadline(time.Time{})
	return Answers{start: t.run.start, sent: t.run.sent[:t.count], rtt: t.run.rtt[:t.count]}, errors.Join(t.err, err)
}

// Answers are round trips that have ended.
type Answers struct {
	start     time.Time
	sent, rtt []time.Duration // since start; 0 = unanswered
}

// All sums up all of them.
func (a Answers) All() Latency { return sum(a.rtt) }

// Within sums up those that were sent from t0 until t1.
func (a Answers) Within(t0, t1 time.Time) Latency { return sum(a.rtt[a.at(t0):a.at(t1)]) }

// at is the number of the first request that was sent at t or later.
func (a Answers) at(t time.Time) int {
	i, _ := slices.BinarySearch(a.sent, t.Sub(a.start))
	return i
}

// Each calls f with every request: when it was sent, counted from t0, and the round
// trip, 0 where there was no answer.
func (a Answers) Each(t0 time.Time, f func(sent, rtt time.Duration)) {
	for i, d := range a.rtt {
		f(a.sent[i]-t0.Sub(a.start), d)
	}
}

// Inside returns how long after t0 the round trips were within the limit, and all
// those were that were sent in the time hold after it; false where that never was
// before t1. A request that was lost is not within.
func (a Answers) Inside(t0, t1 time.Time, limit, hold time.Duration) (time.Duration, bool) {
	from, to := a.at(t0), a.at(t1)
	since := t0.Sub(a.start) // since when all is well
	for i := from; i < to; i++ {
		if a.rtt[i] == 0 || a.rtt[i] > limit {
			if i+1 == len(a.sent) {
				return 0, false
			}
			since = a.sent[i+1]
			continue
		}
		if a.sent[i]-since >= hold {
			return since - t0.Sub(a.start), true
		}
	}
	return 0, false
}

func sum(rtt []time.Duration) Latency {
	l := Latency{Sent: len(rtt)}
	var answered []time.Duration
	gap := 0
	for _, d := range rtt {
		if d == 0 {
			gap++
			l.LongestGap = max(l.LongestGap, gap)
			continue
		}
		gap = 0
		answered = append(answered, d)
	}
	l.Got = len(answered)
	l.P50, l.P99, l.Max = percentiles(answered)
	if l.Got > 0 { // percentiles has sorted them
		l.P999 = answered[min(int(0.999*float64(l.Got)), l.Got-1)]
	}
	return l
}
