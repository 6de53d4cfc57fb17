// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"time"
)

// ConnectConfig is how Connect measures.
type ConnectConfig struct {
	Nodes int
	// Rate is how many connect per second; 0 means 400.
	Rate int
	// Settle is how long all are connected before memory is read; 0 means 30 s.
	Settle time.Duration
	// Idle is how long the hub's CPU time is watched; 0 means 30 s.
	Idle time.Duration
	// NoSignal opens one stream per node rather than two.
	NoSignal bool
}

// ConnectResult is what connected nodes cost the hub.
type ConnectResult struct {
	Nodes   int     `json:"nodes"`
	Streams int     `json:"streams_per_node"`
	Seconds float64 `json:"connect_seconds"`
	// CPU of the hub for one node that connects: handshake, streams, policy.
	ConnectCPU float64 `json:"hub_cpu_ms_per_connect"`
	// Resident memory in bytes: of a fresh hub that knows the nodes, with all of
	// them connected and settled, and the highest ever.
	RSSBefore int64 `json:"rss_before"`
	RSSAfter  int64 `json:"rss_after"`
	RSSPeak   int64 `json:"rss_peak"`
	// KBPerNode is (after - before) / nodes, KBPerNodeWhole after / nodes.
	KBPerNode      float64 `json:"kb_per_node"`
	KBPerNodeWhole float64 `json:"kb_per_node_whole"`
	// Of the hub's runtime, where it has a debug endpoint.
	GoroutinesPerNode float64 `json:"goroutines_per_node,omitempty"`
	HeapKBPerNode     float64 `json:"heap_kb_per_node,omitempty"`
	StackKBPerNode    float64 `json:"stack_kb_per_node,omitempty"`
	// IdleCPU is in per cent of one core, over IdleSeconds.
	IdleCPU     float64 `json:"idle_cpu_percent"`
	IdleSeconds float64 `json:"idle_seconds"`
	Presence    int64   `json:"presence_events"`
	Bookmarks   int64   `json:"bookmarks"`
	Losses      int64   `json:"connections_lost"`
}

// Connect measures what n connected nodes cost a fresh hub, and leaves them
// connected: close the fleet after use.
func (l *Lab) Connect(ctx context.Context, cfg ConnectConfig) (res ConnectResult, f *Fleet, err error) {
	cfg.Rate = or(cfg.Rate, 400)
	cfg.Settle, cfg.Idle = or(cfg.Settle, 30*time.Second), or(cfg.Idle, 30*time.Second)
	if err = l.Enrol(ctx, cfg.Nodes); err != nil {
		return res, nil, err
	}
	if err = l.Restart(ctx); err != nil {
		return res, nil, err
	}
	if err = sleep(ctx, min(cfg.Settle, 2*time.Second)); err != nil {
		return res, nil, err
	}
	before, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, nil, err
	}
	f = l.Fleet(cfg.Nodes, FleetConfig{NoSignal: cfg.NoSignal})
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	start := time.Now()
	stop := l.report(f)
	err = f.Connect(ctx, 0, cfg.Nodes, cfg.Rate)
	stop()
	if err != nil {
		return res, f, err
	}
	res = ConnectResult{Nodes: cfg.Nodes, Streams: 2, Seconds: time.Since(start).Seconds(), RSSBefore: before.RSS}
	if cfg.NoSignal {
		res.Streams = 1
	}
	up, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, f, err
	}
	l.cfg.Progress("%d nodes are connected after %.1f s; settling for %v", cfg.Nodes, res.Seconds, cfg.Settle)
	if err = sleep(ctx, cfg.Settle); err != nil {
		return res, f, err
	}
	from, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, f, err
	}
	idle := time.Now()
	if err = sleep(ctx, cfg.Idle); err != nil {
		return res, f, err
	}
	res.IdleSeconds = time.Since(idle).Seconds()
	to, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, f, err
	}
	per := func(bytes int64) float64 { return float64(bytes) / 1024 / float64(cfg.Nodes) }
	res.ConnectCPU = ms(up.CPU-before.CPU) / float64(cfg.Nodes)
	res.RSSAfter, res.RSSPeak = to.RSS, to.Peak
	res.KBPerNode, res.KBPerNodeWhole = per(to.RSS-before.RSS), per(to.RSS)
	if to.Goroutines > 0 {
		res.GoroutinesPerNode = float64(to.Goroutines-before.Goroutines) / float64(cfg.Nodes)
		res.HeapKBPerNode, res.StackKBPerNode = per(to.Heap-before.Heap), per(to.Stack-before.Stack)
	}
	res.IdleCPU = 100 * (to.CPU - from.CPU).Seconds() / res.IdleSeconds
	res.Presence, res.Bookmarks, res.Losses = f.presence.Load(), f.bookmarks.Load(), f.losses.Load()
	return res, f, nil
}

// Gather connects n enrolled nodes, rate per second, without measuring anything.
// Close the fleet after use.
func (l *Lab) Gather(ctx context.Context, n, rate int, cfg FleetConfig) (*Fleet, error) {
	if err := l.Enrol(ctx, n); err != nil {
		return nil, err
	}
	f := l.Fleet(n, cfg)
	stop := l.report(f)
	err := f.Connect(ctx, 0, n, or(rate, 400))
	stop()
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// report tells how many nodes are connected until the returned function is
// called.
func (l *Lab) report(f *Fleet) (stop func()) {
	done, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		t := time.NewTicker(2 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				l.cfg.Progress("%d of %d nodes are connected", f.Up(), len(f.Nodes))
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-over }
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
