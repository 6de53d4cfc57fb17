// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
)

// opener opens the database at path, or a new one where path is empty.
type opener func(t *testing.T, path string, m Meta) *fixture

// engines are what the hub can store in. One that is added here has to pass the
// whole suite.
var engines = map[string]opener{"sqlite": open}

// TestConformance is what the hub relies on, whatever it stores in.
func TestConformance(t *testing.T) {
	for engine, open := range engines {
		for name, test := range map[string]func(*testing.T, opener){
			"reopen": testReopen, "enroll": testEnroll, "names": testNames, "addresses": testIPAM, "writer": testWriter,
			"compact": testCompact, "approve": testApprove, "revoke": testRevoke, "recover": testRecover, "rekey": testRekey,
			"update": testUpdate, "scopes": testScopes, "ephemeral": testEphemeral, "find": testFind, "audit": testAudit,
			"copy": testCopy,
		} {
			t.Run(engine+"/"+name, func(t *testing.T) { test(t, open) })
		}
	}
}

// enroll joins a machine with token k.
func (f *fixture) enroll(t *testing.T, name string) (Node, Join) {
	t.Helper()
	j := newJoin("k", name, time.Now())
	n, err := f.Enroll(context.Background(), j)
	if err != nil {
		t.Fatal(err)
	}
	return n, j
}

func issue(now time.Time) Issue {
	return Issue{Serial: newJoin("", "", now).Serial, NotAfter: now.Add(time.Hour)}
}

// last returns the newest audit entry.
func (f *fixture) last(t *testing.T) audit.Entry {
	t.Helper()
	e, err := f.Audit(context.Background(), AuditFilter{NewestFirst: true, Limit: 1})
	if err != nil || len(e) != 1 {
		t.Fatalf("newest audit entry = %v, %v", e, err)
	}
	return e[0]
}

func testApprove(t *testing.T, open opener) {
	ctx := WithActor(context.Background(), "user:alice")
	f := open(t, "", testMeta)
	if err := f.CreateToken(ctx, Token{ID: "k", MaxUses: 9, Expires: time.Now().Add(time.Hour), NeedsApproval: true}); err != nil {
		t.Fatal(err)
	}
	n, _ := f.enroll(t, "n")
	if n.State != Pending {
		t.Fatalf("state = %s, want pending", n.State)
	}
	if _, err := f.Admit(ctx, n.ID, nil); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("admit a pending node = %v", err)
	}
	if _, err := f.Renew(ctx, n.ID, n.Ed25519, issue(time.Now())); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("renew of a pending node = %v", err)
	}
	if got, err := f.Approve(ctx, n.ID); err != nil || got.State != Active || got.ApprovedBy != "user:alice" {
		t.Errorf("approve = %+v, %v", got, err)
	}
	if st, err := f.Admit(ctx, n.ID, nil); err != nil || st.Name != "n" {
		t.Errorf("admit = %+v, %v", st, err)
	}
	if e := f.last(t); e.Action != "node.approve" || e.Actor != "user:alice" || e.Target != n.ID.String() {
		t.Errorf("audit = %+v", e)
	}
	if _, err := f.Approve(ctx, identity.PeerID{1}); !errors.Is(err, ErrNotFound) {
		t.Errorf("approve nobody = %v", err)
	}
}

func testRevoke(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 9, time.Hour)
	a, ja := f.enroll(t, "a")
	b, jb := f.enroll(t, "b")
	if _, err := f.RevokeSerial(ctx, ja.Serial, "leaked"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Admit(ctx, a.ID, ja.Serial); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("admit by the denied certificate = %v", err)
	}
	c := issue(time.Now())
	if _, err := f.Renew(ctx, a.ID, a.Ed25519, c); err != nil {
		t.Errorf("the node gets another certificate: %v", err)
	}
	if _, err := f.Admit(ctx, a.ID, c.Serial); err != nil {
		t.Errorf("admit by the new one = %v", err)
	}
	if id, err := f.RevokeNodeKey(ctx, b.Ed25519, "leaked"); err != nil || id != b.ID {
		t.Errorf("revoke by key = %v, %v", id, err)
	}
	if _, err := f.Admit(ctx, b.ID, jb.Serial); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("admit by the denied key = %v", err)
	}
	other := newJoin("k", "b", time.Now())
	other.Ed25519 = b.Ed25519
	if _, err := f.Enroll(ctx, other); err == nil {
		t.Error("the denied key joins under another id")
	}
	if err := f.RevokeNode(ctx, b.ID, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("revoke twice = %v", err)
	}
	check := func(f *fixture) {
		t.Helper()
		ds, err := f.Denials(ctx, time.Now())
		var kinds []DenialKind
		for _, d := range ds {
			kinds = append(kinds, d.Kind)
		}
		slices.Sort(kinds)
		if err != nil || !slices.Equal(kinds, []DenialKind{DenyKey, DenyNode, DenySerial}) {
			t.Errorf("denials = %v, %v", kinds, err)
		}
	}
	check(f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = open(t, f.path, testMeta)
	check(f)
	// The denial of a certificate ends with it, the others never.
	ds, err := f.Denials(ctx, time.Now().Add(1000*time.Hour))
	if err != nil || len(ds) != 2 {
		t.Errorf("much later: %v, %v", ds, err)
	}
}

