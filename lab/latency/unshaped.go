// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"context"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Saturated is Critical beside TCP where nothing but the processor is the limit.
type Saturated struct {
	Idle, Loaded probe.Latency
	Goodput      float64 // bytes per second
}

// Saturate runs TCP flows over links without a limit.
func Saturate(ctx context.Context, lab *netns.Lab, sys world.System, flows int, each time.Duration) (Saturated, error) {
	var r Saturated
	w, err := world.New(ctx, lab, sys.With(probeLane), netns.Link{})
	if err != nil {
		return r, err
	}
	s := &site{w: w}
	s.p, err = w.Connect(ctx, w.WAN.Host("robot1", netns.Link{}), w.WAN.Host("robot2", netns.Link{}))
	if err != nil {
		return r, err
	}
	defer s.close()
	if err := s.ready(ctx); err != nil {
		return r, err
	}
	start, err := s.bulk(ctx, flows, 0)
	if err != nil {
		return r, err
	}
	if r.Idle, err = latency(ctx, s, each/2); err != nil {
		return r, err
	}
	l := start()
	if err := world.Pause(ctx, time.Second); err != nil {
		return r, err
	}
	before, began := l.bytes(), time.Now()
	r.Loaded, err = latency(ctx, s, each)
	r.Goodput = float64(l.bytes()-before) / time.Since(began).Seconds()
	return r, err
}

func latency(ctx context.Context, s *site, d time.Duration) (probe.Latency, error) {
	t, err := s.trips()
	if err != nil {
		return probe.Latency{}, err
	}
	if err := world.Pause(ctx, d); err != nil {
		return probe.Latency{}, err
	}
	a, err := t.Stop(ctx)
	return a.All(), err
}

// unpaced is the configuration without pacing.
const unpaced = "[pacing]\nstrategy = \"none\"\n"

// Throughputs are those of two pairs of hosts, one of them without pacing, in
// turns.
type Throughputs struct {
	Paced, Unpaced []float64 // bytes per second
}

// Compare measures TCP flows through both, rounds times for so long each.
func Compare(ctx context.Context, lab *netns.Lab, sys world.System, flows, rounds int, each time.Duration) (Throughputs, error) {
	var r Throughputs
	w, err := world.New(ctx, lab, sys, netns.Link{})
	if err != nil {
		return r, err
	}
	var sites [2]*site
	for i, names := range [][2]string{{"robot1", "robot2"}, {"robot3", "robot4"}} {
		if i == 1 {
			w.System = sys.With(unpaced)
		}
		s := &site{w: w}
		s.p, err = w.Connect(ctx, w.WAN.Host(names[0], netns.Link{}), w.WAN.Host(names[1], netns.Link{}))
		if err != nil {
			return r, err
		}
		defer s.close()
		if _, err := s.p.PathTo(ctx, fleet.PathDirect); err != nil {
			return r, err
		}
		sites[i] = s
	}
	if err := world.Pause(ctx, settle); err != nil {
		return r, err
	}
	for n := range 2 * rounds {
		// A and B, then B and A: whatever drifts hits both.
		i := (n ^ n>>1) & 1
		start, err := sites[i].bulk(ctx, flows, 0)
		if err != nil {
			return r, err
		}
		l := start()
		if err := world.Pause(ctx, time.Second); err != nil {
			return r, err
		}
		before, began := l.bytes(), time.Now()
		if err := world.Pause(ctx, each); err != nil {
			return r, err
		}
		rate := float64(l.bytes()-before) / time.Since(began).Seconds()
		l.close()
		if i == 0 {
			r.Paced = append(r.Paced, rate)
		} else {
			r.Unpaced = append(r.Unpaced, rate)
		}
	}
	return r, nil
}
