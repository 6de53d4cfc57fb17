// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"context"
	"errors"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Lossy is Critical over a link that loses packets at random.
type Lossy struct {
	// Clean is before the loss, First the time in which it must be noticed, Rest
	// what follows.
	Clean, First, Rest probe.Latency
	// Load is how much more the robot sends than without loss, in bytes on the
	// wire; 0 is as much.
	Load float64
}

// notice is how long the loss may take to be noticed.
const notice = 5 * time.Second

// LossOptions say what is lost, and how long.
type LossOptions struct {
	Loss        float64       // share of the packets each way, 0 to 1
	Clean, Load time.Duration // how long nothing is lost, and then; zero means 10 s and 100 s
	// HubAway takes the hub away, so that its relay is no way.
	HubAway bool
}

// Loses sends requests without loss, then with loss on the only uplink.
func Loses(ctx context.Context, lab *netns.Lab, sys world.System, o LossOptions) (Lossy, error) {
	var r Lossy
	if o.Clean == 0 {
		o.Clean = 10 * time.Second
	}
	if o.Load == 0 {
		o.Load = 100 * time.Second
	}
	s, err := newSite(ctx, lab, sys, Bottleneck{Where: Own, RTT: 20 * time.Millisecond})
	if err != nil {
		return r, err
	}
	defer s.close()
	if o.HubAway && s.w.Hub != nil {
		s.w.Hub.Stop()
		if err := world.Pause(ctx, settle); err != nil {
			return r, err
		}
	}
	var alone float64
	if r.Clean, alone, err = s.idle(ctx, o.Clean); err != nil {
		return r, err
	}
	s.thin.SetShape(netns.Shape{Queue: defaultQueue, Loss: o.Loss}, netns.Shape{Queue: defaultQueue, Loss: o.Loss})
	t, err := s.trips()
	if err != nil {
		return r, err
	}
	began := time.Now()
	if err := world.Pause(ctx, notice); err != nil {
		return r, err
	}
	before, err := s.sent()
	if err != nil {
		return r, err
	}
	noticed := time.Now()
	if err := world.Pause(ctx, o.Load); err != nil {
		return r, err
	}
	after, sentErr := s.sent()
	end := time.Now()
	s.note(ctx, "lossy")
	a, err := t.Stop(ctx)
	if err := errors.Join(sentErr, err); err != nil {
		return r, err
	}
	r.First, r.Rest = a.Within(began, noticed), a.Within(noticed, end)
	r.Load = float64(after.Bytes-before.Bytes)/end.Sub(noticed).Seconds()/alone - 1
	return r, nil
}
