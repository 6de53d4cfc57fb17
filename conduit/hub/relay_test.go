// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// packet makes a packet of a lane.
func packet(lane uint8, n int, text string) []byte {
	b := make([]byte, max(n, minRelayed+len(text)))
	b[0], b[1] = 0x80, lane
	copy(b[minRelayed:], text)
	return b
}

// relayEnd is the user of one relay stream.
type relayEnd struct {
	c     *Connector
	ready chan struct{}
	in    chan string // sender and text
	gone  chan identity.PeerID
	err   chan error // of RelayPackets
	end   context.CancelFunc
}

func openRelay(t *testing.T, c *Connector) *relayEnd {
	t.Helper()
	e := &relayEnd{c: c, ready: make(chan struct{}, 1), in: make(chan string, 1000), gone: make(chan identity.PeerID, 1000), err: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	e.end = cancel
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.err <- c.RelayPackets(ctx, func(from identity.PeerID, b []byte) {
			if from.IsZero() {
				e.ready <- struct{}{}
				return
			}
			e.in <- from.Short() + " " + strings.TrimRight(string(b[minRelayed:]), "\x00")
		}, func(id identity.PeerID) { e.gone <- id })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return e
}

func next[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func TestRelay(t *testing.T) {
	h := hubtest.New(t)
	ka, certA := h.Enroll("a")
	kb, certB := h.Enroll("b")
	ca, _ := start(t, h, certA, nil)
	cb, _ := start(t, h, certB, nil)
	if ca.SendPacket(kb.ID(), 0, packet(0, 0, "early")) {
		t.Error("SendPacket = true without a stream")
	}
	a := openRelay(t, ca) // before there is a link
	next(t, "stream of a", a.ready)
	if err := ca.RelayPackets(t.Context(), nil, nil); !errors.Is(err, errRelaying) {
		t.Errorf("second RelayPackets = %v", err)
	}
	if !ca.SendPacket(kb.ID(), 0, packet(0, 0, "lost")) {
		t.Error("SendPacket = false on a stream")
	}
	if id := next(t, "news of b", a.gone); id != kb.ID() {
		t.Errorf("gone: %s, want b", id)
	}
	b := openRelay(t, cb)
	next(t, "stream of b", b.ready)
	for _, bad := range [][]byte{nil, make([]byte, minRelayed-1), make([]byte, maxRelayed+1)} {
		if ca.SendPacket(kb.ID(), 0, bad) {
			t.Errorf("SendPacket of %d bytes = true", len(bad))
		}
	}
	ca.SendPacket(kb.ID(), 1, make([]byte, 100)) // none of the mesh
	buf := packet(2, 1500, "one")
	ca.SendPacket(kb.ID(), 2, buf)
	clear(buf)
	if got, want := next(t, "packet", b.in), ka.ID().Short()+" one"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	cb.SendPacket(ka.ID(), 0, packet(0, 0, "two"))
	if got, want := next(t, "packet", a.in), kb.ID().Short()+" two"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	a.end()
	if err := next(t, "end", a.err); !errors.Is(err, context.Canceled) {
		t.Errorf("RelayPackets = %v, want context.Canceled", err)
	}
	if ca.SendPacket(kb.ID(), 0, packet(0, 0, "late")) {
		t.Error("SendPacket = true after the end")
	}
}

func TestRelayEndsWithItsConnection(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	c, r := start(t, h, cert, nil)
	for _, f := range []func(){
		c.Redial,
		h.EndRelays,
		func() { h.Stop(); r.await(t, "loss", func() bool { return !r.up() }) },
	} {
		e := openRelay(t, c)
		next(t, "stream", e.ready)
		f()
		if err := next(t, "end", e.err); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("RelayPackets = %v, want the reason", err)
		}
	}
	e := openRelay(t, c) // waits for the link
	h.Restart()
	next(t, "stream after the hub came back", e.ready)
}

func TestRelayBatches(t *testing.T) {
	r := &relayStream{wake: make(chan struct{}, 1)}
	c := &Connector{}
	send := func(lane uint8, n int, text string) {
		if !c.SendPacket(identity.PeerID{1}, lane, packet(lane, n, text)) {
			t.Fatal("SendPacket = false")
		}
	}
	r.queue = newRelayQueue()
	c.relay.Store(r)
	for i := range 40 {
		send(2, 1400, fmt.Sprint("bulk", i))
	}
	send(0, 100, "stop")
	texts := func(ps []relayPacket) (out []string) {
		for _, p := range ps {
			out = append(out, strings.TrimRight(string(p.data[minRelayed:]), "\x00"))
		}
		return out
	}
	got := r.take(nil)
	if diff := cmp.Diff([]string{"stop", "bulk9", "bulk10"}, texts(got)); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	r.give(got)
	if c.RelayDropped() != [3]uint64{0, 0, 9} {
		t.Errorf("dropped %v", c.RelayDropped())
	}
	for r.queue.Len() > 0 {
		r.give(r.take(nil))
	}
	for range 32 {
		send(0, 0, "")
	}
	if n := len(r.take(nil)); n != 32 {
		t.Errorf("a message holds %d small packets, want 32", n)
	}
	if len(r.free) > relayQueue {
		t.Errorf("%d buffers are kept", len(r.free))
	}
}

func TestTurnServers(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	c, r := start(t, h, cert, nil)
	r.await(t, "link", r.up)
	if s, err := c.TurnServers(t.Context()); err != nil || s != nil {
		t.Errorf("TurnServers = %v, %v; want none", s, err)
	}
	exp := time.Unix(2_000_000_000, 0).UTC()
	h.SetTurn(&dispatchv1.GetTurnCredentialsResponse{
		Urls: []string{"turn:192.0.2.1:3478?transport=udp", "", strings.Repeat("x", 600)}, Username: "u", Password: "p", Expires: timestamppb.New(exp),
	})
	s, err := c.TurnServers(t.Context())
	want := []conduit.TurnServer{{URL: "turn:192.0.2.1:3478?transport=udp", Username: "u", Password: "p", Expires: exp}}
	if diff := cmp.Diff(want, s); err != nil || diff != "" {
		t.Errorf("TurnServers: %v (-want +got):\n%s", err, diff)
	}
	h.Stop()
	r.await(t, "loss", func() bool { return !r.up() })
	if _, err := c.TurnServers(t.Context()); !errors.Is(err, ErrDown) {
		t.Errorf("TurnServers without link = %v, want ErrDown", err)
	}
}

func FuzzRelayResponse(f *testing.F) {
	id := make([]byte, 32)
	id[0] = 1
	for _, m := range []*dispatchv1.RelayResponse{
		{Ready: true},
		{Frames: []*dispatchv1.RelayFrame{{Peer: id, Packet: packet(0, 0, "x")}}},
		{Frames: []*dispatchv1.RelayFrame{{Peer: id[:31], Packet: packet(0, 0, "x")}, nil}, Gone: [][]byte{id, id[:3], make([]byte, 32)}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m dispatchv1.RelayResponse
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		deliverRelayed(&m, func(id identity.PeerID, p []byte) {
			if id.IsZero() || len(p) < minRelayed || len(p) > maxRelayed || p[0] != 0x80 {
				t.Errorf("%d bytes from %s", len(p), id)
			}
		}, func(id identity.PeerID) {
			if id.IsZero() {
				t.Error("nobody is gone")
			}
		})
	})
}
