// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func fleetOf(h *dispatchtest.Hub) dispatchv1connect.FleetServiceClient {
	return dispatchv1connect.NewFleetServiceClient(h.Admin(), "http://hub")
}

func (m *machine) provisioning() dispatchv1connect.ProvisioningServiceClient {
	return dispatchv1connect.NewProvisioningServiceClient(m.http, m.hub.URL())
}

// stranger is a machine's client without a certificate.
func (m *machine) stranger(token string) dispatchv1connect.ProvisioningServiceClient {
	m.tb.Helper()
	tok, err := identity.ParseToken(token)
	if err != nil {
		m.tb.Fatal(err)
	}
	return dispatchv1connect.NewProvisioningServiceClient(client(m.tb, tok.Pin, nil), m.hub.URL())
}

func wantReason(t *testing.T, what string, err error, want dispatchv1.ErrorReason) {
	t.Helper()
	if err == nil || reason(err) != want {
		t.Errorf("%s = %v (%v), want %v", what, err, reason(err), want)
	}
}

func TestApproval(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	fleet := fleetOf(h)
	tok, err := fleet.CreateToken(ctx, &dispatchv1.CreateTokenRequest{NeedsApproval: true, Tags: []string{"arm"}})
	if err != nil {
		t.Fatal(err)
	}
	a := join(t, h, "a")
	w := a.watch(ctx, nil)
	w.until("sync", func() bool { return w.epoch != 0 })
	m := newMachine(t, h)
	for range 2 { // idempotent while it waits
		_, err = m.provision(tok.GetToken(), "late")
		wantReason(t, "join", err, dispatchv1.ErrorReason_ERROR_REASON_APPROVAL_PENDING)
	}
	list, err := fleet.ListNodes(ctx, &dispatchv1.ListNodesRequest{States: []string{"pending"}})
	if err != nil || len(list.GetNodes()) != 1 || list.GetNodes()[0].GetName() != "late" {
		t.Fatalf("pending = %v, %v", list, err)
	}
	if w.peers[m.id.String()] != nil {
		t.Error("others know of a node that nobody has approved")
	}
	if _, err := fleet.ApproveNode(ctx, &dispatchv1.ApproveNodeRequest{Node: m.id.String()[:8]}); err != nil {
		t.Fatal(err)
	}
	w.until("approved", func() bool { return w.peers[m.id.String()] != nil })
	// An approval outlives the token: its use was taken when it was good.
	if _, err := fleet.RevokeToken(ctx, &dispatchv1.RevokeTokenRequest{Id: tok.GetId()}); err != nil {
		t.Fatal(err)
	}
	res, err := m.provision(tok.GetToken(), "late")
	if err != nil || res.GetName() != "late" {
		t.Fatalf("after approval = %v, %v", res, err)
	}
	m.useCert(tok.GetToken(), res.GetNodeCrt())
	m.signal(ctx)
	_, err = m.provision(tok.GetToken(), "late")
	wantReason(t, "a second certificate by the revoked token", err, dispatchv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED)
	// A member gains nothing from such a token without a person.
	more, err := fleet.CreateToken(ctx, &dispatchv1.CreateTokenRequest{NeedsApproval: true, Tags: []string{"operator"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.provision(more.GetToken(), "a")
	wantReason(t, "rejoin for more tags", err, dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED)
	// Approved by nobody but an administrator, and on record.
	if n, err := fleet.GetNode(ctx, &dispatchv1.GetNodeRequest{Node: "late"}); err != nil ||
		n.GetNode().GetApprovedBy() != "socket" || !slices.Equal(n.GetNode().GetTags(), []string{"arm"}) {
		t.Errorf("node = %v, %v", n, err)
	}
}

// TestPlainFlow: the hub makes the key, and until it is replaced the node can do
// nothing else and nobody knows of it.
func TestPlainFlow(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a := join(t, h, "a")
	w := a.watch(ctx, nil)
	w.until("sync", func() bool { return w.epoch != 0 })
	token := h.Token(1)
	m := newMachine(t, h)
	req := m.request(token, "plain")
	req.Csr, req.GenerateKey = nil, true
	first, err := m.stranger(token).Provision(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	// The answer was lost: again, with another key.
	res, err := m.stranger(token).Provision(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if string(res.GetNodeKey()) == string(first.GetNodeKey()) || res.GetName() != first.GetName() || res.GetVirtualIp() != first.GetVirtualIp() {
		t.Error("the second answer has the same key, or another node")
	}
	blk, _ := pem.Decode(res.GetNodeKey())
	key, err := x509.ParsePKCS8PrivateKey(blk.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	own := m.keys.Ed25519
	m.keys.Ed25519 = key.(ed25519.PrivateKey)
	m.useCert(token, res.GetNodeCrt())
	_, err = m.renew(m.keys)
	wantReason(t, "renew", err, dispatchv1.ErrorReason_ERROR_REASON_REKEY_REQUIRED)
	st, err := dispatchv1connect.NewTopologyServiceClient(m.http, h.URL()).WatchTopology(ctx, &dispatchv1.WatchTopologyRequest{})
	if err == nil {
		st.Receive()
		err = st.Err()
		_ = st.Close()
	}
	wantReason(t, "watch", err, dispatchv1.ErrorReason_ERROR_REASON_REKEY_REQUIRED)
	old := m.http
	m.keys.Ed25519 = own
	csr, err := m.keys.CSR()
	if err != nil {
		t.Fatal(err)
	}
	rk, err := dispatchv1connect.NewProvisioningServiceClient(old, h.URL()).Rekey(ctx, &dispatchv1.RekeyRequest{
		Csr: csr, X25519PublicKey: m.keys.X25519.PublicKey().Bytes(),
	})
	if err != nil || rk.GetNodeId() != m.keys.ID().String() {
		t.Fatalf("re-key = %v, %v; want %s", rk, err, m.keys.ID())
	}
	w.until("re-keyed", func() bool { return w.peers[rk.GetNodeId()] != nil })
	if w.peers[res.GetNodeId()] != nil {
		t.Error("others heard of the node by the key that the hub made")
	}
	m.useCert(token, rk.GetNodeCrt())
	m.signal(ctx)
	if crt := parseCert(t, rk.GetNodeCrt()); crt.Virtual4.String() != res.GetVirtualIp() || crt.Name != "plain" {
		t.Errorf("re-keyed = %+v, want the same name and address", crt)
	}
	// The key that the hub has seen is worth nothing any more.
	if _, err := dispatchv1connect.NewProvisioningServiceClient(old, h.URL()).GetMeshKey(ctx, &dispatchv1.GetMeshKeyRequest{}); err == nil {
		t.Error("the replaced key is still let in")
	}
	// Whoever knows the old id means the node.
	if n, err := fleetOf(h).GetNode(ctx, &dispatchv1.GetNodeRequest{Node: rk.GetNodeId()}); err != nil || n.GetNode().GetName() != "plain" {
		t.Errorf("node by its new id = %v, %v", n, err)
	}
	again := newMachine(t, h)
	rk2, err := m.provisioning().Rekey(ctx, again.rekeyRequest())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := fleetOf(h).GetNode(ctx, &dispatchv1.GetNodeRequest{Node: rk.GetNodeId()}); err != nil || n.GetNode().GetNodeId() != rk2.GetNodeId() {
		t.Errorf("node by the id before = %v, %v", n, err)
	}
	// And it cannot go on so: each re-key leaves a denial behind.
	for i, limited := 0, false; !limited; i++ {
		again.useCert(token, rk2.GetNodeCrt())
		next := newMachine(t, h)
		if rk2, err = again.provisioning().Rekey(ctx, next.rekeyRequest()); err != nil {
			limited = connect.CodeOf(err) == connect.CodeResourceExhausted
		}
		if err != nil && !limited || i > 5 {
			t.Fatalf("re-key %d = %v, want a limit", i, err)
		}
		again = next
	}
	// A token may forbid all that.
	strict, err := fleetOf(h).CreateToken(ctx, &dispatchv1.CreateTokenRequest{RequireCsr: true})
	if err != nil {
		t.Fatal(err)
	}
	req = newMachine(t, h).request(strict.GetToken(), "x")
	req.Csr, req.GenerateKey = nil, true
	_, err = m.stranger(strict.GetToken()).Provision(ctx, req)
	wantReason(t, "join without a CSR", err, dispatchv1.ErrorReason_ERROR_REASON_CSR_REQUIRED)
}

func (m *machine) rekeyRequest() *dispatchv1.RekeyRequest {
	csr, err := m.keys.CSR()
	if err != nil {
		m.tb.Fatal(err)
	}
	return &dispatchv1.RekeyRequest{Csr: csr, X25519PublicKey: m.keys.X25519.PublicKey().Bytes()}
}

// TestRepeatedJoin: a machine that redeems one token for ever leaves no rows behind
// for ever, and others hear nothing of it.
func TestRepeatedJoin(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a := join(t, h, "a")
	w := a.watch(ctx, nil)
	w.until("sync", func() bool { return w.epoch != 0 })
	rv := w.rv
	for _, plain := range []bool{false, true} {
		token := h.Token(1)
		m := newMachine(t, h)
		req := m.request(token, "m")
		if plain {
			req.Csr, req.GenerateKey = nil, true
		}
		limited := false
		for i := 0; !limited; i++ {
			_, err := m.stranger(token).Provision(ctx, req)
			limited = connect.CodeOf(err) == connect.CodeResourceExhausted
			if err != nil && !limited || i > 5 {
				t.Fatalf("plain %v: join %d = %v, want a limit", plain, i, err)
			}
		}
	}
	b := join(t, h, "b")
	w.until("b", func() bool { return w.peers[b.id.String()] != nil })
	if w.denials != 0 {
		t.Errorf("%d denials", w.denials)
	}
	if len(w.peers) != 3 { // a, the one with a key of its own, b
		t.Errorf("%d peers since rv %d", len(w.peers), rv)
	}
}

// recover claims to be m with a generation; attempt nil means a new one.
func (m *machine) recover(ctx context.Context, token string, generation uint64, attempt []byte, key ed25519.PrivateKey) (*dispatchv1.RecoverResponse, error) {
	m.tb.Helper()
	c := m.stranger(token)
	ch, err := c.BeginRecovery(ctx, &dispatchv1.BeginRecoveryRequest{NodeId: m.id.String()})
	if err != nil {
		m.tb.Fatal(err)
	}
	if attempt == nil {
		attempt = make([]byte, 16)
		_, _ = rand.Read(attempt)
	}
	msg := append([]byte("bauxite recover v1\x00"), ch.GetChallenge()...)
	msg = append(binary.BigEndian.AppendUint64(msg, generation), attempt...)
	return c.Recover(ctx, &dispatchv1.RecoverRequest{
		NodeId: m.id.String(), Challenge: ch.GetChallenge(), Signature: ed25519.Sign(key, msg), Generation: generation, RecoveryId: attempt,
	})
}

func TestRecover(t *testing.T) {
	h, ctx := dispatchtest.Start(t, func(c *dispatch.Config) { c.CertLifetime = time.Minute }), testContext(t)
	m, other := join(t, h, "m"), join(t, h, "other")
	token := h.Token(1)
	attempt := make([]byte, 16)
	res, err := m.recover(ctx, token, 0, attempt, m.keys.Ed25519)
	if err != nil || res.GetGeneration() != 1 {
		t.Fatalf("recover = %v, %v", res, err)
	}
	m.useCert(token, res.GetNodeCrt())
	m.signal(ctx)
	// Its answer was lost: the same attempt counts once.
	if res, err = m.recover(ctx, token, 0, attempt, m.keys.Ed25519); err != nil || res.GetGeneration() != 1 {
		t.Errorf("the same attempt again = %v, %v", res, err)
	}
	// Others' keys and unknown nodes are refused alike.
	_, err = m.recover(ctx, token, 1, nil, other.keys.Ed25519)
	wantReason(t, "other key", err, dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED)
	ghost := newMachine(t, h)
	_, err = ghost.recover(ctx, token, 0, nil, ghost.keys.Ed25519)
	wantReason(t, "unknown node", err, dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED)
	// A challenge is for one node and one hub.
	ch, _ := m.stranger(token).BeginRecovery(ctx, &dispatchv1.BeginRecoveryRequest{NodeId: other.id.String()})
	_, err = m.stranger(token).Recover(ctx, &dispatchv1.RecoverRequest{NodeId: m.id.String(), Challenge: ch.GetChallenge(), RecoveryId: attempt})
	wantReason(t, "other node's challenge", err, dispatchv1.ErrorReason_ERROR_REASON_CHALLENGE_INVALID)
}

// TestRecoverLimits: three times, then an administrator has to say yes; and a
// generation that is behind locks the node, whichever of the two copies it is.
func TestRecoverLimits(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	m := join(t, h, "m")
	token := h.Token(1)
	var gen uint64
	step := func() error {
		res, err := m.recover(ctx, token, gen, nil, m.keys.Ed25519)
		if err == nil {
			gen = res.GetGeneration()
			return nil
		}
		// Renewals are limited as well, by time: a fresh limiter comes with a restart.
		if connect.CodeOf(err) == connect.CodeResourceExhausted {
			h.Restart()
			res, err = m.recover(ctx, token, gen, nil, m.keys.Ed25519)
			gen = max(gen, res.GetGeneration())
		}
		return err
	}
	for i := range 3 {
		if err := step(); err != nil {
			t.Fatalf("recovery %d: %v", i+1, err)
		}
	}
	h.Restart()
	wantReason(t, "fourth", step(), dispatchv1.ErrorReason_ERROR_REASON_RECOVERY_EXHAUSTED)
	if _, err := fleetOf(h).ApproveNode(ctx, &dispatchv1.ApproveNodeRequest{Node: "m"}); err != nil {
		t.Fatal(err)
	}
	if err := step(); err != nil {
		t.Errorf("after approval: %v", err)
	}
	w := join(t, h, "w").watch(ctx, nil)
	w.until("sync", func() bool { return w.epoch != 0 })
	_, err := m.recover(ctx, token, gen-1, nil, m.keys.Ed25519)
	wantReason(t, "an old copy", err, dispatchv1.ErrorReason_ERROR_REASON_CLONE_SUSPECTED)
	w.until("locked", func() bool { return w.peers[m.id.String()] == nil })
	h.Restart()
	_, err = m.recover(ctx, token, gen, nil, m.keys.Ed25519)
	wantReason(t, "the other copy", err, dispatchv1.ErrorReason_ERROR_REASON_CLONE_SUSPECTED)
	if _, err := m.renew(m.keys); err == nil {
		t.Error("a locked node renews")
	}
	if _, err := fleetOf(h).ApproveNode(ctx, &dispatchv1.ApproveNodeRequest{Node: "m"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.recover(ctx, token, gen, nil, m.keys.Ed25519); err != nil {
		t.Errorf("after the administrator unlocked it: %v", err)
	}
}

// TestScopes: nodes of one site know each other; a site of too many is lazy, and
// its nodes ask for whom they need.
func TestScopes(t *testing.T) {
	h, ctx := dispatchtest.Start(t, func(c *dispatch.Config) { c.LazyAbove = 2 }), testContext(t)
	fleet := fleetOf(h)
	joinAt := func(site, name string) *machine {
		t.Helper()
		tok, err := fleet.CreateToken(ctx, &dispatchv1.CreateTokenRequest{Site: site})
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t, h)
		if m.res, err = m.provision(tok.GetToken(), name); err != nil {
			t.Fatal(err)
		}
		m.useCert(tok.GetToken(), m.res.GetNodeCrt())
		return m
	}
	a1, a2, b1 := joinAt("a", "a1"), joinAt("a", "a2"), joinAt("b", "b1")
	w := a1.watch(ctx, nil)
	w.until("sync", func() bool { return w.epoch != 0 })
	if len(w.peers) != 2 || w.peers[b1.id.String()] != nil {
		t.Errorf("a1 sees %d peers, want those of its site", len(w.peers))
	}
	resolve := func(m *machine, r *dispatchv1.ResolvePeerRequest) (*dispatchv1.ResolvePeerResponse, error) {
		return dispatchv1connect.NewTopologyServiceClient(m.http, h.URL()).ResolvePeer(ctx, r)
	}
	for _, r := range []*dispatchv1.ResolvePeerRequest{
		{By: &dispatchv1.ResolvePeerRequest_VirtualIp{VirtualIp: b1.res.GetVirtualIp()}},
		{By: &dispatchv1.ResolvePeerRequest_VirtualIp{VirtualIp: b1.res.GetVirtualIp6()}},
		{By: &dispatchv1.ResolvePeerRequest_Name{Name: "b1"}},
		{By: &dispatchv1.ResolvePeerRequest_NodeId{NodeId: b1.id.String()}},
	} {
		if res, err := resolve(a1, r); err != nil || res.GetPeer().GetNodeId() != b1.id.String() || res.GetOnline() {
			t.Errorf("resolve %v = %v, %v", r, res, err)
		}
	}
	if _, err := resolve(a1, &dispatchv1.ResolvePeerRequest{By: &dispatchv1.ResolvePeerRequest_VirtualIp{VirtualIp: "10.66.9.9"}}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("resolve an unused address = %v", err)
	}
	// From now on a1 follows b1, presence and all, and still not others of b.
	b1.signal(ctx)
	w.until("b1 online", func() bool { return w.online[b1.id.String()] })
	b2 := joinAt("b", "b2")
	b1.rename(ctx, t, fleet, "b1", "b-one")
	w.until("b1 renamed", func() bool { p := w.peers[b1.id.String()]; return p != nil && p.GetName() == "b-one" })
	if w.peers[b2.id.String()] != nil {
		t.Error("a1 heard of a node that it does not follow")
	}
	// A third one makes site a lazy for whoever comes then.
	joinAt("a", "a3")
	late := a2.watch(ctx, nil)
	late.until("sync", func() bool { return late.epoch != 0 })
	if len(late.peers) != 0 {
		t.Errorf("a lazy watch got %d peers", len(late.peers))
	}
	// Revocations reach everybody.
	if err := h.Revoke(ctx, b2.id, "test"); err != nil {
		t.Fatal(err)
	}
	before := late.rv
	late.until("revocation", func() bool { return late.rv > before })
}

func (m *machine) rename(ctx context.Context, t *testing.T, fleet dispatchv1connect.FleetServiceClient, from, to string) {
	t.Helper()
	_, err := fleet.UpdateNode(ctx, &dispatchv1.UpdateNodeRequest{
		Node: from, Name: to, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMove: a node that is moved to another site leaves the one and enters the
// other, at once and without joining again.
func TestMove(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a, b, c := join(t, h, "a"), join(t, h, "b"), join(t, h, "c")
	fleet := fleetOf(h)
	move := func(node, site string, version uint64) error {
		_, err := fleet.UpdateNode(ctx, &dispatchv1.UpdateNodeRequest{
			Node: node, Site: site, Version: version, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"site"}},
		})
		return err
	}
	if err := move("c", "north", 0); err != nil {
		t.Fatal(err)
	}
	wb, wc := b.watch(ctx, nil), c.watch(ctx, nil)
	wb.until("sync", func() bool { return wb.epoch != 0 })
	wc.until("sync", func() bool { return wc.epoch != 0 })
	wa := a.watch(ctx, nil)
	wa.until("sync", func() bool { return wa.epoch != 0 })
	wantReason(t, "a stale version", move("a", "north", 99), dispatchv1.ErrorReason_ERROR_REASON_CONFLICT)
	if err := move("a", "north", 1); err != nil {
		t.Fatal(err)
	}
	wb.until("a gone", func() bool { return wb.peers[a.id.String()] == nil })
	wc.until("a here", func() bool { return wc.peers[a.id.String()] != nil })
	for wa.st.Receive() { // its stream ends, so that it comes back into its new scope
	}
	wa = a.watch(ctx, nil)
	wa.until("sync", func() bool { return wa.epoch != 0 })
	if wa.peers[c.id.String()] == nil || wa.peers[b.id.String()] != nil {
		t.Errorf("after the move a sees %v", wa.peers)
	}
}

// TestLeave: a node takes itself out, and its keys may join again.
func TestLeave(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	w := b.watch(ctx, nil)
	w.until("sync", func() bool { return w.peers[a.id.String()] != nil })
	if _, err := a.provisioning().Leave(ctx, &dispatchv1.LeaveRequest{}); err != nil {
		t.Fatal(err)
	}
	w.until("a gone", func() bool { return w.peers[a.id.String()] == nil })
	if _, err := a.renew(a.keys); err == nil {
		t.Error("a node that has left renews")
	}
	res, err := a.provision(h.Token(1), "a")
	if err != nil || res.GetVirtualIp() == a.res.GetVirtualIp() {
		t.Errorf("join again = %v, %v; want another address, since the old one rests", res, err)
	}
}
