// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// TestPresenceIsGathered: the first node that comes is told at once, those within
// the next second together, and a change takes what is there along.
func TestPresenceIsGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFeed(nil, 1, store.State{}, Limits{})
		w := &Watch{feed: f, node: identity.PeerID{1}, wake: make(chan struct{}, 1)}
		f.rings[""] = newRing(64)
		f.enter(w, nil)
		w.ring = f.rings[""]
		defer w.Close()
		come := func(n byte) { f.Publish(EncodePresence(identity.PeerID{n}, "", true, 1)) }
		start := time.Now()
		type batch struct {
			Events int
			After  time.Duration
		}
		var got []batch
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				events, err := w.Next(ctx, nil, nil)
				if err != nil {
					return
				}
				got = append(got, batch{len(events), time.Since(start)})
			}
		})
		wait := func(d time.Duration) {
			synctest.Wait()
			time.Sleep(d)
		}
		wait(0)
		come(2)
		wait(100 * time.Millisecond)
		come(3)
		come(4)
		come(3)
		wait(1400 * time.Millisecond)
		// Half a second later a durable change does not wait.
		come(5)
		wait(0)
		f.Publish(Event{RV: 1, Raw: []byte{1}})
		wait(3 * time.Second)
		come(6)
		wait(0)
		cancel()
		wg.Wait()
		want := []batch{{1, 0}, {2, time.Second}, {2, 1500 * time.Millisecond}, {1, 4500 * time.Millisecond}}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("batches (-want +got):\n%s", d)
		}
	})
}

func TestCountHolds(t *testing.T) {
	tests := []struct {
		size  int
		since uint64
		want  bool
	}{
		{200, 0, true},
		{200, 312, true},
		{200, 313, false}, // all of them may have joined here
		{512, 0, true},
		{512, 1, false},
		{513, 0, true},
		{513, maxStale, true}, // one may have left
		{513, maxStale + 1, false},
	}
	for _, tt := range tests {
		sc := &scope{size: tt.size, countRV: 1000, counted: true}
		if got := sc.holds(1000+tt.since, LazyAbove); got != tt.want {
			t.Errorf("%d members, %d changes ago: %v, want %v", tt.size, tt.since, got, tt.want)
		}
	}
}

// TestFlapping: a node that comes and goes all the time takes one place in what is
// told next, whatever the ring holds, and the last that was heard of it is told.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 64
		f := NewFeed(nil, 1, store.State{}, Limits{Ring: size})
		newWatch := func(n byte, site string, follows ...identity.PeerID) *Watch {
			w := &Watch{feed: f, node: identity.PeerID{n}, site: site, wake: make(chan struct{}, 1)}
			f.enter(w, follows)
			return w
		}
		flaps, calm := identity.PeerID{100}, identity.PeerID{101}
		w, afar := newWatch(1, ""), newWatch(2, "elsewhere", flaps)
		defer w.Close()
		defer afar.Close()
		tap := f.Tap()
		defer tap.Close()
		f.Publish(EncodePresence(calm, "", true, 1))
		f.Publish(EncodePresence(calm, "", false, 1))
		for i := range uint64(10 * MaxInterests) {
			f.Publish(EncodePresence(flaps, "", i%2 == 0, i))
		}
		last := EncodePresence(flaps, "", true, 1<<40)
		f.Publish(last)
		time.Sleep(presenceEvery)
		synctest.Wait()
		for name, tt := range map[string]struct {
			w    *Watch
			want int
		}{"site": {w, 2}, "follower": {afar, 1}, "tap": {tap, 2}} {
			got, err := tt.w.Next(t.Context(), nil, nil)
			if err != nil || len(got) != tt.want || string(got[len(got)-1].Raw) != string(last.Raw) {
				t.Errorf("%s: %d events, %v; want %d, the newest last", name, len(got), err, tt.want)
			}
		}
		// Many nodes at once do not wait until they are more than a ring holds.
		for i := range 10 * size {
			f.Publish(EncodePresence(identity.PeerID{byte(i), byte(i >> 8), 1}, "", true, 1))
			if n := len(f.rings[""].held); n >= size {
				t.Fatalf("%d events are held", n)
			}
		}
	})
}
