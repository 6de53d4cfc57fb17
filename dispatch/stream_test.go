// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type bidi = connect.BidiStreamForClientSimple[dispatchv1.ExchangeCandidatesRequest, dispatchv1.ExchangeCandidatesResponse]

// signal opens m's signalling stream and waits until it is ready.
func (m *machine) signal(ctx context.Context) *bidi {
	m.tb.Helper()
	st, err := dispatchv1connect.NewSignalingServiceClient(m.http, m.hub.URL()).ExchangeCandidates(ctx)
	if err == nil {
		err = st.Send(nil)
	}
	if err != nil {
		m.tb.Fatal(err)
	}
	res, err := st.Receive()
	if err != nil || res.GetReady() == nil {
		m.tb.Fatalf("first message = %v, %v; want ready", res, err)
	}
	m.tb.Cleanup(func() { _ = st.CloseRequest(); _ = st.CloseResponse() })
	return st
}

func TestSignaling(t *testing.T) {
	h := dispatchtest.Start(t)
	a, b, c := join(t, h, "a"), join(t, h, "b"), join(t, h, "c")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	sa, sb := a.signal(ctx), b.signal(ctx)
	send := func(to string, seq uint64, body []byte) {
		t.Helper()
		if err := sa.Send(&dispatchv1.ExchangeCandidatesRequest{To: to, Seq: seq, Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	send(b.id.String(), 1, []byte("hello"))
	res, err := sb.Receive()
	if d := res.GetDelivery(); err != nil || d.GetFrom() != a.id.String() || string(d.GetBody()) != "hello" {
		t.Fatalf("delivery = %v, %v", res, err)
	}
	if err := h.Revoke(ctx, c.id, "test"); err != nil {
		t.Fatal(err)
	}
	offline := join(t, h, "d")
	stranger, _ := identity.GenerateKeys()
	for i, tt := range []struct {
		name string
		to   string
		body []byte
		want dispatchv1.UndeliverableReason
	}{
		{"offline", offline.id.String(), []byte("x"), dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_OFFLINE},
		{"unknown", stranger.ID().String(), []byte("x"), dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_UNKNOWN},
		{"revoked", c.id.String(), []byte("x"), dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_DENIED},
		{"to_itself", a.id.String(), []byte("x"), dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_INVALID},
		{"no_receiver", "", []byte("x"), dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_INVALID},
		{"empty", b.id.String(), nil, dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_INVALID},
		{"too_large", b.id.String(), make([]byte, 16<<10+1), dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_INVALID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seq := uint64(100 + i)
			send(tt.to, seq, tt.body)
			res, err := sa.Receive()
			u := res.GetUndeliverable()
			if err != nil || u.GetSeq() != seq || u.GetTo() != tt.to || u.GetReason() != tt.want {
				t.Errorf("answer = %v, %v; want %v", res, err, tt.want)
			}
		})
	}
	// The largest body passes.
	body := bytes.Repeat([]byte("x"), 16<<10)
	send(b.id.String(), 2, body)
	if res, err := sb.Receive(); err != nil || !bytes.Equal(res.GetDelivery().GetBody(), body) {
		t.Errorf("large delivery: %v", err)
	}
	// Above the burst: every message is delivered or answered.
	const n = 300
	go func() {
		for i := range n {
			_ = sa.Send(&dispatchv1.ExchangeCandidatesRequest{To: offline.id.String(), Seq: uint64(1000 + i), Body: []byte("x")})
		}
	}()
	count := make(map[dispatchv1.UndeliverableReason]int)
	for i := range n {
		res, err := sa.Receive()
		if err != nil || res.GetUndeliverable().GetSeq() != uint64(1000+i) {
			t.Fatalf("answer %d = %v, %v", i, res, err)
		}
		count[res.GetUndeliverable().GetReason()]++
	}
	if count[dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_RATE] == 0 || len(count) != 2 {
		t.Errorf("reasons = %v, want offline and rate", count)
	}
}

func TestSignalingNewestWins(t *testing.T) {
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	old := b.signal(ctx)
	newer := b.signal(ctx)
	if _, err := old.Receive(); reason(err) != dispatchv1.ErrorReason_ERROR_REASON_REPLACED {
		t.Errorf("old stream ends with %v, want replaced", err)
	}
	sa := a.signal(ctx)
	if err := sa.Send(&dispatchv1.ExchangeCandidatesRequest{To: b.id.String(), Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if res, err := newer.Receive(); err != nil || res.GetDelivery() == nil {
		t.Errorf("new stream got %v, %v", res, err)
	}
}

// watch is a test's view of the mesh.
type watch struct {
	tb      testing.TB
	st      *connect.ServerStreamForClient[dispatchv1.WatchTopologyResponse]
	epoch   uint64
	rv      uint64
	peers   map[string]*dispatchv1.Peer
	online  map[string]bool
	chunks  int
	policy  uint64
	denials int
}

func (m *machine) watch(ctx context.Context, w *watch, opts ...connect.ClientOption) *watch {
	m.tb.Helper()
	if w == nil {
		w = &watch{peers: make(map[string]*dispatchv1.Peer)}
	}
	w.tb, w.chunks, w.online = m.tb, 0, make(map[string]bool)
	st, err := dispatchv1connect.NewTopologyServiceClient(m.http, m.hub.URL(), opts...).
		WatchTopology(ctx, &dispatchv1.WatchTopologyRequest{Epoch: w.epoch, Rv: w.rv})
	if err != nil {
		m.tb.Fatal(err)
	}
	m.tb.Cleanup(func() { _ = st.Close() })
	w.st = st
	return w
}

// until applies events until cond holds.
func (w *watch) until(what string, cond func() bool) {
	w.tb.Helper()
	for !cond() {
		if !w.st.Receive() {
			w.tb.Fatalf("watch ended before %s: %v", what, w.st.Err())
		}
		switch e := w.st.Msg().GetEvent().(type) {
		case *dispatchv1.WatchTopologyResponse_SnapshotChunk:
			w.chunks++
			w.denials += len(e.SnapshotChunk.GetDenials())
			for _, p := range e.SnapshotChunk.GetPeers() {
				w.peers[p.GetNodeId()] = p
			}
		case *dispatchv1.WatchTopologyResponse_Synced:
			w.epoch, w.rv, w.policy = e.Synced.GetEpoch(), e.Synced.GetRv(), e.Synced.GetPolicyVersion()
		case *dispatchv1.WatchTopologyResponse_Delta:
			if e.Delta.GetRv() <= w.rv { // changes of other scopes leave gaps
				w.tb.Errorf("delta rv = %d after %d", e.Delta.GetRv(), w.rv)
			}
			w.rv = e.Delta.GetRv()
			for _, p := range e.Delta.GetUpserts() {
				w.peers[p.GetNodeId()] = p
			}
			w.denials += len(e.Delta.GetDenials())
			for _, id := range e.Delta.GetDeletes() {
				delete(w.peers, id)
			}
		case *dispatchv1.WatchTopologyResponse_Presence:
			w.online[e.Presence.GetNodeId()] = e.Presence.GetOnline()
		case *dispatchv1.WatchTopologyResponse_Bookmark:
		default:
			w.tb.Errorf("unexpected event %T", e)
		}
	}
}

func TestTopology(t *testing.T) {
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	b.signal(ctx)
	w := a.watch(ctx, nil)
	w.until("sync", func() bool { return w.epoch != 0 })
	if len(w.peers) != 2 || w.chunks != 1 || w.policy != 1 {
		t.Fatalf("snapshot = %d peers in %d chunks, policy %d", len(w.peers), w.chunks, w.policy)
	}
	p := w.peers[b.id.String()]
	if p.GetName() != "b" || p.GetVirtualIp() != b.res.GetVirtualIp() ||
		identity.NewPeerID(p.GetEd25519PublicKey(), p.GetX25519PublicKey()) != b.id {
		t.Errorf("peer = %v", p)
	}
	w.until("b online", func() bool { return w.online[b.id.String()] })
	sa := a.signal(ctx)
	w.until("a online", func() bool { return w.online[a.id.String()] })
	if err := sa.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	w.until("a offline", func() bool { return !w.online[a.id.String()] })

	c := join(t, h, "c")
	w.until("c", func() bool { return w.peers[c.id.String()] != nil })
	epoch := w.epoch

	// The same over JSON, for people.
	j := a.watch(ctx, nil, connect.WithProtoJSON())
	j.until("c over JSON", func() bool { return j.peers[c.id.String()] != nil })
	d := join(t, h, "d")
	j.until("d over JSON", func() bool { return j.peers[d.id.String()] != nil })
	w.until("d", func() bool { return w.peers[d.id.String()] != nil })

	// The hub restarts while a is away, and e joins and c goes.
	h.Restart()
	e := join(t, h, "e")
	if err := h.Revoke(ctx, c.id, "test"); err != nil {
		t.Fatal(err)
	}
	w = a.watch(ctx, w)
	w.until("resume", func() bool { return w.peers[e.id.String()] != nil && w.peers[c.id.String()] == nil })
	if w.epoch != epoch || w.chunks != 0 {
		t.Errorf("resume got %d chunks, epoch changed: %v; want deltas only", w.chunks, w.epoch != epoch)
	}
	// An rv from nowhere gets a snapshot.
	far := a.watch(ctx, &watch{epoch: epoch, rv: w.rv + 1000, peers: make(map[string]*dispatchv1.Peer)})
	far.until("snapshot", func() bool { return far.rv == w.rv })
	// What is shut out, c and its key, comes before all others.
	if far.chunks != 2 || len(far.peers) != 4 || far.denials != 2 {
		t.Errorf("from the future = %d peers and %d denials in %d chunks", len(far.peers), far.denials, far.chunks)
	}
}
