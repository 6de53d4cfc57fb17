// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func idOf(n uint32) (id identity.PeerID) {
	binary.BigEndian.PutUint32(id[:], n+1)
	return id
}

// Peers that come and go, and strangers that are asked for, leave nothing behind.
func TestHandlesDoNotLeak(t *testing.T) {
	e := NewEngine(subject(200))
	e.Apply(Default(), nil)
	for n := range uint32(5000) {
		id := idOf(n)
		e.SetPeers([]Subject{{ID: id}})
		e.Peer(id)
		e.Peer(idOf(1e6 + n))
		if n%500 == 0 {
			runtime.GC()
		}
	}
	runtime.GC()
	runtime.GC()
	e.SetPeers(nil)
	for n := range uint32(2 * leastSweep) {
		e.Peer(idOf(2e6 + n))
	}
	if n := len(e.peers.present); n != 0 {
		t.Errorf("%d handles of peers that left", n)
	}
	if n := len(e.peers.absent); n > 4000 {
		t.Errorf("%d entries for handles that nobody holds", n)
	}
}

func TestHeldHandle(t *testing.T) {
	e := NewEngine(subject(1, "one"))
	two := subject(2, "two")
	e.Apply(oneWay("tcp", "22"), []Subject{two})
	i := pkt(6, 5000, 22)
	p := e.Peer(two.ID)
	out := func() bool { return e.Outbound(p, i, Bulk, 0).Allow }
	if !out() {
		t.Fatal("denied")
	}
	e.SetPeers(nil)
	for n := range uint32(4 * leastSweep) {
		e.Peer(idOf(n)) // makes it sweep
	}
	runtime.GC()
	if out() {
		t.Error("a handle of a peer that left allows")
	}
	// A policy that comes meanwhile does not open it.
	e.Apply(Default(), nil)
	if out() {
		t.Error("a new policy opens a handle of a peer that left")
	}
	e.SetPeers([]Subject{two})
	if _, ok := e.peers.absent[two.ID]; ok {
		t.Error("a peer that is there is kept as absent too")
	}
	if !out() || e.Peer(two.ID) != p {
		t.Error("the handle is dead after the peer came back")
	}
	runtime.KeepAlive(p)
}
