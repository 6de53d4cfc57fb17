// SPDX-License-Identifier: Apache-2.0

package conduittest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// serve runs a relay stream and tells of what comes; the zero PeerID first.
func serve(ctx context.Context, r conduit.PacketRelay) (in, gone chan string, ended chan error) {
	in, gone, ended = make(chan string, 100), make(chan string, 100), make(chan error, 1)
	go func() {
		ended <- r.RelayPackets(ctx, func(from identity.PeerID, b []byte) {
			in <- fmt.Sprintf("%d%s", from[0], b)
		}, func(id identity.PeerID) { gone <- fmt.Sprint(id[0]) })
	}()
	return in, gone, ended
}

func next[T any](t *testing.T, ch chan T) T {
	t.Helper()
	select {
	case x := <-ch:
		return x
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// TestPacketRelay: the hub's streams carry packets, say who has none, and end with
// the hub.
func TestPacketRelay(t *testing.T) {
	h := conduittest.NewHub()
	if _, ok := h.Connector(identity.PeerID{1}).(conduit.PacketRelay); ok {
		t.Error("a hub that was not told to relays packets")
	}
	h.SetRelay(true)
	a, b := h.Connector(identity.PeerID{1}).(conduit.PacketRelay), h.Connector(identity.PeerID{2}).(conduit.PacketRelay)
	if a.SendPacket(identity.PeerID{2}, 0, []byte("x")) {
		t.Error("sent without a stream")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	h.SetDown(true)
	inA, goneA, endA := serve(ctx, a)
	h.SetDown(false)
	if got := next(t, inA); got != "0" {
		t.Fatalf("first call with %q, want the zero id", got)
	}
	if !a.SendPacket(identity.PeerID{2}, 0, []byte("x")) || next(t, goneA) != "2" {
		t.Error("not told that the other has no stream")
	}
	inB, _, endB := serve(ctx, b)
	next(t, inB)
	if n := h.RelayStreams(); n != 2 {
		t.Errorf("%d streams, want 2", n)
	}
	buf := []byte("one")
	b.SendPacket(identity.PeerID{1}, 1, buf)
	buf[0] = 'X'
	if got := next(t, inA); got != "2one" {
		t.Errorf("got %q", got)
	}
	if list, err := a.TurnServers(ctx); len(list) != 0 || err != nil {
		t.Errorf("TURN servers: %v, %v", list, err)
	}
	h.SetDown(true)
	if err := next(t, endA); !errors.Is(err, conduittest.ErrHubDown) {
		t.Errorf("ended with %v", err)
	}
	_ = next(t, endB)
	if n := h.RelayStreams(); n != 0 {
		t.Errorf("%d streams after the hub went down", n)
	}
	_, _, end := serve(ctx, a)
	cancel()
	if err := next(t, end); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// TestNoUDP: nodes that may not use UDP meet at the hub's relay alone.
func TestNoUDP(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m := conduittest.NewMeshWith(t, 2, func(_ int, c *conduit.Config) { conduittest.NoUDP(c) })
	m.Hub.SetRelay(true)
	for i := range 2 {
		m.Restart(t, i, nil)
	}
	if err := m.Exchange(ctx, 0, 1, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	st, err := m.Node(0).Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if p := st.Peers[0].Path; p.Type != "hub-relay" {
		t.Errorf("path %+v", p)
	}
}
