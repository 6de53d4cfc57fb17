// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
)

// lazyMesh is a mesh in which nobody was told of anybody.
func lazyMesh(t *testing.T, n int) *conduittest.Mesh {
	t.Helper()
	m := conduittest.NewMesh(t, n)
	m.Hub.SetLazy(true)
	for i := range n {
		m.Restart(t, i, nil)
	}
	for i := range n {
		eventually(t, "link", func() bool { return status(t, m.Node(i)).Hub.Connected })
		if st := status(t, m.Node(i)); len(st.Peers) != 0 {
			t.Fatalf("node%d was told of %+v", i, st.Peers)
		}
	}
	return m
}

// TestLazy: the first packet brings the peer about and is not lost, and the other
// side finds out who calls.
func TestLazy(t *testing.T) {
	m := lazyMesh(t, 3)
	if err := m.Send(within(t), 0, 1, []byte("first")); err != nil {
		t.Fatal(err)
	}
	got, err := m.Recv(within(t), 1)
	if err != nil || string(got) != "first" {
		t.Fatalf("received %q, %v", got, err)
	}
	exchange(t, m, 1, 0, "back")
	for i := range 2 {
		if st := status(t, m.Node(i)); len(st.Peers) != 1 || st.Peers[0].State != "connected" {
			t.Errorf("node%d knows %+v, want the other alone", i, st.Peers)
		}
	}
	want := []conduit.PeerQuery{{Addr: conduittest.Addr(1)}, {ID: m.Certificate(0).ID}}
	if asked := m.Hub.Asked(); !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
	if st := status(t, m.Node(2)); len(st.Peers) != 0 {
		t.Errorf("node2 knows %+v", st.Peers)
	}
}

// TestLazyAbsent: a scan of addresses that are nobody's costs one question each.
func TestLazyAbsent(t *testing.T) {
	m := lazyMesh(t, 1)
	none, outside := netip.MustParseAddr("10.66.9.9"), netip.MustParseAddr("192.0.2.1")
	send := func(to netip.Addr) {
		t.Helper()
		if err := m.App(0).Send(within(t), conduittest.UDP(conduittest.Addr(0), to, 1, 2, []byte("x"))); err != nil {
			t.Fatal(err)
		}
	}
	dropped := func() uint64 { return status(t, m.Node(0)).Counters.TxDroppedBy["no_route"] }
	before := dropped()
	for range 5 {
		send(none)
		send(outside)
	}
	eventually(t, "end of all packets", func() bool { return dropped() == before+10 })
	if asked := m.Hub.Asked(); len(asked) != 1 || asked[0].Addr != none {
		t.Errorf("asked %v, want %v once", asked, none)
	}
}

func TestLookup(t *testing.T) {
	m := lazyMesh(t, 3)
	id := m.Certificate(1).ID
	for _, text := range []string{"node1", "NODE1.mesh", id.String()} {
		if p, err := m.Node(0).Lookup(within(t), text); err != nil || p.ID != id {
			t.Errorf("Lookup(%q) = %v, %v", text, p.ID.Short(), err)
		}
	}
	if p, err := m.Node(0).Lookup(within(t), conduittest.Addr6(2).String()); err != nil || p.Name != "node2" {
		t.Errorf("Lookup of an address = %v, %v", p, err)
	}
	for _, text := range []string{"nobody", "not a name", "", "node0"} {
		if p, err := m.Node(0).Lookup(within(t), text); !errors.Is(err, conduit.ErrUnknownPeer) {
			t.Errorf("Lookup(%q) = %v, %v, want ErrUnknownPeer", text, p, err)
		}
	}
	// By its id alone: whoever asks need not have looked it up.
	if err := m.Node(2).Connect(within(t), m.Certificate(0).ID, nil); err != nil {
		t.Errorf("Connect = %v", err)
	}
	m.Hub.SetDown(true)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := m.Node(2).Lookup(ctx, "node1"); !errors.Is(err, conduittest.ErrHubDown) {
		t.Errorf("Lookup without hub = %v", err)
	}
}
