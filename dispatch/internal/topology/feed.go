// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

const (
	ringSize = 2048
	// presenceEvery is how often at most the watchers of a scope are woken where
	// nothing but presence has changed. The first change is told at once.
	presenceEvery = time.Second
	// maxStale is how many changes a cached snapshot or count may be behind before
	// it is read again: a watcher gets the rest as deltas.
	maxStale = 256
	// LazyAbove is how many members a scope may have before its peers are no longer
	// pushed: each node of a mesh of n would otherwise hold n peers and hear of n.
	LazyAbove = 512
	// MaxInterests is how many peers outside of its scope a watcher may follow.
	MaxInterests = 1024
)

// ErrInterests is returned for a watcher that follows MaxInterests peers already.
var ErrInterests = errors.New("watcher follows too many peers")

// Source is where a Feed reads what the ring no longer holds.
type Source interface {
	Snapshot(ctx context.Context, site string, only []identity.PeerID) (store.Snapshot, error)
	Since(ctx context.Context, rv uint64, keep func(*store.Event) bool) ([]store.Event, store.State, error)
	ScopeSize(ctx context.Context, site string) (int, error)
}

// Feed starts watchers and tells them of what happens. It is safe for concurrent
// use.
type Feed struct {
	src   Source
	epoch uint64
	lazy  int
	size  int // of each ring

	policy atomic.Uint64

	mu    sync.RWMutex // guards the following; Publish holds it for a whole batch
	rv    uint64
	seq   uint64
	rings map[string]*ring
	quiet *ring // of lazy watchers: what concerns all
	every *ring // of taps: everything; unused while there are none
	taps  int
	// live are the nodes' watches, followers those that follow a node.
	live      map[identity.PeerID]*Watch
	followers map[identity.PeerID]map[*Watch]struct{}

	cacheMu sync.Mutex // guards scope, not what it holds
	scope   map[string]*scope
}

// Limits are those of a feed; zero means the default.
type Limits struct {
	// LazyAbove is how many members a scope may have before its peers are no longer
	// pushed; 0 means LazyAbove.
	LazyAbove int
	// Ring is how many events a watcher may be behind; 0 means 2048. One that is
	// further behind has to come back, and catches up from the database.
	Ring int
}

// NewFeed returns the feed of a mesh of an epoch that is at st.
func NewFeed(src Source, epoch uint64, st store.State, l Limits) *Feed {
	if l.LazyAbove == 0 {
		l.LazyAbove = LazyAbove
	}
	if l.Ring == 0 {
		l.Ring = ringSize
	}
	f := &Feed{
		src: src, epoch: epoch, lazy: l.LazyAbove, size: l.Ring, rv: st.RV,
		rings: make(map[string]*ring), quiet: newRing(l.Ring), every: newRing(l.Ring),
		live: make(map[identity.PeerID]*Watch), followers: make(map[identity.PeerID]map[*Watch]struct{}),
		scope: make(map[string]*scope),
	}
	f.policy.Store(st.Policy)
	return f
}

// Commit is the store's Publish.
func (f *Feed) Commit(events []store.Event) {
	out := make([]Event, len(events))
	for i := range events {
		out[i] = eventOf(&events[i])
		f.policy.Store(max(f.policy.Load(), events[i].Policy)) // the writer is alone
	}
	f.Publish(out...)
}

// Policy returns the number of the newest activation.
func (f *Feed) Policy() uint64 { return f.policy.Load() }

// Publish hands events to the watchers of their scopes and to those that follow
// their nodes. It never blocks on any of them.
func (f *Feed) Publish(events ...Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	woken := make(map[*ring]bool) // true: at once
	put := func(r *ring, e Event) {
		switch {
		case r == nil:
		case e.RV == 0:
			r.hold(e)
			woken[r] = woken[r] || r.crowded()
		default:
			r.put(e)
			woken[r] = true
		}
	}
	for _, e := range events {
		f.seq++
		e.seq = f.seq
		f.rv = max(f.rv, e.RV)
		if f.taps > 0 {
			put(f.every, e)
		}
		if e.Scope == store.ScopeAll {
			put(f.quiet, e)
			for _, r := range f.rings {
				put(r, e)
			}
			continue
		}
		put(f.rings[e.Scope], e)
		for w := range f.followers[e.Node] {
			if w.Lazy || w.site != e.Scope {
				w.deliver(e)
			}
		}
	}
	for r, now := range woken {
		if now {
			r.rouse()
		} else {
			f.rouseSoonLocked(r)
		}
	}
}

