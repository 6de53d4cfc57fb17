// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// TestPolicyOncePerAnnouncement: an activation that is for others costs one fetch
// and no loop, although the version stays.
func TestPolicyOncePerAnnouncement(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	_, r := start(t, h, cert, nil)
	r.await(t, "policy", func() bool { return slices.Equal(r.policy, []string{"1 {}"}) })
	h.Announce()
	r.await(t, "policy again", func() bool { return slices.Equal(r.policy, []string{"1 {}", "1 {}"}) })
	for i := range 20 { // each says the same generation again
		name := fmt.Sprint("b", i)
		k, _ := h.Enroll(name)
		r.await(t, "peer", func() bool { return r.peers[k.ID()] == name })
	}
	h.SetPolicy([]byte(`{"n":2}`))
	r.await(t, "new policy", func() bool { return len(r.policy) == 3 && r.policy[2] == `2 {"n":2}` })
	if n := h.Fetches(); n != 3 {
		t.Errorf("fetched %d times, want once per activation: 3", n)
	}
}

func TestResolvePeer(t *testing.T) {
	h := hubtest.New(t)
	h.SetLazy(true)
	_, cert := h.Enroll("a")
	kb, _ := h.Enroll("b")
	kc, _ := h.Enroll("c")
	c, r := start(t, h, cert, nil)
	r.await(t, "link", r.up)
	if len(r.peers) != 0 {
		t.Errorf("a lazy hub pushed %v", r.peers)
	}
	ip := netip.MustParseAddr("10.66.0.2")
	for _, tc := range []struct {
		q    conduit.PeerQuery
		want identity.PeerID
	}{
		{conduit.PeerQuery{Addr: ip}, kb.ID()},
		{conduit.PeerQuery{Name: "c"}, kc.ID()},
		{conduit.PeerQuery{ID: kb.ID()}, kb.ID()},
	} {
		p, err := c.ResolvePeer(t.Context(), tc.q)
		if err != nil || p.ID != tc.want || p.Online || p.Instance != 1 {
			t.Errorf("ResolvePeer(%v) = %+v, %v", tc.q, p, err)
		}
	}
	for _, q := range []conduit.PeerQuery{{Name: "nobody"}, {Name: "a"}} {
		if _, err := c.ResolvePeer(t.Context(), q); !errors.Is(err, conduit.ErrUnknownPeer) {
			t.Errorf("ResolvePeer(%v) = %v, want ErrUnknownPeer", q, err)
		}
	}
	// The hub is told again after a loss, the newest last, but not of who left.
	h.Restart()
	r.await(t, "reconnection", func() bool { return len(h.Watches()) > 1 && r.up() })
	if got, want := h.Interests(), []string{kc.ID().String(), kb.ID().String()}; !slices.Equal(got, want) {
		t.Errorf("interests = %v, want %v", got, want)
	}
	h.Remove(kc.ID())
	n := len(h.Watches())
	r.await(t, "end of the interest", func() bool { return len(c.interestNames()) == 1 })
	h.Restart()
	r.await(t, "reconnection", func() bool { return len(h.Watches()) > n && r.up() })
	if got, want := h.Interests(), []string{kb.ID().String()}; !slices.Equal(got, want) {
		t.Errorf("interests = %v, want %v", got, want)
	}
	h.Stop()
	r.await(t, "loss", func() bool { return !r.up() })
	if _, err := c.ResolvePeer(t.Context(), conduit.PeerQuery{Name: "b"}); err == nil || errors.Is(err, conduit.ErrUnknownPeer) {
		t.Errorf("ResolvePeer without a hub = %v", err)
	}
}

