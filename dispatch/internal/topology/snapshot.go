// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// scope is what is cached of one.
type scope struct {
	// mu is held while the database is read anew: all watchers of the scope want the
	// same then, those of others do not wait for it.
	mu      sync.Mutex
	countRV uint64
	size    int
	counted bool
	snap    *cached
}

type cached struct {
	state  store.State
	chunks [][]byte
}

// members returns how many a scope has, up to a few changes ago.
func (f *Feed) members(ctx context.Context, site string) (int, error) {
	sc := f.scopeOf(site)
	sc.mu.Lock()
	defer sc.mu.Unlock()
	rv := f.RV()
	if sc.counted && sc.holds(rv, uint64(f.lazy)) {
		return sc.size, nil
	}
	n, err := f.src.ScopeSize(ctx, site)
	if err != nil {
		return 0, err
	}
	sc.size, sc.countRV, sc.counted = n, rv, true
	return n, nil
}

// holds reports whether the count still tells at rv on which side of lazy the scope
// is. A change adds one member at most; a large scope may be so a little longer.
func (sc *scope) holds(rv, lazy uint64) bool {
	size, since := uint64(sc.size), rv-sc.countRV
	return since == 0 || size+since <= lazy || size > lazy && since <= maxStale
}

// scopeOf returns what is cached of a site.
func (f *Feed) scopeOf(site string) *scope {
	f.cacheMu.Lock()
	defer f.cacheMu.Unlock()
	sc := f.scope[site]
	if sc == nil {
		sc = &scope{}
		f.scope[site] = sc
	}
	return sc
}

// snapshot returns the encoded snapshot of the watcher's scope, or of its
// interests alone.
func (w *Watch) snapshot(ctx context.Context) (*cached, error) {
	f := w.feed
	only := w.Interested()
	if w.Lazy {
		return f.read(ctx, w.site, append([]identity.PeerID{}, only...))
	}
	sc := f.scopeOf(w.site)
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.snap == nil || f.RV() > sc.snap.state.RV+maxStale {
		c, err := f.read(ctx, w.site, nil)
		if err != nil {
			return nil, err
		}
		sc.snap = c
	}
	if len(only) == 0 {
		return sc.snap, nil
	}
	// Those that it follows come after, and as they are now; the changes since the
	// cached snapshot follow and are the same.
	extra, err := f.read(ctx, w.site, only)
	if err != nil {
		return nil, err
	}
	return &cached{state: sc.snap.state, chunks: slices.Concat(sc.snap.chunks, extra.chunks)}, nil
}

func (f *Feed) read(ctx context.Context, site string, only []identity.PeerID) (*cached, error) {
	s, err := f.src.Snapshot(ctx, site, only)
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	chunks, err := EncodeSnapshot(&s)
	if err != nil {
		return nil, err
	}
	return &cached{state: s.State, chunks: chunks}, nil
}
