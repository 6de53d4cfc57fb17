// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub"
)

// Gaps between two reports; the hub may ask for another within the bounds.
const (
	reportEvery   = 10 * time.Second
	reportAtMost  = time.Second
	reportAtLeast = 10 * time.Minute
)

// reporter tells the hub how the node is.
type reporter struct {
	log     *slog.Logger
	version string
	started time.Time
	epoch   func() uint32 // of the mesh's key
	status  func(context.Context) (*conduit.Status, error)
	send    func(context.Context, hub.Report) (next time.Duration, err error)
}

func (r *reporter) run(ctx context.Context) {
	every, failed := reportEvery, false
	for {
		// A fleet that started at once does not report at once; none is ever late.
		select {
		case <-time.After(every - rand.N(every/10+1)):
		case <-ctx.Done():
			return
		}
		next, err := r.report(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			// The link's own log tells when it is down, and counters are totals.
			if !failed && !errors.Is(err, hub.ErrDown) {
				r.log.Warn("metrics not reported", "err", err)
				failed = true
			}
		default:
			failed = false
			if next > 0 {
				every = min(max(next, reportAtMost), reportAtLeast)
			}
		}
	}
}

func (r *reporter) report(ctx context.Context) (next time.Duration, err error) {
	st, err := r.status(ctx)
	if err != nil {
		return 0, err
	}
	return r.send(ctx, hub.Report{Status: st, Started: r.started, Version: r.version, PSKEpoch: r.epoch()})
}
