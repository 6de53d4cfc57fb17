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
