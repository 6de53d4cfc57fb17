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

// Loses sends requests without loss, then with such a share of the packets lost
// each way on the only uplink.
func Loses(ctx context.Context, lab *netns.Lab, sys world.System, loss float64, clean, lossy time.Duration) (Lossy, error) {
	var r Lossy
	s, err := newSite(ctx, lab, sys, Bottleneck{Where: Own, RTT: 20 * time.Millisecond})
	if err != nil {
		return r, err
	}
	defer s.close()
	var alone float64
	if r.Clean, alone, err = s.idle(ctx, clean); err != nil {
		return r, err
	}
	s.thin.SetShape(netns.Shape{Queue: defaultQueue, Loss: loss}, netns.Shape{Queue: defaultQueue, Loss: loss})
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
	if err := world.Pause(ctx, lossy); err != nil {
		return r, err
	}
	after, sentErr := s.sent()
	end := time.Now()
	a, err := t.Stop(ctx)
	if err := errors.Join(sentErr, err); err != nil {
		return r, err
	}
	r.First, r.Rest = a.Within(began, noticed), a.Within(noticed, end)
	r.Load = float64(after.Bytes-before.Bytes)/end.Sub(noticed).Seconds()/alone - 1
	return r, nil
}
