// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func rvs(events []Event) (out []uint64) {
	for _, e := range events {
		out = append(out, e.RV)
	}
	return out
}

func seqs(events []Event) (out []byte) {
	for _, e := range events {
		out = append(out, e.Raw...)
	}
	return out
}

func TestRing(t *testing.T) {
	r := newRing(4)
	var fast, slow uint64
	for i := range byte(3) {
		r.put(Event{Raw: []byte{i}})
	}
	got, err := r.read(nil, &fast)
	if err != nil || !cmp.Equal(seqs(got), []byte{0, 1, 2}) {
		t.Errorf("first = %v, %v", seqs(got), err)
	}
	r.put(Event{Raw: []byte{3}})
	r.put(Event{Raw: []byte{4}})
	if got, err = r.read(nil, &fast); err != nil || !cmp.Equal(seqs(got), []byte{3, 4}) {
		t.Errorf("second = %v, %v", seqs(got), err)
	}
	if _, err := r.read(nil, &slow); !errors.Is(err, ErrLagged) {
		t.Errorf("slow = %v, want ErrLagged", err)
	}
}

func TestCoalesce(t *testing.T) {
	a, b := identity.PeerID{1}, identity.PeerID{2}
	on := func(id identity.PeerID, n byte) Event { return Event{Node: id, Raw: []byte{n}} }
	got := coalesce([]Event{on(a, 1), {RV: 5}, on(b, 2), on(a, 3), {RV: 6}, on(a, 4)})
	want := []Event{{RV: 5}, on(b, 2), {RV: 6}, on(a, 4)}
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Event{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// fakeSource is a log of deltas from 1 to rv, compacted up to compact.
type fakeSource struct {
	reads       int // of the log
	rv, compact uint64
	members     map[string]int
	snapshots   int
	counts      int
	during      func()
}

func (f *fakeSource) Snapshot(_ context.Context, site string, only []identity.PeerID) (store.Snapshot, error) {
	f.snapshots++
	s := store.Snapshot{State: store.State{RV: f.rv, Policy: 3}, Nodes: make([]store.Node, 200)}
	if only != nil {
		s.Nodes = make([]store.Node, len(only))
	}
	for i := range s.Nodes {
		s.Nodes[i].Virtual4 = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		s.Nodes[i].Site = site
	}
	return s, nil
}

func (f *fakeSource) Since(_ context.Context, rv uint64, keep func(*store.Event) bool) ([]store.Event, store.State, error) {
	f.reads++
	if rv < f.compact || rv > f.rv {
		return nil, store.State{}, store.ErrCompacted
	}
	var out []store.Event
	for v := rv + 1; v <= f.rv; v++ {
		if e := (store.Event{RV: v}); keep(&e) {
			out = append(out, e)
		}
	}
	if f.during != nil {
		f.during()
	}
	return out, store.State{RV: f.rv, Policy: 3}, nil
}

func (f *fakeSource) ScopeSize(_ context.Context, site string) (int, error) {
	f.counts++
	return f.members[site], nil
}

func start(t *testing.T, f *Feed, r Request) *Watch {
	t.Helper()
	w, err := f.Start(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// pending returns what w has, and its rv once it has nothing more.
func pending(t *testing.T, w *Watch) (raws []byte, rv uint64) {
	t.Helper()
	for {
		tick := make(chan time.Time, 1)
		tick <- time.Time{}
		got, err := w.Next(context.Background(), nil, tick)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			return raws, w.Sent()
		}
		raws = append(raws, seqs(got)...)
	}
}

func TestFeed(t *testing.T) {
	ctx := context.Background()
	src := &fakeSource{rv: 20, compact: 5}
	feed := NewFeed(src, 77, store.State{RV: 20, Policy: 3}, Limits{})
	for _, tt := range []struct {
		name      string
		epoch, rv uint64
		snapshot  bool
		from      uint64
		backlog   int
	}{
		{"new", 0, 0, true, 20, 0},
		{"resume", 77, 15, false, 15, 5},
		{"up_to_date", 77, 20, false, 20, 0},
		{"compacted", 77, 4, true, 20, 0},
		{"future", 77, 21, true, 20, 0},
		{"other_epoch", 78, 20, true, 20, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reads := src.reads
			w := start(t, feed, Request{Epoch: tt.epoch, RV: tt.rv})
			if upToDate := !tt.snapshot && tt.backlog == 0; upToDate != (src.reads == reads) {
				t.Errorf("%d reads of the log", src.reads-reads)
			}
			if w.Snapshot != tt.snapshot || w.RV != tt.from || len(w.Backlog) != tt.backlog || w.State.Policy != 3 {
				t.Errorf("watch = snapshot %v, rv %d, backlog %d, policy %d", w.Snapshot, w.RV, len(w.Backlog), w.State.Policy)
			}
			if w.Snapshot && len(w.Chunks) != 2 {
				t.Errorf("%d chunks for 200 nodes, want 2", len(w.Chunks))
			}
			if w.Sent() != 20 {
				t.Errorf("sent = %d, want 20", w.Sent())
			}
		})
	}
	if src.snapshots != 1 {
		t.Errorf("the snapshot was read %d times, want once", src.snapshots)
	}
	// What is committed while the database is read arrives once.
	src.during = func() {
		feed.Commit([]store.Event{{RV: 20}, {RV: 21}})
		src.during = nil
	}
	w := start(t, feed, Request{Epoch: 77, RV: 19})
	got, err := w.Next(ctx, nil, nil)
	if err != nil || !cmp.Equal(rvs(w.Backlog), []uint64{20}) || !cmp.Equal(rvs(got), []uint64{21}) {
		t.Errorf("backlog %v, then %v, %v; want 20, then 21", rvs(w.Backlog), rvs(got), err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := w.Next(canceled, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled = %v", err)
	}
}

// TestScopes shows who hears of what.
func TestScopes(t *testing.T) {
	src := &fakeSource{members: map[string]int{"big": 3}}
	feed := NewFeed(src, 77, store.State{RV: 0}, Limits{LazyAbove: 2})
	x, y := identity.PeerID{1}, identity.PeerID{2}
	watch := func(n byte, site string, interests ...identity.PeerID) *Watch {
		return start(t, feed, Request{Node: identity.PeerID{100, n}, Site: site, Interests: interests})
	}
	a, b := watch(1, "a"), watch(2, "b")
	afar := watch(3, "b", x)
	lazy, keen := watch(4, "big"), watch(5, "big", y)
	if a.Lazy || !lazy.Lazy || len(lazy.Chunks) != 0 || len(keen.Chunks) != 1 {
		t.Errorf("lazy = %v, %v; chunks %d, %d", a.Lazy, lazy.Lazy, len(lazy.Chunks), len(keen.Chunks))
	}
	for i, e := range []Event{
		{RV: 1, Scope: "a", Node: x},
		{RV: 2, Scope: "big", Node: y},
		{Scope: "a", Node: x}, // told with the next
		{RV: 3, Scope: store.ScopeAll},
		{RV: 4, Scope: "nowhere"},
		{RV: 5, Scope: "b"},
	} {
		e.Raw = []byte{byte(i)}
		feed.Publish(e)
	}
	for name, tt := range map[string]struct {
		w    *Watch
		want []byte
	}{
		"same site":            {a, []byte{0, 2, 3}},
		"other site":           {b, []byte{3, 5}},
		"follows one of a":     {afar, []byte{0, 2, 3, 5}},
		"lazy":                 {lazy, []byte{3}},
		"lazy and follows one": {keen, []byte{1, 3}},
	} {
		if got, rv := pending(t, tt.w); !bytes.Equal(got, tt.want) || rv != 5 {
			t.Errorf("%s: events %v, rv %d; want %v, 5", name, got, rv, tt.want)
		}
	}
	// From now on, and only as long as the watch lives.
	if err := feed.Follow(lazy.node, y); err != nil {
		t.Fatal(err)
	}
	feed.Publish(Event{Scope: "big", Node: y, Raw: []byte{9}})
	if got, _ := pending(t, lazy); !bytes.Equal(got, []byte{9}) {
		t.Errorf("after Follow: %v", got)
	}
	lazy.Close()
	keen.Close()
	afar.Close()
	if len(feed.followers) != 0 || feed.Watchers() != 2 {
		t.Errorf("%d followed, %d watchers after Close", len(feed.followers), feed.Watchers())
	}
}

// TestLazySwitch: a watcher whose scope shrank lacks peers and needs all of them.
func TestLazySwitch(t *testing.T) {
	src := &fakeSource{rv: 9, members: map[string]int{"": 1}}
	feed := NewFeed(src, 77, store.State{RV: 9}, Limits{LazyAbove: 2})
	if w := start(t, feed, Request{Epoch: 77, RV: 9, Lazy: true}); !w.Snapshot || len(w.Chunks) != 2 {
		t.Errorf("snapshot = %v with %d chunks, want all peers", w.Snapshot, len(w.Chunks))
	}
	src.members[""] = 3
	feed.Publish(Event{RV: 10, Scope: ""}, Event{RV: 11, Scope: ""}) // one each
	src.rv = 11
	if w := start(t, feed, Request{Epoch: 77, RV: 9}); w.Snapshot || !w.Lazy {
		t.Errorf("snapshot = %v, lazy = %v; want to go on lazily", w.Snapshot, w.Lazy)
	}
}

func TestLagged(t *testing.T) {
	feed := NewFeed(&fakeSource{}, 77, store.State{RV: 0}, Limits{Ring: 4})
	w := start(t, feed, Request{})
	for rv := range uint64(5) {
		feed.Publish(Event{RV: rv + 1})
	}
	if _, err := w.Next(context.Background(), nil, nil); !errors.Is(err, ErrLagged) {
		t.Errorf("error = %v, want ErrLagged", err)
	}
	if _, err := feed.Start(context.Background(), Request{Interests: make([]identity.PeerID, MaxInterests+1)}); !errors.Is(err, ErrInterests) {
		t.Errorf("error = %v, want ErrInterests", err)
	}
}

// BenchmarkPublish shows that a change costs the same whatever is outside of its
// scope.
func BenchmarkPublish(b *testing.B) {
	for _, others := range []int{800, 9800} {
		b.Run(strconv.Itoa(200+others), func(b *testing.B) {
			feed := NewFeed(&fakeSource{}, 77, store.State{RV: 0}, Limits{})
			var watches []*Watch
			for i := range 200 + others {
				site := "site"
				if i >= 200 {
					site = "other" + strconv.Itoa(i/200)
				}
				var id identity.PeerID
				binary.BigEndian.PutUint64(id[:], uint64(i+1))
				w, err := feed.Start(context.Background(), Request{Node: id, Site: site})
				if err != nil {
					b.Fatal(err)
				}
				watches = append(watches, w)
			}
			var rv uint64
			var buf []Event
			b.ReportAllocs()
			for b.Loop() {
				rv++
				feed.Publish(Event{RV: rv, Scope: "site"})
				for _, w := range watches[:200] {
					got, err := w.Next(context.Background(), buf, nil)
					if err != nil || len(got) != 1 {
						b.Fatal(len(got), err)
					}
					buf = got[:0]
				}
			}
		})
	}
}

func TestWrap(t *testing.T) {
	n := &store.Node{ID: identity.PeerID{9}, Name: "x", Virtual4: netip.MustParseAddr("10.0.0.2"), Virtual6: netip.MustParseAddr("fd00::2"), Tags: []string{"t"}}
	raw, err := EncodeChange(42, store.Change{Upsert: n, Policy: 2})
	if err != nil {
		t.Fatal(err)
	}
	sent, err := proto.Marshal(Wrap(raw))
	if err != nil || !bytes.Equal(sent, raw) {
		t.Errorf("wrapped message marshals to %x, want %x", sent, raw)
	}
	got := &Message{}
	if err := proto.Unmarshal(sent, got); err != nil {
		t.Fatal(err)
	}
	want := &dispatchv1.Delta{Rv: 42, PolicyVersion: 2, Upserts: []*dispatchv1.Peer{Peer(n)}}
	if d := cmp.Diff(want, got.GetDelta(), protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, err := EncodeChange(1, store.Change{Delete: n.ID}); err != nil {
		t.Error(err)
	}
}
