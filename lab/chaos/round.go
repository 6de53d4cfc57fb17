// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

const (
	// killPatience is when a hub is killed whose requests do not come.
	killPatience = time.Second
	// catchUp bounds how long watchers may take to see what the database holds.
	catchUp = 10 * time.Second
)

// Moments of a kill.
const (
	anyTime  = "any time"
	starting = "while starting"
	sent     = "request sent"
	answered = "answer received"
)

// plan is what the seed decides about a round.
type plan struct {
	moment string
	n      int           // of the request or answer that triggers
	delay  time.Duration // after it, or after the load's begin
	calm   bool          // the watchers are compared before the load begins
}

func (r *runner) plan() plan {
	p := plan{calm: r.rng.IntN(5) < 2}
	switch x := r.rng.IntN(20); {
	case x < 8:
		p.moment, p.n = sent, 1+r.rng.IntN(60)
		p.delay = time.Duration(r.rng.IntN(3000)) * time.Microsecond
		if r.rng.IntN(3) == 0 {
			p.delay = 0
		}
	case x < 13:
		p.moment, p.n = answered, 1+r.rng.IntN(60)
	case x < 18:
		p.moment, p.delay = anyTime, time.Duration(r.rng.IntN(400_000))*time.Microsecond
	default:
		p.moment, p.delay, p.calm = starting, time.Duration(r.rng.IntN(250_000))*time.Microsecond, false
	}
	return p
}

// round starts the hub, puts it under load, kills it and checks.
func (r *runner) round(ctx context.Context) error {
	p := r.plan()
	if p.moment == starting {
		if err := r.hub.start(ctx); err != nil {
			return err
		}
		wait(ctx, p.delay)
		return r.killed(ctx, p, func() []*op { return nil })
	}
	if err := r.start(ctx, false); err != nil {
		return err
	}
	for _, w := range r.watchers {
		w.connect()
	}
	if p.calm {
		r.compare(ctx)
		r.admission(ctx)
	}
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	trigger, fired := r.arm(p)
	workers := r.load.run(lctx, r.rep.Kills, r.db)
	t := time.NewTimer(killPatience)
	defer t.Stop()
	if p.moment == anyTime {
		t.Reset(p.delay)
	}
	select {
	case <-trigger:
	case <-t.C:
	case <-r.hub.done:
		if fired.Load() {
			break
		}
		r.fail("hub ended by itself:\n%s", r.hub.tail())
	case <-ctx.Done():
	}
	return r.killed(ctx, p, func() []*op {
		stop()
		workers.Wait()
		return r.load.ops
	})
}

// arm makes the clients kill the hub at the planned request or answer, in the
// very goroutine that sees it, and tells when they do.
func (r *runner) arm(p plan) (<-chan struct{}, *atomic.Bool) {
	done := make(chan struct{})
	var count atomic.Int64
	var fired atomic.Bool
	process := r.hub.cmd.Process
	hook := func() {
		if count.Add(1) != int64(p.n) {
			return
		}
		wait(context.Background(), p.delay)
		fired.Store(true)
		_ = process.Kill()
		close(done)
	}
	r.load.c.sent.Store(nil)
	r.load.c.answered.Store(nil)
	switch p.moment {
	case sent:
		r.load.c.sent.Store(&hook)
	case answered:
		r.load.c.answered.Store(&hook)
	}
	return done, &fired
}

