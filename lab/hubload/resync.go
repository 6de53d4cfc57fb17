// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"fmt"
	"time"
)

// ResyncConfig is how Resync measures.
type ResyncConfig struct {
	// Missed is how many machines join before most nodes are back, so that there
	// is something to resume; 0 means 20, negative none.
	Missed int
	// Patience is how long the fleet may take; 0 means 2 minutes.
	Patience time.Duration
}

// ResyncResult is how a fleet comes back after the hub was killed.
type ResyncResult struct {
	Nodes int `json:"nodes"`
	// Restart is from SIGKILL until the hub serves again.
	Restart float64 `json:"hub_restart_seconds"`
	// Seconds is from SIGKILL until the last node is synchronised and reachable.
	Seconds float64 `json:"seconds"`
	// Downtime is that of each node, from SIGKILL on.
	Downtime  Latency `json:"downtime"`
	Snapshots int     `json:"snapshots"`
	Resyncs   int     `json:"resyncs"`
	// Deltas is how many changes were made up for, Duplicates how many came again,
	// Missing the resource versions that nobody sent (without scopes).
	Deltas     int    `json:"deltas"`
	Duplicates int    `json:"duplicates"`
	Missing    uint64 `json:"missing"`
	Attempts   int64  `json:"failed_attempts"`
	// JoinsFailed is how many joins of Missed had to be tried again.
	JoinsFailed int     `json:"failed_joins"`
	HubCPU      float64 `json:"hub_cpu_ms_per_node"`
}

// Resync kills the hub, starts it at once and waits for all nodes of f.
func (l *Lab) Resync(ctx context.Context, f *Fleet, cfg ResyncConfig) (ResyncResult, error) {
	cfg.Missed, cfg.Patience = or(cfg.Missed, 20), or(cfg.Patience, 2*time.Minute)
	res := ResyncResult{Nodes: len(f.Nodes)}
	apps, err := l.applicants(max(0, cfg.Missed))
	if err != nil {
		return res, err
	}
	before, attempts := f.Views(), f.failures.Load()
	start := now()
	l.Hub.Kill()
	err = l.Hub.Start(ctx)
	if err != nil {
		return res, err
	}
	res.Restart = time.Duration(now() - start).Seconds()
	wctx, cancel := context.WithTimeout(ctx, cfg.Patience)
	defer cancel()
	joined := make(chan error, 1)
	go func() { joined <- l.joinLate(wctx, apps, &res.JoinsFailed) }()
	stop := l.report(f)
	// Nobody counts who has not noticed the crash.
	err = waitFor(wctx, func() bool { return f.upSince(start) == len(f.Nodes) })
	stop()
	if jerr := <-joined; jerr != nil {
		return res, jerr
	}
	if err != nil {
		return res, fmt.Errorf("wait for the fleet: %d of %d nodes are back: %w%s", f.upSince(start), len(f.Nodes), err, f.Errors())
	}
	var down []time.Duration
	for _, n := range f.Nodes {
		n.mu.Lock()
		down = append(down, time.Duration(n.upAt-start))
		n.mu.Unlock()
	}
	res.Downtime = Summarize(down)
	res.Seconds = res.Downtime.Max.Seconds()
	u, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, err
	}
	res.HubCPU = ms(u.CPU) / float64(len(f.Nodes))
	// What the last ones missed may still be on its way.
	if err := sleep(ctx, time.Second); err != nil {
		return res, err
	}
	after := f.Views()
	res.Snapshots, res.Resyncs = after.Snapshots-before.Snapshots, after.Resyncs-before.Resyncs
	res.Deltas, res.Duplicates = after.Deltas-before.Deltas, after.Duplicates-before.Duplicates
	if l.cfg.Sites == 0 {
		res.Missing = after.Missing - before.Missing
	}
	if res.Attempts = f.failures.Load() - attempts; res.Attempts > 0 {
		l.cfg.Progress("connections ended and attempts failed, since the fleet began, for:%s", f.Errors())
	}
	return res, nil
}

// joinLate lets machines join one after the other, each until it succeeds: as a
// person would type the same command again, after which the hub knows it again.
func (l *Lab) joinLate(ctx context.Context, apps []*applicant, failed *int) error {
	v := &verifier{root: l.root}
	for i, a := range apps {
		for {
			_, err := a.join(ctx, l.Hub.Addr(), v, l.tokens[a.site], i)
			if err == nil {
				break
			}
			*failed++
			if serr := sleep(ctx, time.Second); serr != nil {
				return fmt.Errorf("join after the restart: %w: %w", serr, err)
			}
		}
	}
	return nil
}

// upSince counts the nodes that came up after a moment and still are.
func (f *Fleet) upSince(at int64) (count int) {
	for _, n := range f.Nodes {
		n.mu.Lock()
		if n.up && n.upAt > at {
			count++
		}
		n.mu.Unlock()
	}
	return count
}