func testRecover(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 9, time.Hour)
	n, _ := f.enroll(t, "n")
	claim := func(gen uint64, attempt string) (Node, error) {
		return f.Recover(ctx, Recovery{ID: n.ID, Generation: gen, Attempt: []byte(attempt)}, issue(time.Now()))
	}
	for i := range uint64(3) {
		for range 2 {
			if got, err := claim(i, fmt.Sprint(i)); err != nil || got.Generation != i+1 {
				t.Fatalf("recovery %d = %+v, %v", i, got.Generation, err)
			}
		}
	}
	if _, err := claim(3, "x"); !errors.Is(err, ErrRecoveryExhausted) {
		t.Errorf("fourth = %v", err)
	}
	if _, err := f.Renew(ctx, n.ID, n.Ed25519, issue(time.Now())); err != nil {
		t.Fatal(err)
	}
	if _, err := claim(3, "y"); err != nil {
		t.Errorf("after a renewal in time: %v", err)
	}
	if _, err := claim(3, "z"); !errors.Is(err, ErrNodeLocked) {
		t.Errorf("a copy = %v", err)
	}
	if _, err := f.Admit(ctx, n.ID, nil); !errors.Is(err, ErrNodeLocked) {
		t.Errorf("admit = %v", err)
	}
	if e := f.last(t); e.Action != "node.lock" {
		t.Errorf("audit = %+v", e)
	}
	if snap, err := f.Snapshot(ctx, "", nil); err != nil || len(snap.Nodes) != 0 {
		t.Errorf("others see a locked node: %v, %v", snap.Nodes, err)
	}
	// Once a person has decided, the copy that comes first is the node.
	if _, err := f.Approve(ctx, n.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := claim(7, "first"); err != nil || got.Generation != 8 {
			t.Errorf("after approval = %d, %v", got.Generation, err)
		}
	}
	if _, err := claim(3, "second"); !errors.Is(err, ErrNodeLocked) {
		t.Errorf("the other copy = %v", err)
	}
}

func testRekey(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 9, time.Hour, "arm")
	n, j := f.enroll(t, "n")
	o, _ := f.enroll(t, "o")
	fresh := newJoin("k", "", time.Now())
	for _, k := range [][2][]byte{{n.Ed25519, fresh.X25519}, {o.Ed25519, fresh.X25519}, {fresh.Ed25519, o.X25519}} {
		if _, err := f.Rekey(ctx, n.ID, k[0], k[1], issue(time.Now())); !errors.Is(err, ErrKeyInUse) {
			t.Errorf("re-key to keys in use = %v", err)
		}
	}
	got, err := f.Rekey(ctx, n.ID, fresh.Ed25519, n.X25519, issue(time.Now()))
	if err != nil || got.Name != "n" || got.Virtual4 != n.Virtual4 || got.ID == n.ID || !slices.Equal(got.Tags, n.Tags) || got.Generation != 1 {
		t.Fatalf("re-keyed = %+v, %v", got, err)
	}
	if _, err := f.Admit(ctx, n.ID, j.Serial); !errors.Is(err, ErrNotFound) {
		t.Errorf("admit by the old id = %v", err)
	}
	ds, err := f.Denials(ctx, time.Now())
	if err != nil || len(ds) != 1 || !bytes.Equal(ds[0].Value, n.ID[:]) {
		t.Errorf("denials = %v, %v; want the old id", ds, err)
	}
	back := newJoin("k", "n", time.Now())
	back.Ed25519, back.X25519 = n.Ed25519, o.X25519
	if _, err := f.Enroll(ctx, back); !errors.Is(err, ErrKeyInUse) {
		t.Errorf("join with another node's key = %v", err)
	}
}

