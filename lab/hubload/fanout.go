// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// What Fanout changes.
const (
	// ChangeJoin lets a machine join, which its scope hears of.
	ChangeJoin = "join"
	// ChangeTags sets the tags of a node, which its scope hears of.
	ChangeTags = "tags"
	// ChangeRevoke revokes a node that is not connected, which all hear of.
	ChangeRevoke = "revoke"
)

// FanoutConfig is how Fanout measures.
type FanoutConfig struct {
	// Change is one of the constants above; empty means ChangeRevoke.
	Change string
	// Changes is how many, one after the other; 0 means 20.
	Changes int
	// Pause is the time between two; 0 means 500 ms.
	Pause time.Duration
	// Patience is how long one change may take to reach all; 0 means 10 s.
	Patience time.Duration
}

// FanoutResult is how long changes take to those who watch.
type FanoutResult struct {
	Change   string `json:"change"`
	Changes  int    `json:"changes"`
	Nodes    int    `json:"nodes"`
	Watchers int    `json:"watchers"` // who should hear of a change
	// Latency is from the call that makes the change, commit included, to each
	// watcher; all changes together.
	Latency Latency `json:"latency"`
	// WorstP99 is the largest p99 of a single change.
	WorstP99 float64 `json:"worst_p99_ms"`
	// Answered is how long the call took.
	Answered Latency `json:"answered"`
	// Missed is how many deliveries did not come within the patience, Strays how
	// many came to nodes that should not hear of the change.
	Missed int     `json:"missed"`
	Strays int     `json:"strays"`
	HubCPU float64 `json:"hub_cpu_us_per_delivery"`
}

// Fanout changes something again and again while f is connected.
func (l *Lab) Fanout(ctx context.Context, f *Fleet, cfg FanoutConfig) (FanoutResult, error) {
	cfg.Change, cfg.Changes = or(cfg.Change, ChangeRevoke), or(cfg.Changes, 20)
	cfg.Pause, cfg.Patience = or(cfg.Pause, 500*time.Millisecond), or(cfg.Patience, 10*time.Second)
	res := FanoutResult{Change: cfg.Change, Changes: cfg.Changes, Nodes: len(f.Nodes)}
	prepare, err := l.changer(ctx, f, cfg.Change, cfg.Changes)
	if err != nil {
		return res, err
	}
	// What was prepared were changes, too.
	if err := f.quiet(ctx); err != nil {
		return res, err
	}
	var all, answered []time.Duration
	var worst time.Duration
	f.record(true)
	defer f.record(false)
	before, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, err
	}
	for i := range cfg.Changes {
		site, do := prepare(i)
		want := f.members(site)
		res.Watchers = max(res.Watchers, want)
		f.take()
		start := now()
		if err := do(ctx); err != nil {
			return res, fmt.Errorf("change %d: %w", i, err)
		}
		answered = append(answered, time.Duration(now()-start))
		wctx, cancel := context.WithTimeout(ctx, cfg.Patience)
		err := waitFor(wctx, func() bool { return int(f.recorded.Load()) >= want })
		cancel()
		if err != nil && ctx.Err() != nil {
			return res, context.Cause(ctx)
		}
		if err := sleep(ctx, cfg.Pause); err != nil {
			return res, err
		}
		got, strays := f.latencies(site, start)
		res.Missed += want - len(got)
		res.Strays += strays
		one := Summarize(got)
		worst = max(worst, one.P99)
		all = append(all, got...)
		l.cfg.Progress("change %d of %d reached %d of %d watchers: %v", i+1, cfg.Changes, len(got), want, one)
	}
	after, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, err
	}
	res.Latency, res.Answered, res.WorstP99 = Summarize(all), Summarize(answered), ms(worst)
	if len(all) > 0 {
		res.HubCPU = float64((after.CPU - before.CPU).Microseconds()) / float64(len(all))
	}
	return res, nil
}

// changer returns a function that names the scope of change i, or -1 for all, and
// how to make it.
func (l *Lab) changer(ctx context.Context, f *Fleet, change string, n int) (func(int) (int, func(context.Context) error), error) {
	scope := func(site int) int {
		if l.cfg.Sites == 0 {
			return -1
		}
		return site
	}
	switch change {
	case ChangeJoin:
		apps, err := l.applicants(n)
		if err != nil {
			return nil, err
		}
		v := &verifier{root: l.root}
		return func(i int) (int, func(context.Context) error) {
			return scope(apps[i].site), func(ctx context.Context) error {
				_, err := apps[i].join(ctx, l.Hub.Addr(), v, l.tokens[apps[i].site], i)
				return err
			}
		}, nil
	case ChangeTags:
		return func(i int) (int, func(context.Context) error) {
			who := f.Nodes[i%len(f.Nodes)]
			return scope(who.Site), func(ctx context.Context) error {
				return l.Hub.Call(ctx, procUpdateNode, &dispatchv1.UpdateNodeRequest{
					Node: who.ID, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"tags"}},
					Tags: []string{fmt.Sprintf("load-%d", time.Now().UnixNano())},
				}, &dispatchv1.UpdateNodeResponse{})
			}
		}, nil
	case ChangeRevoke:
		victims, err := l.outsiders(ctx, n)
		if err != nil {
			return nil, err
		}
		return func(i int) (int, func(context.Context) error) {
			return -1, func(ctx context.Context) error {
				return l.Hub.Call(ctx, procRevokeNode, &dispatchv1.RevokeNodeRequest{
					Subject: &dispatchv1.RevokeNodeRequest_Node{Node: victims[i].ID}, Reason: "hubload",
				}, &dispatchv1.RevokeNodeResponse{})
			}
		}, nil
	}
	return nil, fmt.Errorf("unknown change %q", change)
}

// outsiders are n enrolled nodes that are part of no fleet.
func (l *Lab) outsiders(ctx context.Context, n int) ([]*Identity, error) {
	apps, err := l.applicants(n)
	if err != nil {
		return nil, err
	}
	v := &verifier{root: l.root}
	var out []*Identity
	var failed error
	for i, a := range apps {
		id, err := a.join(ctx, l.Hub.Addr(), v, l.tokens[a.site], i)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		out = append(out, id)
	}
	return out, failed
}

// quiet waits until no change has come for a while.
func (f *Fleet) quiet(ctx context.Context) error {
	const long = 500 * time.Millisecond
	for last := int64(-1); last != f.deltas.Load(); {
		last = f.deltas.Load()
		if err := sleep(ctx, long); err != nil {
			return err
		}
	}
	return nil
}

// record starts or ends the recording of arrivals.
func (f *Fleet) record(on bool) {
	f.recording.Store(on)
	f.take()
}

// take forgets what was recorded.
func (f *Fleet) take() {
	for _, n := range f.Nodes {
		n.mu.Lock()
		n.arrivals = n.arrivals[:0]
		n.mu.Unlock()
	}
	f.recorded.Store(0)
}

// members counts the nodes of a scope.
func (f *Fleet) members(site int) (count int) {
	for _, n := range f.Nodes {
		if site < 0 || n.Site == site {
			count++
		}
	}
	return count
}

// latencies returns the time from start to the first arrival at each node of a
// scope, and how many arrived elsewhere.
func (f *Fleet) latencies(site int, start int64) (in []time.Duration, strays int) {
	for _, n := range f.Nodes {
		n.mu.Lock()
		switch {
		case len(n.arrivals) == 0:
		case site < 0 || n.Site == site:
			in = append(in, time.Duration(n.arrivals[0].At-start))
		default:
			strays++
		}
		n.mu.Unlock()
	}
	return in, strays
}