// rouseSoonLocked wakes the watchers of r for presence alone, not more often than
// each presenceEvery. Where a fleet comes back, n nodes of a scope would otherwise
// make n wake-ups of n watchers.
func (f *Feed) rouseSoonLocked(r *ring) {
	if r.pending {
		return
	}
	wait := presenceEvery - time.Since(r.roused)
	if wait <= 0 {
		r.rouse()
		return
	}
	r.pending = true
	time.AfterFunc(wait, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.pending {
			r.rouse()
		}
	})
}

// RV returns the newest published resource version.
func (f *Feed) RV() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.rv
}

// Watchers returns how many watches are open.
func (f *Feed) Watchers() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.live)
}

func eventOf(e *store.Event) Event {
	return Event{RV: e.RV, Scope: e.Scope, Node: e.Node, Raw: e.Encoded}
}

// Request is what a watcher asks for.
type Request struct {
	Node identity.PeerID
	Site string
	// Epoch and RV are what it has stored; epoch 0 means nothing.
	Epoch, RV uint64
	// Lazy tells that this comes from a lazy watch.
	Lazy bool
	// Interests are peers that it follows in any case.
	Interests []identity.PeerID
}

// Watch is the state of one watcher's stream. It has one user; Close is safe for
// concurrent use.
type Watch struct {
	// Snapshot tells whether Chunks, possibly none, replace all that the watcher
	// has.
	Snapshot bool
	Chunks   [][]byte
	// Lazy tells that the scope is too large to be pushed.
	Lazy bool
	// RV is what Chunks, or the watcher's own state, stand for; State is where the
	// mesh was when the watch began.
	RV    uint64
	State store.State
	// Backlog are the changes after RV that were committed before the cursor.
	Backlog []Event

	feed *Feed
	node identity.PeerID
	site string
	ring *ring
	at   uint64 // place in ring
	// entered is the newest rv when at was taken: what is newer comes by the ring.
	entered uint64
	sent    uint64 // newest rv delivered or passed over

	wake chan struct{} // capacity 1
	// The feed's lock guards the following.
	interests map[identity.PeerID]struct{}
	extra     []Event // of nodes that it follows and that are not in its ring
	overflow  bool    // there were too many
	tap       bool
}