// wait waits for short times precisely enough.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// killed kills the hub, waits for its clients, and compares what they know with
// what is in the database.
func (r *runner) killed(ctx context.Context, p plan, settle func() []*op) error {
	r.hub.kill()
	r.rep.Kills++
	r.rep.ByMoment[p.moment]++
	ops := settle()
	r.load.c.sent.Store(nil)
	r.load.c.answered.Store(nil)
	for _, w := range r.watchers {
		w.disconnect()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	after, err := readState(ctx, r.hub.dir, r.dir, r.db)
	if err != nil {
		r.fail("%v", err)
		return fmt.Errorf("check after kill %d: %w", r.rep.Kills, err)
	}
	r.verify("after the kill", after.consistent(r.db))
	if p.moment == starting {
		r.load.active = nil
	}
	r.verifyOps(ops, r.db, after)
	for _, w := range r.watchers {
		r.verify("topology", w.takeProblems())
		if epoch, rv := w.at(); epoch != 0 && epoch == after.epoch && rv > uint64(after.rv) {
			r.fail("watcher %s was told of rv %d, but the database is at %d", w.id[:8], rv, after.rv)
		}
	}
	for _, o := range ops {
		if o.kind == opJoin && o.out == lost {
			r.load.again = append(r.load.again, o.join)
		}
	}
	r.db = after
	return nil
}

// compare waits until every watcher has resumed and demands that it sees what the
// database holds. There is no load meanwhile.
func (r *runner) compare(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	for _, w := range r.watchers {
		site := ""
		if n := r.db.byID[w.id]; n != nil {
			site = n.site
		}
		r.rep.Digests++
		if err := w.waitFor(ctx, r.db.digest(site, w.id)); err != nil {
			r.fail("after the restart: %v", err)
		}
	}
}

// admission lets machines use the certificates that they were given: those whose
// revocation or deletion is in the database are refused, the others are served.
func (r *runner) admission(ctx context.Context) {
	subjects := slices.Sorted(maps.Keys(r.load.machines))
	for range min(4, len(subjects)) {
		sub := subjects[r.rng.IntN(len(subjects))]
		m := r.load.machines[sub]
		n := r.db.nodes[sub[len("node:"):]]
		cert := m.certificate()
		hc, done := r.load.c.node(&cert)
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := dispatchv1connect.NewPolicyServiceClient(hc, r.load.c.url()).GetPolicy(ctx, &dispatchv1.GetPolicyRequest{})
		cancel()
		done()
		if want := n != nil && n.state == "active"; want != (err == nil) {
			r.fail("certificate of %s: may use it %v, got %v", m.res.GetNodeId(), want, err)
		}
		r.rep.Admissions++
	}
}

// finish compares everything once more on a hub that is left alone.
func (r *runner) finish(ctx context.Context) error {
	if err := r.start(ctx, false); err != nil {
		return err
	}
	for _, w := range r.watchers {
		w.connect()
	}
	r.compare(ctx)
	r.admission(ctx)
	for _, w := range r.watchers {
		w.disconnect()
		r.verify("topology", w.takeProblems())
	}
	for kind, c := range r.rep.Ops {
		if c.Acked == 0 && c.Lost == 0 && c.Unserved == 0 {
			r.fail("%s was refused each time", kind)
		}
	}
	for _, kind := range r.cfg.Require {
		if c := r.rep.Ops[kind]; c == nil || c.Acked == 0 {
			r.fail("no %s was acknowledged in the whole run", kind)
		}
	}
	return nil
}

// firstStarts kills hubs that have never run before, and demands that the next
// start makes a working hub of whatever that left.
func (r *runner) firstStarts(ctx context.Context) error {
	for i := range max(3, r.cfg.Kills/10) {
		h, err := newHub(ctx, r.cfg.Bin, filepath.Join(r.dir, "first"), r.rng)
		if err != nil {
			return err
		}
		r.hub = h
		for range 1 + r.rng.IntN(3) {
			if err := h.start(ctx); err != nil {
				return err
			}
			wait(ctx, time.Duration(r.rng.IntN(200_000))*time.Microsecond)
			h.kill()
			r.rep.FirstStarts++
		}
		if err := h.firstUse(ctx); err != nil {
			r.fail("interrupted first start %d: %v", i, err)
			return nil
		}
		if err := removeAll(h); err != nil {
			return err
		}
	}
	return nil
}

// firstUse starts the hub and lets one machine join.
func (h *hub) firstUse(ctx context.Context) error {
	if err := h.start(ctx); err != nil {
		return err
	}
	defer h.kill()
	if err := h.waitReady(ctx); err != nil {
		return err
	}
	c, err := newClients(ctx, h)
	if err != nil {
		return err
	}
	l := newLoad(c, 0)
	if o := l.createToken(); o.err != nil {
		return fmt.Errorf("create token: %w", o.err)
	}
	m, err := l.machine(l.tokens[0])
	if err != nil {
		return err
	}
	if o := l.join(m); o.err != nil {
		return fmt.Errorf("join: %w", o.err)
	}
	cert := m.certificate()
	hc, done := c.node(&cert)
	defer done()
	if _, err := dispatchv1connect.NewPolicyServiceClient(hc, c.url()).GetPolicy(ctx, &dispatchv1.GetPolicyRequest{}); err != nil {
		return fmt.Errorf("use certificate: %w", err)
	}
	return nil
}
