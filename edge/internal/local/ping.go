// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
)

// Bounds of Ping.
const (
	MinPingInterval = 20 * time.Millisecond
	MaxPingInterval = time.Hour
	MaxPingTimeout  = 10 * time.Second
)

// Ping implements LocalService.
func (s *Server) Ping(ctx context.Context, req *edgev1.PingRequest, stream *connect.ServerStream[edgev1.PingResponse]) error {
	p, err := newPinger(req)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	id, peer, err := s.find(ctx, req.GetPeer())
	if err != nil {
		return coded(err)
	}
	if err := stream.Send(&edgev1.PingResponse{Name: peer.Name, VirtualIp: peer.VirtualIP, Size: uint32(p.size)}); err != nil {
		return err
	}
	if err := s.reach(ctx, id); err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	p.ping = func(ctx context.Context, lane string) (conduit.PingResult, error) {
		return s.backend.Ping(ctx, id, conduit.PingOptions{Lane: lane, Size: p.size})
	}
	p.send = func(m *edgev1.PingResponse) error {
		m.Name, m.VirtualIp = peer.Name, peer.VirtualIP
		return stream.Send(m)
	}
	return coded(p.run(ctx))
}

// reach connects to a peer and says why that cannot be done.
func (s *Server) reach(ctx context.Context, id identity.PeerID) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if err := s.backend.Connect(ctx, id, func(string) {}); err != nil {
		last := &edgev1.ConnectResponse{}
		_ = s.outcome(context.WithoutCancel(ctx), id, err, func(m *edgev1.ConnectResponse) error {
			last = m
			return nil
		})
		return fmt.Errorf("%w: %s", ErrNoPath, orElse(last.GetDetail(), err.Error()))
	}
	return nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// coded gives errors of requests the code that a Client knows them by.
func coded(err error) error {
	switch {
	case errors.Is(err, ErrNoPeer):
		return connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, ErrAmbiguous):
		return connect.NewError(connect.CodeFailedPrecondition, err)
	case errors.Is(err, conduit.ErrPingSize):
		return connect.NewError(connect.CodeInvalidArgument, err)
	case errors.Is(err, conduit.ErrPingCaps):
		return connect.NewError(connect.CodeUnimplemented, err)
	}
	return err
}

// pinger sends echoes in one lane or several.
type pinger struct {
	lanes             []string
	count             uint32 // 0: without end
	interval, timeout time.Duration
	size              int
	ping              func(ctx context.Context, lane string) (conduit.PingResult, error)
	send              func(*edgev1.PingResponse) error
}

func newPinger(req *edgev1.PingRequest) (*pinger, error) {
	p := &pinger{
		lanes: req.GetLanes(), count: req.GetCount(), size: int(req.GetSize()),
		interval: micros(req.GetIntervalUs(), time.Second), timeout: micros(req.GetTimeoutUs(), 2*time.Second),
	}
	if len(p.lanes) == 0 {
		p.lanes = []string{"critical"}
	}
	if p.size == 0 {
		p.size = conduit.DefaultPing
	}
	switch {
	case len(p.lanes) > 3:
		return nil, fmt.Errorf("%d lanes: there are three", len(p.lanes))
	case p.interval < MinPingInterval || p.interval > MaxPingInterval:
		return nil, fmt.Errorf("interval is %v, want %v to %v", p.interval, MinPingInterval, MaxPingInterval)
	case p.timeout <= 0 || p.timeout > MaxPingTimeout:
		return nil, fmt.Errorf("timeout is %v, want up to %v", p.timeout, MaxPingTimeout)
	case p.size < conduit.MinPing || p.size > conduit.MaxPing:
		return nil, fmt.Errorf("size is %d, want %d to %d", p.size, conduit.MinPing, conduit.MaxPing)
	}
	for _, l := range p.lanes {
		if l != "critical" && l != "telemetry" && l != "bulk" {
			return nil, fmt.Errorf("lane is %.20q, want critical, telemetry or bulk", l)
		}
	}
	return p, nil
}

// micros reads a time; more than a day is a day.
func micros(us uint64, zero time.Duration) time.Duration {
	if us == 0 {
		return zero
	}
	return time.Duration(min(us, uint64(24*time.Hour/time.Microsecond))) * time.Microsecond
}

// run sends and tells until the last one is answered or given up.
func (p *pinger) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		m   *edgev1.PingResponse
		err error
	}
	results := make(chan outcome)
	open, seq := 0, uint32(0)
	defer func() {
		cancel()
		for ; open > 0; open-- {
			<-results
		}
	}()
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	next := tick.C
	for {
		seq++
		for _, lane := range p.lanes {
			open++
			go func(seq uint32) {
				m, err := p.one(ctx, lane)
				m.Seq, m.Lane, m.Size = seq, lane, uint32(p.size)
				results <- outcome{m, err}
			}(seq)
		}
		if p.count > 0 && seq == p.count {
			next = nil
		}
		for wait := true; wait; {
			if open == 0 && next == nil {
				return nil
			}
			select {
			case r := <-results:
				open--
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if r.err != nil {
					return r.err
				}
				if err := p.send(r.m); err != nil {
					return err
				}
			case <-next:
				wait = false
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// one sends an echo. Its error is one that no other echo would be without.
func (p *pinger) one(ctx context.Context, lane string) (*edgev1.PingResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	r, err := p.ping(ctx, lane)
	m := &edgev1.PingResponse{}
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	switch {
	case err == nil:
		m.Answered, m.RttUs, m.WaitUs, m.HoldUs = true, us(r.RTT), us(r.Wait), us(r.Hold)
		m.PathType, m.Uplink, m.Remote = r.Kind, r.Uplink, r.Remote
	case errors.Is(err, conduit.ErrPingCaps), errors.Is(err, conduit.ErrPingSize), errors.Is(err, conduit.ErrUnknownPeer):
		return m, err
	case !errors.Is(err, context.DeadlineExceeded):
		m.Error = err.Error()
	}
	return m, nil
}
