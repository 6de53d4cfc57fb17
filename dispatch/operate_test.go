// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"crypto/ed25519"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func auditOf(h *dispatchtest.Hub) dispatchv1connect.AuditServiceClient {
	return dispatchv1connect.NewAuditServiceClient(h.Admin(), "http://hub")
}

// TestAudit: the log is told as it grows, and what is signed of it verifies.
func TestAudit(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	tail, err := auditOf(h).TailAuditEntries(ctx, &dispatchv1.TailAuditEntriesRequest{Last: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	m := join(t, h, "m")
	if err := h.Revoke(ctx, m.id, "lost"); err != nil {
		t.Fatal(err)
	}
	var v audit.Verifier
	for last := ""; last != "node.revoke"; {
		if !tail.Receive() {
			t.Fatal(tail.Err())
		}
		e := tail.Msg().GetEntry()
		last = e.GetAction()
		err := v.Next(&audit.Entry{
			Seq: e.GetSeq(), Time: e.GetTime().AsTime(), Prev: e.GetPrev(), Hash: e.GetHash(),
			Event: audit.Event{Actor: e.GetActor(), Action: last, Target: e.GetTarget(), Detail: e.GetDetail()},
		})
		if err != nil {
			t.Fatal(err)
		}
		if last == "node.join" && (!strings.HasPrefix(e.GetActor(), "token:") || e.GetTarget() != m.id.String()) {
			t.Errorf("join = %v", e)
		}
	}
	list, err := auditOf(h).ListAuditEntries(ctx, &dispatchv1.ListAuditEntriesRequest{Target: m.id.String(), NewestFirst: true, Limit: 1})
	if err != nil || len(list.GetEntries()) != 1 || list.GetEntries()[0].GetSeq() != v.Seq {
		t.Errorf("newest about m = %v, %v", list, err)
	}
	// The head is signed at the start, and again after a restart.
	h.Restart()
	cps, err := auditOf(h).ListAuditCheckpoints(ctx, &dispatchv1.ListAuditCheckpointsRequest{})
	for err == nil && len(cps.GetCheckpoints()) == 0 {
		cps, err = auditOf(h).ListAuditCheckpoints(ctx, &dispatchv1.ListAuditCheckpointsRequest{})
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := audit.VerifyCheckpoint(cps.GetCheckpoints()[0].GetSigned(), ed25519.PublicKey(cps.GetPublicKey()))
	if err != nil || c.Seq == 0 || c.Seq > v.Seq+10 {
		t.Errorf("checkpoint = %+v, %v", c, err)
	}
}

// TestWatchFleet: who looks after the fleet sees all of it, and what changes.
func TestWatchFleet(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a := join(t, h, "a")
	w, err := fleetOf(h).WatchFleet(ctx, &dispatchv1.WatchFleetRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	nodes := make(map[string]*dispatchv1.Node)
	synced := false
	until := func(what string, cond func() bool) {
		t.Helper()
		for !cond() {
			if !w.Receive() {
				t.Fatalf("ended before %s: %v", what, w.Err())
			}
			for _, n := range w.Msg().GetUpserts() {
				nodes[n.GetNodeId()] = n
			}
			for _, id := range w.Msg().GetDeletes() {
				delete(nodes, id)
			}
			synced = synced || w.Msg().GetSynced()
		}
	}
	until("sync", func() bool { return synced })
	if len(nodes) != 1 || nodes[a.id.String()].GetState() != "active" {
		t.Errorf("first list = %v", nodes)
	}
	// Also what no node hears of: a machine that waits for approval.
	tok, err := fleetOf(h).CreateToken(ctx, &dispatchv1.CreateTokenRequest{NeedsApproval: true, Site: "north"})
	if err != nil {
		t.Fatal(err)
	}
	p := newMachine(t, h)
	_, _ = p.provision(tok.GetToken(), "p")
	until("pending", func() bool { return nodes[p.id.String()].GetState() == "pending" })
	a.signal(ctx)
	until("online", func() bool { return nodes[a.id.String()].GetOnline() })
	if err := h.Revoke(ctx, a.id, ""); err != nil {
		t.Fatal(err)
	}
	until("revoked", func() bool { return nodes[a.id.String()].GetState() == "revoked" })
	// Its name and, after a day, its address are free again; its keys are not.
	if _, err := fleetOf(h).DeleteNode(ctx, &dispatchv1.DeleteNodeRequest{Node: "a"}); err != nil {
		t.Fatal(err)
	}
	until("revoked and deleted", func() bool { return nodes[a.id.String()] == nil })
	_, err = a.provision(h.Token(1), "a")
	wantReason(t, "a deleted, revoked node joins", err, dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED)
	if n := join(t, h, "a"); n.res.GetName() != "a" {
		t.Errorf("the name is %s, want that of the deleted node", n.res.GetName())
	}
	if _, err := fleetOf(h).DeleteNode(ctx, &dispatchv1.DeleteNodeRequest{Node: "p"}); err != nil {
		t.Fatal(err)
	}
	until("deleted", func() bool { return nodes[p.id.String()] == nil })
}
