// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

const (
	// An answer about two nodes is believed for so long: tags may change.
	talkFor = 5 * time.Second
	// maxTalks bounds how many answers are kept.
	maxTalks = 65536
)

// talks knows which nodes may talk at all, in at least one direction, on some lane:
// the hub carries nothing between others. The nodes enforce the policy themselves;
// this only keeps strangers from each other's doors.
type talks struct {
	store *store.Store

	mu         sync.Mutex // guards the following
	generation uint64
	documents  []*policy.Evaluator // in force for some node
	pairs      map[[2]identity.PeerID]talk
}

type talk struct {
	ok    bool
	until time.Time
}

func newTalks(st *store.Store) *talks {
	return &talks{store: st, pairs: make(map[[2]identity.PeerID]talk)}
}

// may reports whether a and b may talk. Errors: store.ErrNotFound for a node that
// is none, store.ErrNodeRevoked for one that is not active.
func (t *talks) may(ctx context.Context, a, b identity.PeerID, generation uint64) (bool, error) {
	key := [2]identity.PeerID{a, b}
	if a.Compare(b) > 0 {
		key = [2]identity.PeerID{b, a}
	}
	now := time.Now()
	t.mu.Lock()
	if generation != t.generation {
		t.documents = nil
		clear(t.pairs)
		t.generation = generation
	}
	known, hit := t.pairs[key]
	docs := t.documents
	t.mu.Unlock()
	if hit && now.Before(known.until) {
		return known.ok, nil
	}
	var nodes []policy.Subject
	for _, id := range key {
		n, err := t.store.NodeByID(ctx, id)
		if err == nil && !n.Visible() {
			err = store.ErrNodeRevoked
		}
		if err != nil {
			return false, err
		}
		nodes = append(nodes, policy.Subject{ID: n.ID, Name: n.Name, Tags: n.Tags})
	}
	if docs == nil {
		var err error
		if docs, err = t.load(ctx); err != nil {
			return false, err
		}
	}
	ok := false
	for _, d := range docs {
		ok = ok || d.MayBegin(&nodes[0], &nodes[1]) || d.MayBegin(&nodes[1], &nodes[0])
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if generation == t.generation {
		if len(t.pairs) >= maxTalks {
			clear(t.pairs)
		}
		t.documents = docs
		t.pairs[key] = talk{ok, now.Add(talkFor)}
	}
	return ok, nil
}

// load reads the policies in force, of which there are two while one is staged.
func (t *talks) load(ctx context.Context) (out []*policy.Evaluator, err error) {
	a, err := t.store.Activation(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return []*policy.Evaluator{}, nil
	}
	if err != nil {
		return nil, err
	}
	versions := []uint64{a.Active}
	if a.Stage.State == store.StageCanary {
		versions = append(versions, a.Stage.Candidate)
	}
	for _, v := range versions {
		_, text, err := t.store.Policy(ctx, v)
		if err != nil {
			return nil, err
		}
		d, err := policy.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("read policy: %w", err)
		}
		e, err := policy.NewEvaluator(d)
		if err != nil {
			return nil, fmt.Errorf("read policy: %w", err)
		}
		out = append(out, e)
	}
	return out, nil
}

// MayTalk reports whether two nodes may talk in at least one direction. Where that
// cannot be found out, they may not.
func (a *API) MayTalk(ctx context.Context, x, y identity.PeerID) bool {
	ok, err := a.talks.may(ctx, x, y, a.cfg.Feed.Policy())
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrNodeRevoked) && ctx.Err() == nil {
		a.log.ErrorContext(ctx, "look up who may talk", "err", err)
	}
	return ok && err == nil
}
