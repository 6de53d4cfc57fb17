// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestPing(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	ctx := within(t)
	eventually(t, "a peer", func() bool { p := status(t, m.Node(0)).Peers; return len(p) == 1 && p[0].Online })
	peer := m.Node(1).ID()
	for _, lane := range []string{"", "critical", "telemetry", "bulk"} { // the first one connects
		r, err := m.Node(0).Ping(ctx, peer, conduit.PingOptions{Lane: lane, Size: 700})
		if err != nil {
			t.Fatalf("lane %q: %v", lane, err)
		}
		want := lane
		if lane == "" {
			want = "critical"
		}
		if r.Lane != want || r.Size != 700 || r.RTT <= 0 || r.Wait+r.Hold > r.RTT || r.Kind != "direct" || r.Remote == "" {
			t.Errorf("lane %q: %+v", lane, r)
		}
	}
	st := status(t, m.Node(0))
	if n := st.Counters.TxPackets; n != 0 {
		t.Errorf("pings count as %d packets of applications", n)
	}
	if _, err := m.Node(0).Ping(ctx, peer, conduit.PingOptions{Lane: "fast"}); err == nil {
		t.Error("took the lane \"fast\"")
	}
	for _, size := range []int{-1, 1, conduit.MinPing - 1, conduit.MaxPing + 1} {
		if _, err := m.Node(0).Ping(ctx, peer, conduit.PingOptions{Size: size}); !errors.Is(err, conduit.ErrPingSize) {
			t.Errorf("size %d: %v, want ErrPingSize", size, err)
		}
	}
	if _, err := m.Node(0).Ping(ctx, identity.PeerID{1}, conduit.PingOptions{}); !errors.Is(err, conduit.ErrUnknownPeer) {
		t.Errorf("stranger: %v, want ErrUnknownPeer", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := m.Node(0).Ping(gone, peer, conduit.PingOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v, want context.Canceled", err)
	}
	if err := m.Node(0).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Node(0).Ping(ctx, peer, conduit.PingOptions{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v, want net.ErrClosed", err)
	}
}

// TestPingUnanswered: what the peer does not answer ends with the context.
func TestPingUnanswered(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	ctx := within(t)
	eventually(t, "a peer", func() bool { p := status(t, m.Node(0)).Peers; return len(p) == 1 && p[0].Online })
	peer := m.Node(1).ID()
	if _, err := m.Node(0).Ping(ctx, peer, conduit.PingOptions{}); err != nil {
		t.Fatal(err)
	}
	// 40 are answered at once, and 200 a second.
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 500)
	for range cap(done) {
		go func() {
			_, err := m.Node(0).Ping(short, peer, conduit.PingOptions{Lane: "bulk"})
			done <- err
		}()
	}
	eventually(t, "refused echoes", func() bool { return status(t, m.Node(1)).Counters.RxDroppedBy["echo_rate"] > 0 })
	cancel()
	lost := 0
	for range cap(done) {
		if err := <-done; errors.Is(err, context.Canceled) {
			lost++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if lost == 0 {
		t.Error("each of 500 pings at once was answered")
	}
}