// Start begins a watch. Close it after use.
func (f *Feed) Start(ctx context.Context, r Request) (*Watch, error) {
	if len(r.Interests) > MaxInterests {
		return nil, ErrInterests
	}
	w := &Watch{feed: f, node: r.Node, site: r.Site, wake: make(chan struct{}, 1)}
	size, err := f.members(ctx, r.Site)
	if err != nil {
		return nil, err
	}
	w.Lazy = size > f.lazy
	// Its place comes first: what is committed while the database is read then
	// arrives twice rather than never, and rv tells the copies apart.
	f.enter(w, r.Interests)
	if err := w.begin(ctx, r); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// enter makes w part of the feed. An older watch of the node hears nothing more
// of what it follows.
func (f *Feed) enter(w *Watch, interests []identity.PeerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.live[w.node]; old != nil {
		f.leaveLocked(old)
	}
	f.live[w.node] = w
	w.ring = f.quiet
	if !w.Lazy {
		if f.rings[w.site] == nil {
			f.rings[w.site] = newRing(f.size)
		}
		w.ring = f.rings[w.site]
	}
	w.at, w.entered = w.ring.next, f.rv
	for _, id := range interests {
		f.followLocked(w, id)
	}
}

func (f *Feed) followLocked(w *Watch, id identity.PeerID) {
	if w.interests == nil {
		w.interests = make(map[identity.PeerID]struct{})
	}
	w.interests[id] = struct{}{}
	if f.followers[id] == nil {
		f.followers[id] = make(map[*Watch]struct{})
	}
	f.followers[id][w] = struct{}{}
}

func (f *Feed) leaveLocked(w *Watch) {
	for id := range w.interests {
		if delete(f.followers[id], w); len(f.followers[id]) == 0 {
			delete(f.followers, id)
		}
	}
	w.interests = nil
	if f.live[w.node] == w {
		delete(f.live, w.node)
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	w.feed.mu.Lock()
	defer w.feed.mu.Unlock()
	w.feed.leaveLocked(w)
	if w.tap {
		w.tap = false
		w.feed.taps--
	}
}

// Tap returns a watch that is told of everything from now on, whatever its scope,
// for those who look after the fleet. Close it after use.
func (f *Feed) Tap() *Watch {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taps++
	return &Watch{feed: f, ring: f.every, at: f.every.next, wake: make(chan struct{}, 1), tap: true, sent: f.rv}
}

// deliver gives a followed node's event to w. The feed's lock is held.
func (w *Watch) deliver(e Event) {
	if e.RV == 0 {
		// What it was not told yet of the node's presence is past.
		w.extra = slices.DeleteFunc(w.extra, func(x Event) bool { return x.RV == 0 && x.Node == e.Node })
	}
	if len(w.extra) >= MaxInterests {
		w.extra, w.overflow = nil, true
	}
	if !w.overflow {
		w.extra = append(w.extra, e)
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Follow makes the node's watch, where one is open, tell of a peer from now on.
// Errors: ErrInterests.
func (f *Feed) Follow(node, peer identity.PeerID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.live[node]
	if w == nil {
		return nil
	}
	if _, ok := w.interests[peer]; !ok && len(w.interests) >= MaxInterests {
		return ErrInterests
	}
	f.followLocked(w, peer)
	return nil
}

func (w *Watch) begin(ctx context.Context, r Request) error {
	// A lazy watcher knows too little to go on in a scope that pushes.
	if r.Epoch == w.feed.epoch && (w.Lazy || !r.Lazy) {
		if r.RV == w.entered {
			// Nothing was missed, as with nearly all nodes of a fleet that comes back:
			// there is nothing to ask the database for.
			w.RV, w.sent, w.State = r.RV, r.RV, store.State{RV: r.RV, Policy: w.feed.Policy()}
			return nil
		}
		err := w.backlog(ctx, r.RV)
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
	c, err := w.snapshot(ctx)
	if err != nil {
		return err
	}
	w.Snapshot, w.Chunks = true, c.chunks
	return w.backlog(ctx, c.state.RV)
}

// Wants reports whether the watcher is to hear of a node of a scope.
func (w *Watch) Wants(scope string, node identity.PeerID) bool {
	if scope == store.ScopeAll || scope == w.site && !w.Lazy {
		return true
	}
	if node.IsZero() {
		return false
	}
	w.feed.mu.RLock()
	defer w.feed.mu.RUnlock()
	_, ok := w.interests[node]
	return ok
}

// Interested returns the peers that the watcher follows in any case.
func (w *Watch) Interested() []identity.PeerID {
	w.feed.mu.RLock()
	defer w.feed.mu.RUnlock()
	return slices.Collect(maps.Keys(w.interests))
}

func (w *Watch) backlog(ctx context.Context, rv uint64) error {
	events, st, err := w.feed.src.Since(ctx, rv, func(e *store.Event) bool { return w.Wants(e.Scope, e.Node) })
	if err != nil {
		return err
	}
	w.RV, w.sent, w.State = rv, st.RV, st
	for i := range events {
		w.Backlog = append(w.Backlog, eventOf(&events[i]))
	}
	return nil
}

// Next returns the events that came since the last call, none of them twice, and
// waits for one. It returns none where tick fires first. The slice is valid until
// the next call, which may get it as buf. Errors: ErrLagged, after which the
// watcher has to come back with what it has, or that of ctx.
func (w *Watch) Next(ctx context.Context, buf []Event, tick <-chan time.Time) ([]Event, error) {
	ticked := false
	for {
		out, rv, woken, err := w.take(buf[:0])
		if err != nil {
			return nil, err
		}
		if len(out) > 0 {
			return out, nil
		}
		if ticked {
			w.sent = max(w.sent, rv) // all up to there concerned others
			return nil, nil
		}
		select {
		case <-woken:
		case <-w.wake:
		case <-tick:
			ticked = true
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take returns what is there, the newest rv published, and a channel that is
// closed when the ring gets more.
func (w *Watch) take(dst []Event) (out []Event, rv uint64, woken <-chan struct{}, err error) {
	f := w.feed
	f.mu.RLock()
	defer f.mu.RUnlock()
	if w.overflow {
		return dst, f.rv, nil, ErrLagged
	}
	if dst, err = w.ring.read(dst, &w.at); err != nil {
		return dst, f.rv, nil, err
	}
	if len(w.extra) > 0 {
		dst = append(dst, w.extra...)
		w.extra = nil
		slices.SortFunc(dst, bySeq)
	}
	out = dst[:0]
	for _, e := range coalesce(dst) {
		if e.RV != 0 {
			if e.RV <= w.sent {
				continue
			}
			w.sent = e.RV
		}
		out = append(out, e)
	}
	return out, f.rv, w.ring.wake, nil
}

// Sent returns the newest rv that the watcher has been given or has no use for.
func (w *Watch) Sent() uint64 { return w.sent }
