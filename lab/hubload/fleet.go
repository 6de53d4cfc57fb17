// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// FleetConfig is how simulated nodes behave.
type FleetConfig struct {
	// NoSignal leaves the signalling stream closed, to see what it costs.
	NoSignal bool
	// FirstRetry is what the first attempt after a lost connection is spread over;
	// 0 means FirstRetry.
	FirstRetry time.Duration
}

// Fleet is many nodes in this process. Its methods are safe for concurrent use.
type Fleet struct {
	Nodes []*Node

	cfg      FleetConfig
	addr     string
	verifier *verifier

	up                                     atomic.Int64 // nodes connected now
	losses, failures, disorder             atomic.Int64
	deltas, presence, bookmarks, snapshots atomic.Int64
	policies, nacks                        atomic.Int64
	recording                              atomic.Bool
	recorded                               atomic.Int64 // arrivals
	onSignal                               atomic.Pointer[func(*Node, []byte)]

	wg     sync.WaitGroup
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex // guards errors
	errors map[string]int
}

// newFleet makes a fleet of enrolled nodes, none of them connected.
func newFleet(addr string, root *x509.Certificate, ids []Identity, cfg FleetConfig) *Fleet {
	if cfg.FirstRetry == 0 {
		cfg.FirstRetry = FirstRetry
	}
	f := &Fleet{cfg: cfg, addr: addr, verifier: &verifier{root: root}, errors: make(map[string]int)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for i, id := range ids {
		f.Nodes = append(f.Nodes, &Node{Identity: id, index: i, fleet: f})
	}
	f.wg.Go(f.keep)
	return f
}

// keep looks after the idle connections of all nodes.
func (f *Fleet) keep() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			for _, n := range f.Nodes {
				n.keep()
			}
		case <-f.ctx.Done():
			return
		}
	}
}

// Connect starts the nodes [from, to), rate of them per second (0: all at once),
// and returns when all are connected.
func (f *Fleet) Connect(ctx context.Context, from, to, rate int) error {
	const step = 20 * time.Millisecond
	t := time.NewTicker(step)
	defer t.Stop()
	start := time.Now()
	for i := from; i < to; {
		due := to
		if rate > 0 {
			due = min(to, from+1+int(time.Since(start).Seconds()*float64(rate)))
		}
		for ; i < due; i++ {
			n := f.Nodes[i]
			f.wg.Go(func() { n.run(f.ctx) })
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return f.WaitUp(ctx, to)
}

// WaitUp waits until n nodes are connected.
func (f *Fleet) WaitUp(ctx context.Context, n int) error {
	err := waitFor(ctx, func() bool { return f.Up() >= n })
	if err != nil {
		err = fmt.Errorf("wait for %d nodes: %d are connected: %w%s", n, f.Up(), err, f.Errors())
	}
	return err
}

// Up is how many nodes are connected.
func (f *Fleet) Up() int { return int(f.up.Load()) }

// Close disconnects all nodes.
func (f *Fleet) Close() {
	f.cancel()
	f.wg.Wait()
}

// note counts an error by its text, without what differs from node to node.
func (f *Fleet) note(err error) {
	if err == nil || f.ctx.Err() != nil {
		return
	}
	text := err.Error()
	if i := strings.Index(text, "->"); i >= 0 { // addresses
		if j := strings.Index(text[i:], ": "); j >= 0 {
			text = text[i+j+2:]
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errors) < 100 || f.errors[text] > 0 {
		f.errors[text]++
	}
}

// Errors lists why connections failed or ended, one a line, empty where none did.
func (f *Fleet) Errors() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(f.errors)) {
		fmt.Fprintf(&b, "\n  %d x %.200s", f.errors[k], k)
	}
	return b.String()
}

// Views adds up what the nodes know.
func (f *Fleet) Views() (sum View) {
	for _, n := range f.Nodes {
		v := n.View()
		sum.Snapshots += v.Snapshots
		sum.Resyncs += v.Resyncs
		sum.Deltas += v.Deltas
		sum.Duplicates += v.Duplicates
		sum.Missing += v.Missing
	}
	return sum
}

// waitFor polls: what it waits for are counters of ten thousand goroutines.
func waitFor(ctx context.Context, ok func() bool) error {
	t := time.NewTicker(2 * time.Millisecond)
	defer t.Stop()
	for !ok() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
