// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
)

// Questions to the hub about peers that it did not tell of.
const (
	maxAsking = 8                // under way at a time; a hub takes 16 calls on a connection
	askLife   = 10 * time.Second // of one
	// absentLife is how long a peer that the hub does not know is not asked for
	// again, failedLife the same where the hub could not be asked.
	absentLife = 5 * time.Second
	failedLife = time.Second
	maxAbsent  = 1024
)

var errBusy = errors.New("too many peers are asked for")

// Query asks for one peer. Exactly one field is set.
type Query struct {
	ID   identity.PeerID
	Name string
	Addr netip.Addr
}

// Resolved is the answer to a Query.
type Resolved struct {
	Peer     registry.Peer
	Online   bool
	Instance uint64
}

// Ask takes the packet path's word that packets wait for whoever has a.
func (e *Engine) Ask(a netip.Addr) {
	e.box.post(func() {
		if e.cfg.Dataplane.HasRoute(a) {
			e.cfg.Dataplane.Resolved(a, true, 0)
			return
		}
		e.resolve(Query{Addr: a}, func(err error) {
			wait := failedLife
			if errors.Is(err, registry.ErrUnknown) {
				wait = absentLife
			}
			e.cfg.Dataplane.Resolved(a, e.cfg.Dataplane.HasRoute(a), wait)
		})
	})
}

// Resolve asks the hub for a peer and waits until it is known or nobody is.
func (e *Engine) Resolve(ctx context.Context, q Query) error {
	done := make(chan error, 1)
	e.box.post(func() { e.resolve(q, func(err error) { done <- err }) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-e.box.closed:
		return net.ErrClosed
	}
}

// resolve asks the hub, once for all who want to know the same. done is called by
// run, when the peer is known and routed.
func (e *Engine) resolve(q Query, done func(error)) {
	if e.cfg.Resolve == nil {
		done(registry.ErrUnknown)
		return
	}
	if who, ok := e.asking[q]; ok {
		e.asking[q] = append(who, done)
		return
	}
	if len(e.asking) >= maxAsking {
		done(errBusy)
		return
	}
	e.asking[q] = []func(error){done}
	run := e.ctx
	e.background.Go(func() {
		ctx, cancel := context.WithTimeout(run, askLife)
		defer cancel()
		r, err := e.cfg.Resolve(ctx, q)
		e.box.post(func() { e.resolved(q, r, err) })
	})
}

func (e *Engine) resolved(q Query, r Resolved, err error) {
	if err == nil {
		e.changed(e.cfg.Registry.Apply(e.others([]registry.Peer{r.Peer}), nil))
		if p := e.peers[r.Peer.ID]; p != nil {
			e.presence[r.Peer.ID] = presence{r.Online, r.Instance}
			p.presence(r.Online, r.Instance, time.Now())
		} else {
			err = registry.ErrUnknown // its keys are not its own, or it is we
		}
		if e.dirty {
			e.rebuild()
		}
	} else {
		e.cfg.Logger.Debug("ask the hub for a peer", "id", q.ID.Short(), "name", q.Name, "address", q.Addr.String(), "err", err)
	}
	who := e.asking[q]
	delete(e.asking, q)
	for _, done := range who {
		done(err)
	}
}

// meet asks for the sender of a signal whom the hub did not tell of.
func (e *Engine) meet(id identity.PeerID, now time.Time) {
	if until, ok := e.absent[id]; ok && now.Before(until) {
		return
	}
	e.resolve(Query{ID: id}, func(err error) {
		if err == nil {
			delete(e.absent, id)
			return
		}
		if len(e.absent) >= maxAbsent {
			clear(e.absent)
		}
		e.absent[id] = time.Now().Add(absentLife)
	})
}