func testUpdate(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 9, time.Hour)
	n, _ := f.enroll(t, "n")
	f.enroll(t, "o")
	str := func(s string) *string { return &s }
	tags := []string{"a", "b"}
	got, err := f.Update(ctx, n.ID, Edit{Version: 1, Name: str("m"), Site: str("north"), Tags: &tags})
	if err != nil || got.Name != "m" || got.Site != "north" || got.Version != 4 {
		t.Fatalf("update = %+v, %v", got, err)
	}
	stored, err := f.NodeByID(ctx, n.ID)
	if err != nil || stored.Version != got.Version || !slices.Equal(stored.Tags, tags) {
		t.Errorf("stored = %+v, %v; want %+v", stored, err, got)
	}
	if _, err := f.Update(ctx, n.ID, Edit{Version: 1, Name: str("x")}); !errors.Is(err, ErrConflict) {
		t.Errorf("stale = %v", err)
	}
	for _, name := range []string{"o", "hub"} {
		if _, err := f.Update(ctx, n.ID, Edit{Name: &name}); !errors.Is(err, ErrNameTaken) {
			t.Errorf("name %s = %v", name, err)
		}
	}
	st, err := f.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Update(ctx, n.ID, Edit{Name: str("m")}); err != nil {
		t.Errorf("no change = %v", err)
	}
	if now, err := f.State(ctx); err != nil || now.AuditSeq != st.AuditSeq || now.RV != st.RV {
		t.Errorf("no change wrote something: %+v, %v", now, err)
	}
}

