// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func synced(epoch, rv uint64, snapshot bool) event {
	return event{kind: evSynced, epoch: epoch, rv: rv, snapshot: snapshot}
}

func delta(rv uint64) event { return event{kind: evDelta, rv: rv} }

func TestView(t *testing.T) {
	type step = []event // one stream
	snapshot := step{{kind: evChunk, peers: 3}, synced(7, 10, true)}
	tests := []struct {
		name    string
		streams []step
		want    View
		bad     bool
	}{
		{"first sync", []step{snapshot}, View{Epoch: 7, RV: 10, Snapshots: 1}, false},
		{"deltas follow", []step{append(snapshot, delta(11), delta(12))}, View{Epoch: 7, RV: 12, Snapshots: 1, Deltas: 2}, false},
		{"a delta comes again", []step{append(snapshot, delta(10), delta(11), delta(11))}, View{Epoch: 7, RV: 11, Snapshots: 1, Deltas: 1, Duplicates: 2}, false},
		{"two are skipped", []step{append(snapshot, delta(13))}, View{Epoch: 7, RV: 13, Snapshots: 1, Deltas: 1, Missing: 2}, false},
		{"a bookmark tells of one that never came", []step{append(snapshot, event{kind: evBookmark, rv: 11})}, View{Epoch: 7, RV: 11, Snapshots: 1, Missing: 1}, false},
		{"an old bookmark", []step{append(snapshot, event{kind: evBookmark, rv: 9})}, View{Epoch: 7, RV: 10, Snapshots: 1}, false},
		{"presence has no rv", []step{append(snapshot, event{kind: evPresence})}, View{Epoch: 7, RV: 10, Snapshots: 1}, false},
		{"resumed", []step{snapshot, {synced(7, 12, false), delta(11), delta(12)}}, View{Epoch: 7, RV: 12, Snapshots: 1, Deltas: 2}, false},
		{"resumed where the epoch is another", []step{snapshot, {synced(8, 12, false)}}, View{Snapshots: 1}, true},
		{"another epoch with a snapshot", []step{snapshot, {synced(8, 2, true)}}, View{Epoch: 8, RV: 2, Snapshots: 2}, false},
		{"sent away", []step{append(snapshot, event{kind: evResync})}, View{Snapshots: 1, Resyncs: 1}, false},
		{"resumed without anything", []step{{synced(7, 12, false)}}, View{}, true},
		{"no epoch", []step{{synced(0, 12, true)}}, View{}, true},
		{"synced twice", []step{append(snapshot, synced(7, 10, false))}, View{Snapshots: 1}, true},
		{"delta first", []step{{delta(3)}}, View{}, true},
		{"delta before the next Synced", []step{snapshot, {delta(11)}}, View{Snapshots: 1}, true},
		{"chunk after Synced", []step{append(snapshot, event{kind: evChunk})}, View{Snapshots: 1}, true},
		{"lazy", []step{{event{kind: evSynced, epoch: 7, rv: 1, snapshot: true, lazy: true}}}, View{Epoch: 7, RV: 1, Lazy: true, Snapshots: 1}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var v View
			var err error
			for _, s := range tt.streams {
				v.Begin()
				for _, e := range s {
					if err == nil {
						err = v.Apply(e)
					}
				}
			}
			if errors.Is(err, errProtocol) != tt.bad {
				t.Errorf("Apply: %v, want an error: %v", err, tt.bad)
			}
			if d := cmp.Diff(tt.want, v, cmpopts.IgnoreUnexported(View{})); d != "" {
				t.Errorf("view (-want +got):\n%s", d)
			}
		})
	}
}
