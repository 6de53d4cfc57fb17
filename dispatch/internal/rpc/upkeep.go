// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

const (
	upkeepEvery = time.Minute
	// ephemeralAge is how long an ephemeral node may be away, and how long it has
	// for its first stream.
	ephemeralAge = time.Hour
)

// seen notes that a node's stream ended now.
func (a *API) seen(id identity.PeerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left[id] = time.Now()
}

// Upkeep stores in batches when nodes were last seen, deletes ephemeral nodes that
// have gone, and forgets what has expired long ago, until ctx ends.
func (a *API) Upkeep(ctx context.Context) error {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			// What is noted now would be lost, and with it the nodes' hour.
			return a.flushSeen(context.WithoutCancel(ctx))
		case <-tick.C:
		}
		if err := a.upkeep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			a.log.ErrorContext(ctx, "upkeep", "err", err)
		}
	}
}

func (a *API) upkeep(ctx context.Context, now time.Time) error {
	if err := a.flushSeen(ctx); err != nil {
		return err
	}
	gone, err := a.store.ExpireEphemeral(ctx, ephemeralAge, now, func(id identity.PeerID) bool {
		_, _, online := a.cfg.Registry.Lookup(id)
		return online
	})
	for _, id := range gone {
		a.dropped(id)
		a.log.InfoContext(ctx, "ephemeral node deleted", "node", id.Short())
	}
	if err != nil {
		return err
	}
	return a.store.PruneCerts(ctx, now)
}

func (a *API) flushSeen(ctx context.Context) error {
	a.mu.Lock()
	left := a.left
	a.left = make(map[identity.PeerID]time.Time)
	a.mu.Unlock()
	if len(left) == 0 {
		return nil
	}
	return a.store.Touch(ctx, left)
}
