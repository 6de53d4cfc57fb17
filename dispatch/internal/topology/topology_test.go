// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

func TestRing(t *testing.T) {
	ctx := context.Background()
	r := NewRing(4, 10)
	fast, slow := r.Cursor(), r.Cursor()
	r.Publish(Event{RV: 11}, Event{RV: 12}, Event{})
	if r.RV() != 12 {
		t.Errorf("rv = %d, want 12", r.RV())
	}
	got, err := fast.Next(ctx, nil, 2, nil)
	if err != nil || !cmp.Equal(rvs(got), []uint64{11, 12}) {
		t.Errorf("first = %v, %v", rvs(got), err)
	}
	if got, err = fast.Next(ctx, nil, 9, nil); err != nil || !cmp.Equal(rvs(got), []uint64{0}) {
		t.Errorf("second = %v, %v", rvs(got), err)
	}
	tick := make(chan time.Time, 1)
	tick <- time.Time{}
	if got, err = fast.Next(ctx, nil, 9, tick); err != nil || len(got) != 0 {
		t.Errorf("tick = %v, %v", got, err)
	}
	done := make(chan []Event)
	go func() {
		got, _ := fast.Next(ctx, nil, 9, nil)
		done <- got
	}()
	r.Publish(Event{RV: 13}, Event{RV: 14})
	if got := <-done; !cmp.Equal(rvs(got), []uint64{13, 14}) {
		t.Errorf("woken = %v", rvs(got))
	}
	if _, err := slow.Next(ctx, nil, 9, nil); !errors.Is(err, ErrLagged) {
		t.Errorf("slow = %v, want ErrLagged", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := fast.Next(canceled, nil, 9, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled = %v", err)
	}
}

func TestCoalesce(t *testing.T) {
	a, b := identity.PeerID{1}, identity.PeerID{2}
	on := func(id identity.PeerID, n byte) Event { return Event{Node: id, Raw: []byte{n}} }
	got := Coalesce([]Event{on(a, 1), {RV: 5}, on(b, 2), on(a, 3), {RV: 6}, on(a, 4)})
	want := []Event{{RV: 5}, on(b, 2), {RV: 6}, on(a, 4)}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// fakeSource is a log of deltas from 1 to rv, compacted up to compact.
type fakeSource struct {
	rv, compact uint64
	snapshots   int
	during      func()
}

func (f *fakeSource) Snapshot(context.Context) (store.Snapshot, error) {
	f.snapshots++
	s := store.Snapshot{RV: f.rv, Policy: 3, Nodes: make([]store.Node, 200)}
	for i := range s.Nodes {
		s.Nodes[i].Virtual4 = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	return s, nil
}

func (f *fakeSource) Since(_ context.Context, rv uint64) ([]store.Event, uint64, error) {
	if rv < f.compact || rv > f.rv {
		return nil, 0, store.ErrCompacted
	}
	var out []store.Event
	for v := rv + 1; v <= f.rv; v++ {
		out = append(out, store.Event{RV: v})
	}
	if f.during != nil {
		f.during()
	}
	return out, 3, nil
}

func TestFeed(t *testing.T) {
	ctx := context.Background()
	src := &fakeSource{rv: 20, compact: 5}
	feed := NewFeed(src, 77, NewRing(64, 20))
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
			w, err := feed.Start(ctx, tt.epoch, tt.rv)
			if err != nil {
				t.Fatal(err)
			}
			if w.Snapshot != tt.snapshot || w.RV != tt.from || len(w.Backlog) != tt.backlog || w.Policy != 3 {
				t.Errorf("watch = snapshot %v, rv %d, backlog %d, policy %d", w.Snapshot, w.RV, len(w.Backlog), w.Policy)
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
		feed.Publish([]store.Event{{RV: 20}, {RV: 21}})
		src.during = nil
	}
	w, err := feed.Start(ctx, 77, 19)
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.Next(ctx, nil, nil)
	if err != nil || !cmp.Equal(rvs(w.Backlog), []uint64{20}) || !cmp.Equal(rvs(got), []uint64{21}) {
		t.Errorf("backlog %v, then %v, %v; want 20, then 21", rvs(w.Backlog), rvs(got), err)
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