// TestBecomingLazy: what a node was told before is taken back, since it would not
// hear of changes.
func TestBecomingLazy(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	kb, _ := h.Enroll("b")
	h.Enroll("c")
	c, r := start(t, h, cert, nil)
	r.await(t, "peers", func() bool { return r.up() && len(r.peers) == 2 })
	if _, err := c.ResolvePeer(t.Context(), conduit.PeerQuery{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	h.SetLazy(true)
	h.Restart()
	r.await(t, "the interesting peer alone", func() bool { return len(r.peers) == 1 && r.peers[kb.ID()] == "b" })
}

func TestInterestsAreBounded(t *testing.T) {
	c := &Connector{}
	for i := range maxInterests + 5 {
		c.interested(identity.PeerID{byte(i >> 8), byte(i)})
	}
	if n := len(c.interests); n != maxInterests || c.interests[0] != (identity.PeerID{0, 5}) {
		t.Errorf("%d interests from %v on", n, c.interests[0])
	}
	if !c.trim() || len(c.interests) != maxInterests*3/4 || c.interests[0] != (identity.PeerID{1, 5}) {
		t.Errorf("%d interests from %v on after trimming", len(c.interests), c.interests[0])
	}
	if c.trim() {
		t.Error("trimmed again")
	}
}

func TestMeshKey(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	epochs := make(chan uint32, 16)
	c, r := start(t, h, cert, func(c *Connector) { c.cfg.MeshKey = func(e uint32) { epochs <- e } })
	r.await(t, "link", r.up)
	if e := <-epochs; e != 1 {
		t.Errorf("epoch %d, want 1", e)
	}
	key := make([]byte, 32)
	key[0] = 7
	h.RotateMeshKey(key)
	if e := <-epochs; e != 2 {
		t.Errorf("epoch %d, want 2", e)
	}
	if psk, e, err := c.MeshKey(t.Context()); err != nil || e != 2 || !slices.Equal(psk, key) {
		t.Errorf("MeshKey = %x, %d, %v", psk, e, err)
	}
	h.RotateMeshKey(nil)
	if psk, e, err := c.MeshKey(t.Context()); err != nil || e != 3 || psk != nil {
		t.Errorf("MeshKey of an operator's own = %x, %d, %v", psk, e, err)
	}
	h.RotateMeshKey(make([]byte, 16))
	if _, _, err := c.MeshKey(t.Context()); err == nil {
		t.Error("took a short key")
	}
}

func TestReport(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	c, err := New(Config{URL: h.URL, Roots: h.Roots(), Certificate: func() (*tls.Certificate, error) { return cert, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Report(t.Context(), Report{Status: &conduit.Status{}}); !errors.Is(err, ErrDown) {
		t.Errorf("Report without link = %v, want ErrDown", err)
	}
	c, r := start(t, h, cert, nil)
	r.await(t, "policy", func() bool { return r.up() && len(r.policy) == 1 })
	st := &conduit.Status{Policy: conduit.PolicyStatus{Version: 9, Denied: map[string]uint64{}}}
	for i := range 100 {
		st.Policy.Denied[fmt.Sprint("rule", i)] = uint64(i)
	}
	for i := range 300 {
		st.Peers = append(st.Peers, conduit.PeerStatus{ID: fmt.Sprint(i), TxBytes: uint64(i), Path: conduit.PathStatus{Type: "direct", RTT: 1.5}})
	}
	st.Peers = append(st.Peers, conduit.PeerStatus{ID: "none", TxBytes: 1 << 40, Path: conduit.PathStatus{Type: "none"}})
	st.Lanes.Bulk.TxBytes, st.Counters.TxDropped, st.Counters.RxDropped = 77, 2, 3
	next, err := c.Report(t.Context(), Report{Status: st, Started: time.UnixMicro(5), Version: "v1", PSKEpoch: 4})
	if err != nil || next != 5*time.Second {
		t.Fatalf("Report = %v, %v", next, err)
	}
	m := h.Reports()[0]
	if m.GetStarted() != 5 || m.GetVersion() != "v1" || m.GetPskEpoch() != 4 || m.GetPolicyVersion() != 9 || m.GetPolicyGeneration() != 1 || m.GetDropped() != 5 {
		t.Errorf("report = %v", m)
	}
	if l := m.GetLanes(); len(l) != 3 || l[2].GetLane() != "bulk" || l[2].GetTxBytes() != 77 {
		t.Errorf("lanes = %v", l)
	}
	p := m.GetPaths()
	if len(p) != maxPaths || p[0].GetPeer() != "299" || p[0].GetRttUs() != 1500 || p[0].GetKind() != "direct" || m.GetSessions() != 300 {
		t.Errorf("%d paths from %v on, %d sessions", len(p), p[0], m.GetSessions())
	}
	if d := m.GetDenied(); len(d) != maxDenied || d["rule99"] != 99 {
		t.Errorf("denied = %v", d)
	}
}

// TestReportPaths: every path that carries is reported, with its own figures.
func TestReportPaths(t *testing.T) {
	st := &conduit.Status{Peers: []conduit.PeerStatus{
		{ID: "a", TxBytes: 99, Path: conduit.PathStatus{Type: "direct", RTT: 9}, Paths: []conduit.PathDetail{
			{Kind: "direct", State: "valid", RTT: 1.5, Loss: 0.25, TxBytes: 10, RxBytes: 20},
			{Kind: "turn", State: "suspect", RTT: 40, Loss: 1, TxBytes: 3},
			{Kind: "hub-relay", State: "valid", RTT: -1},
			{Kind: "direct", State: "probing"},
			{Kind: "direct", State: "dead"},
			{Kind: "pigeon", State: "valid"},
		}},
		{ID: "b", Paths: []conduit.PathDetail{{Kind: "direct", State: "dead"}}, Path: conduit.PathStatus{Type: "none"}},
		{ID: "c", Path: conduit.PathStatus{Type: "peer-relay", RTT: 2}, RxBytes: 7},
		{ID: "d", Path: conduit.PathStatus{Type: "none"}},
	}}
	m := (&Report{Status: st}).message()
	want := []*dispatchv1.PathMetrics{
		{Peer: "a", Kind: "direct", RttUs: 1500, LossPpm: 250_000, TxBytes: 10, RxBytes: 20},
		{Peer: "c", Kind: "peer-relay", RttUs: 2000, RxBytes: 7},
		{Peer: "a", Kind: "turn", RttUs: 40_000, LossPpm: 1_000_000, TxBytes: 3},
		{Peer: "a", Kind: "hub-relay"},
	}
	if m.GetSessions() != 2 || len(m.GetPaths()) != len(want) {
		t.Fatalf("%d sessions, paths %v", m.GetSessions(), m.GetPaths())
	}
	for i, w := range want {
		if got := m.GetPaths()[i]; !proto.Equal(got, w) {
			t.Errorf("path %d = %v, want %v", i, got, w)
		}
	}
}

// TestDelay: the first try after a loss is spread evenly, later ones back off, and
// a hub that sheds load is obeyed.
func TestDelay(t *testing.T) {
	c := &Connector{timing: defaultTiming}
	var low, high int
	for range 1000 {
		switch d := c.delay(0, true, nil); {
		case d < 0 || d > 10*time.Second:
			t.Fatalf("first delay is %v", d)
		case d < 3*time.Second:
			low++
		case d > 7*time.Second:
			high++
		}
		if d := c.delay(0, false, nil); d > time.Second {
			t.Fatalf("delay of a first start is %v", d)
		}
		if d := c.delay(20, false, nil); d > 32*time.Second {
			t.Fatalf("late delay is %v", d)
		}
	}
	if low < 200 || high < 200 {
		t.Errorf("%d below 3 s and %d above 7 s of 1000, want 300 each", low, high)
	}
	e := connect.NewError(connect.CodeResourceExhausted, errors.New("busy"))
	d, err := connect.NewErrorDetail(&dispatchv1.ErrorInfo{RetryAfterMs: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	e.AddDetail(d)
	if d := c.delay(0, true, fmt.Errorf("dial: %w", e)); d < 20*time.Second || d > 30*time.Second {
		t.Errorf("delay that the hub asked for is %v, want 20 to 30 s", d)
	}
}

// TestWitness: the newest checkpoint comes back to the hub at the next connection.
func TestWitness(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	_, r := start(t, h, cert, nil)
	r.await(t, "link", r.up)
	h.Bookmark([]byte("one"))
	h.Bookmark(make([]byte, maxCheckpoint+1))
	kb, _ := h.Enroll("b")
	r.await(t, "peer after the bookmarks", func() bool { return r.peers[kb.ID()] == "b" })
	h.Restart()
	r.await(t, "reconnection", func() bool { return len(h.Watches()) > 1 && r.up() })
	if got := string(h.Checkpoint()); got != "one" {
		t.Errorf("checkpoint %.20q, want %q", got, "one")
	}
}