// testScopes: who is told of what, and from where.
func testScopes(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	for _, site := range []string{"", "north"} {
		if err := f.CreateToken(ctx, Token{ID: "k" + site, MaxUses: 9, Expires: time.Now().Add(time.Hour), Site: site}); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := f.enroll(t, "a")
	b, err := f.Enroll(ctx, newJoin("knorth", "b", time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	site := "north"
	if _, err := f.Update(ctx, a.ID, Edit{Site: &site}); err != nil {
		t.Fatal(err)
	}
	var got []string
	events, _, err := f.Since(ctx, 0, func(e *Event) bool { return e.Scope != ScopeAll })
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		who := "nobody"
		switch e.Node {
		case a.ID:
			who = "a"
		case b.ID:
			who = "b"
		}
		got = append(got, e.Scope+":"+who)
	}
	// a comes, b comes to north, a leaves (those who follow it stay), a comes to north.
	if d := cmp.Diff([]string{":a", "north:b", ":nobody", "north:a"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for site, want := range map[string]int{"": 0, "north": 2, "south": 0} {
		snap, err := f.Snapshot(ctx, site, nil)
		n, err2 := f.ScopeSize(ctx, site)
		if err := errors.Join(err, err2); err != nil || len(snap.Nodes) != want || n != want {
			t.Errorf("site %q: %d nodes, size %d, %v; want %d", site, len(snap.Nodes), n, err, want)
		}
	}
	snap, err := f.Snapshot(ctx, "", []identity.PeerID{b.ID, {7}})
	if err != nil || len(snap.Nodes) != 1 || snap.Nodes[0].ID != b.ID {
		t.Errorf("snapshot of some = %v, %v", snap.Nodes, err)
	}
}

func testEphemeral(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	if err := f.CreateToken(ctx, Token{ID: "k", MaxUses: 9, Expires: time.Now().Add(time.Hour), Ephemeral: true}); err != nil {
		t.Fatal(err)
	}
	if err := f.CreateToken(ctx, Token{ID: "k3", MaxUses: 300, Expires: time.Now().Add(time.Hour), Ephemeral: true}); err != nil {
		t.Fatal(err)
	}
	f.token(t, "lasting", 9, time.Hour)
	now := time.Now()
	old := func(j Join) Join { j.Now = now.Add(-2 * time.Hour); return j }
	gone, _ := f.Enroll(ctx, old(newJoin("k", "gone", now)))
	online, _ := f.Enroll(ctx, old(newJoin("k", "online", now)))
	recent, _ := f.Enroll(ctx, old(newJoin("k", "recent", now)))
	f.enroll(t, "new")
	if _, err := f.Enroll(ctx, old(newJoin("lasting", "lasting", now))); err != nil {
		t.Fatal(err)
	}
	// More of them are online than fit into one page.
	var still []identity.PeerID
	for range 300 {
		n, err := f.Enroll(ctx, old(newJoin("k3", "still", now)))
		if err != nil {
			t.Fatal(err)
		}
		still = append(still, n.ID)
	}
	if err := f.Touch(ctx, map[identity.PeerID]time.Time{recent.ID: now.Add(-time.Minute), {9}: now}); err != nil {
		t.Fatal(err)
	}
	got, err := f.ExpireEphemeral(ctx, time.Hour, now, func(id identity.PeerID) bool {
		return id == online.ID || slices.Contains(still, id)
	})
	if err != nil || len(got) != 1 || got[0] != gone.ID {
		t.Errorf("expired = %v, %v; want %v", got, err, gone.ID)
	}
	if nodes, err := f.ListNodes(ctx); err != nil || len(nodes) != 4+len(still) {
		t.Errorf("%d nodes left, %v", len(nodes), err)
	}
}

func testFind(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 99, time.Hour)
	n, _ := f.enroll(t, "n")
	for range 20 {
		f.enroll(t, "other")
	}
	id := n.ID.String()
	for _, text := range []string{"n", id, id[:minPrefix], id[:9], id[:30]} {
		if got, err := f.FindNode(ctx, text); err != nil || got.ID != n.ID {
			t.Errorf("find %s = %v, %v", text, got.ID, err)
		}
	}
	for _, text := range []string{"", "x", id[:minPrefix-1], id + "a", "!!!!!!!!", strings.Repeat("a", 52)} {
		if got, err := f.FindNode(ctx, text); !errors.Is(err, ErrNotFound) {
			t.Errorf("find %q = %v, %v", text, got.ID, err)
		}
	}
	// Nobody can be called what stands for another.
	for _, name := range []string{id, id[:8], id[:minPrefix]} {
		if got, _ := f.enroll(t, name); got.Name == name {
			t.Errorf("a node is called %s, as the id of another begins", name)
		}
		if _, err := f.Update(ctx, n.ID, Edit{Name: &name}); !errors.Is(err, ErrNameTaken) {
			t.Errorf("rename to %s = %v", name, err)
		}
		if got, err := f.FindNode(ctx, name); err != nil || got.ID != n.ID {
			t.Errorf("find %s = %s, %v", name, got.Name, err)
		}
	}
	for _, a := range []netip.Addr{n.Virtual4, n.Virtual6} {
		if got, err := f.NodeByAddr(ctx, a); err != nil || got.ID != n.ID {
			t.Errorf("find %v = %v, %v", a, got.ID, err)
		}
	}
}

func testCopy(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 9, time.Hour)
	n, _ := f.enroll(t, "n")
	name := t.TempDir() + "/copy.db"
	if err := f.CopyTo(ctx, name); err != nil {
		t.Fatal(err)
	}
	if err := f.CopyTo(ctx, name); err == nil {
		t.Error("a copy replaces a file")
	}
	f.enroll(t, "later")
	g := open(t, name, Meta{})
	nodes, err := g.ListNodes(ctx)
	if err != nil || len(nodes) != 1 || nodes[0].ID != n.ID || g.Meta() != f.Meta() {
		t.Errorf("copy has %v, %+v, %v", nodes, g.Meta(), err)
	}
	if err := g.Rebase(ctx, Kept{Denials: []Denial{{Kind: DenyNode, Value: n.ID[:]}}, PSKEpoch: 3}, "then"); err != nil {
		t.Fatal(err)
	}
	if st, err := g.State(ctx); err != nil || g.Meta().Epoch == f.Meta().Epoch || st.PSKEpoch != 3 {
		t.Errorf("epoch %d as before, or mesh key of epoch %d, %v", g.Meta().Epoch, st.PSKEpoch, err)
	}
	if _, err := g.Admit(ctx, n.ID, nil); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("a node that was revoked since is admitted: %v", err)
	}
}
