// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"math"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
)

// testAudit: whatever changes anything is in the log, once, by who did it, in an
// unbroken chain; and what failed is not.
func testAudit(t *testing.T, open opener) {
	ctx := WithActor(context.Background(), "key:abc")
	f := open(t, "", testMeta)
	now := time.Now()
	var n Node
	name, tags := "other", []string{"t"}
	for _, step := range []struct {
		action string
		do     func() error
	}{
		{"token.create", func() error {
			return f.CreateToken(ctx, Token{ID: "k", MaxUses: 9, Expires: now.Add(time.Hour)})
		}},
		{"token.create", func() error {
			return f.CreateToken(ctx, Token{ID: "k2", MaxUses: 9, Expires: now.Add(time.Hour)})
		}},
		{"node.join", func() (err error) { n, err = f.Enroll(ctx, newJoin("k", "n", now)); return err }},
		{"node.rejoin", func() error {
			_, err := f.Enroll(ctx, Join{TokenID: "k2", Ed25519: n.Ed25519, X25519: n.X25519, Name: "n", Serial: []byte("s"), Now: now, NotAfter: now.Add(time.Hour)})
			return err
		}},
		{"node.renew", func() error { _, err := f.Renew(ctx, n.ID, n.Ed25519, issue(now)); return err }},
		{"node.recover", func() error {
			_, err := f.Recover(ctx, Recovery{ID: n.ID, Attempt: []byte("x")}, issue(now))
			return err
		}},
		{"node.update", func() error { _, err := f.Update(ctx, n.ID, Edit{Name: &name, Tags: &tags}); return err }},
		{"node.approve", func() error { _, err := f.Approve(ctx, n.ID); return err }},
		{"policy.activate", func() error { _, err := f.AddPolicy(ctx, []byte("{}")); return err }},
		{"psk.rotate", func() error { _, err := f.RotatePSK(ctx, func(uint32) error { return nil }); return err }},
		{"token.revoke", func() error { return f.RevokeToken(ctx, "k") }},
		{"node.revoke", func() error { return f.RevokeNode(ctx, n.ID, "lost") }},
		{"node-key.revoke", func() error { _, err := f.RevokeNodeKey(ctx, []byte("some key"), ""); return err }},
		{"hub.backup", func() error { return f.Note(ctx, "hub.backup", "") }},
	} {
		before, err := f.State(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.action, err)
		}
		after, err := f.State(ctx)
		if e := f.last(t); err != nil || after.AuditSeq != before.AuditSeq+1 || e.Action != step.action || e.Actor != "key:abc" {
			t.Errorf("%s: %d entries, newest %+v, %v", step.action, after.AuditSeq-before.AuditSeq, e.Event, err)
		}
	}
	before, _ := f.State(ctx)
	for what, err := range map[string]error{
		"token":  f.RevokeToken(ctx, "none"),
		"node":   f.RevokeNode(ctx, identity.PeerID{1}, ""),
		"delete": f.Delete(ctx, identity.PeerID{1}, "delete", now),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if after, _ := f.State(ctx); after.AuditSeq != before.AuditSeq {
		t.Errorf("what failed wrote %d entries", after.AuditSeq-before.AuditSeq)
	}
	var v audit.Verifier
	entries, err := f.Audit(ctx, AuditFilter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if err := v.Next(&entries[i]); err != nil {
			t.Fatal(err)
		}
	}
	if v.Seq != before.AuditSeq || !bytes.Equal(v.Head, before.AuditHead) {
		t.Errorf("the chain ends at %d, the database says %d", v.Seq, before.AuditSeq)
	}
	// And nobody can take anything back.
	for _, q := range []string{"UPDATE audit SET actor = 'x' WHERE seq = 1", "DELETE FROM audit WHERE seq = 1"} {
		if err := f.update(ctx, func(t *tx) error { return t.exec(q) }); err == nil {
			t.Errorf("%s: no error", q)
		}
	}
	// Numbers that no entry can have.
	if none, err := f.Audit(ctx, AuditFilter{After: math.MaxUint64, Limit: 9}); err != nil || len(none) != 0 {
		t.Errorf("after the highest number: %d entries, %v", len(none), err)
	}
	if all, err := f.Audit(ctx, AuditFilter{After: math.MaxUint64, NewestFirst: true, Limit: 9}); err != nil || len(all) != 9 {
		t.Errorf("before the highest number: %d entries, %v", len(all), err)
	}
	some, err := f.Audit(ctx, AuditFilter{Action: "node.re", NewestFirst: true, Limit: 2})
	if err != nil || len(some) != 2 || some[0].Action != "node.revoke" || some[1].Action != "node.recover" {
		t.Errorf("filtered = %v, %v", some, err)
	}
}
