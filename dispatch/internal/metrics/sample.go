// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// sampleBatch is how many nodes share a transaction: one for a whole fleet would
	// make joins wait for it.
	sampleBatch = 512
	flushTime   = 2 * time.Second
)

// Sink keeps the newest reports, encoded and without paths. The store is one.
type Sink interface {
	// SaveStatuses writes all of batch in one transaction and leaves out nodes that
	// are no more. It keeps no reference.
	SaveStatuses(ctx context.Context, batch []store.Status) error
	// Statuses calls f for each that is kept.
	Statuses(ctx context.Context, f func(store.Status) error) error
}

// Load reads what an earlier run of the hub wrote. It is called before the first
// report.
func (r *Reports) Load(ctx context.Context) error {
	if r.cfg.Sink == nil {
		return nil
	}
	var bad int
	err := r.cfg.Sink.Statuses(ctx, func(st store.Status) error {
		var m dispatchv1.ReportMetricsRequest
		if proto.Unmarshal(st.Report, &m) != nil || Validate(&m) != nil {
			bad++
			return nil
		}
		n := &node{
			tried: never, last: min(r.now(), time.Until(st.Sampled)+r.now()), cur: stateOf(&m), sessions: m.GetSessions(),
			exact: countersOf(&m, &counters{}), denied: appendRules(nil, &m),
		}
		n.exact[denied] = growth(nil, n.denied)
		s := r.shard(st.Node)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.nodes[st.Node] = n
		return nil
	})
	if bad > 0 {
		r.log.WarnContext(ctx, "stored node reports are not readable", "nodes", bad)
	}
	return err
}

// Run writes the newest reports to the Sink, once more when ctx ends, and then
// returns. A Sink that fails gets them again the next time.
func (r *Reports) Run(ctx context.Context) {
	t := time.NewTicker(r.cfg.SampleEvery)
	defer t.Stop()
	failing := false
	for ctx.Err() == nil {
		select {
		case <-t.C:
			r.expire()
			err := r.Flush(ctx)
			if err != nil && ctx.Err() == nil && !failing {
				r.log.ErrorContext(ctx, "write node reports", "err", err)
			}
			failing = err != nil
		case <-ctx.Done():
		}
	}
	fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if err := r.Flush(fctx); err != nil {
		r.log.ErrorContext(fctx, "write node reports", "err", err)
	}
}

// Flush writes what is newer than the Sink's. This is no mutation by anybody, so
// it is not audited.
func (r *Reports) Flush(ctx context.Context) error {
	if r.cfg.Sink == nil {
		return nil
	}
	batch := make([]store.Status, 0, sampleBatch)
	nodes := make([]*node, 0, sampleBatch)
	save := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := r.cfg.Sink.SaveStatuses(ctx, batch)
		if err != nil {
			for i, n := range nodes {
				s := r.shard(batch[i].Node)
				s.mu.Lock()
				n.dirty = true
				s.mu.Unlock()
			}
		}
		clear(batch)
		batch, nodes = batch[:0], nodes[:0]
		return err
	}
	for i := range r.shards {
		s := &r.shards[i]
		for more := true; more; {
			more = false
			s.mu.Lock()
			wall, now := time.Now(), r.now()
			for id, n := range s.nodes {
				if !n.dirty {
					continue
				}
				if more = len(batch) == sampleBatch; more {
					break
				}
				b, err := proto.Marshal(n.message(false))
				n.dirty = false
				if err != nil {
					r.log.ErrorContext(ctx, "encode node report", "node", id.Short(), "err", err)
					continue
				}
				batch, nodes = append(batch, store.Status{Node: id, Sampled: wall.Add(n.last - now), Report: b}), append(nodes, n)
			}
			s.mu.Unlock()
			if more {
				if err := save(); err != nil {
					return err
				}
			}
		}
	}
	return save()
}
