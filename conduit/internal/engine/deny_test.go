// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestDenialsFull: what is denied for good finds room, whatever else is denied.
func TestDenialsFull(t *testing.T) {
	now := time.Now()
	var d denials
	list := make([]Denial, maxDenials)
	for i := range list {
		binary.BigEndian.PutUint64(list[i].ID[:], uint64(i+1))
		list[i].Until = now.Add(time.Hour)
	}
	if d.add(list) {
		t.Error("full before it is")
	}
	timed, forever := Denial{ID: identity.PeerID{1, 1, 1, 1}, Until: now.Add(time.Hour)}, Denial{ID: identity.PeerID{2, 2, 2, 2}}
	if !d.add([]Denial{timed, forever}) {
		t.Error("not full when it is")
	}
	if d.peer(timed.ID, nil, now) || !d.peer(forever.ID, nil, now) || d.len() != maxDenials {
		t.Errorf("the timed one is in force: %v, the other: %v, %d in all", d.peer(timed.ID, nil, now), d.peer(forever.ID, nil, now), d.len())
	}
}
