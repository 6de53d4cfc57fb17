// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
)

// TestRestoreTakesAway: what was revoked, lowered, deleted or used since a backup
// stays so after its restore, and nothing is given.
func TestRestoreTakesAway(t *testing.T) {
	f := people(t)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	keys := make(map[string]APIKey)
	for what, user := range map[string]string{"good": "owner", "revoked": "owner", "of deleted": "auditor", "of lowered": "admin"} {
		keys[what] = newAPIKey(t, user)
		must(f.CreateAPIKey(ctx, Grantor{}, keys[what]))
	}
	f.token(t, "used", 1, time.Hour)
	f.token(t, "revoked", 1, time.Hour)
	f.token(t, "fresh", 1, time.Hour)
	link := authz.HashSecret("link")
	must(f.CreateOwnerLink(ctx, link, time.Now().Add(time.Hour)))
	early := filepath.Join(t.TempDir(), "early.db")
	must(f.CopyTo(ctx, early))

	must(second(f.RevokeAPIKey(ctx, Grantor{}, keys["revoked"].ID)))
	must(f.DeleteUser(ctx, Grantor{}, "auditor", 1))
	must(second(f.SetUserRole(ctx, Grantor{}, "admin", authz.Viewer, 1)))
	must(second(f.SetUserRole(ctx, Grantor{}, "viewer", authz.Operator, 1))) // more: not taken over
	must(f.RevokeToken(ctx, "revoked"))
	must(second(f.Enroll(ctx, newJoin("used", "n", time.Now()))))
	late := filepath.Join(t.TempDir(), "late.db")
	must(f.CopyTo(ctx, late))
	must(f.Close())

	// The older one over the newer one.
	r := open(t, early, Meta{})
	kept, err := r.ReadKept(ctx, f.path)
	must(err)
	must(r.Rebase(ctx, kept, "then"))
	for what, want := range map[string]bool{"good": false, "revoked": true, "of deleted": true, "of lowered": false} {
		if k, _, err := r.APIKey(ctx, keys[what].ID); err != nil || k.Revoked != want {
			t.Errorf("key %s: revoked %v, want %v, %v", what, k.Revoked, want, err)
		}
	}
	for user, want := range map[string]authz.Role{"owner": authz.Owner, "admin": authz.Viewer, "viewer": authz.Viewer, "operator": authz.Operator} {
		if role, err := r.UserRole(ctx, user); err != nil || role != want {
			t.Errorf("%s is %s, want %s, %v", user, role, want, err)
		}
	}
	for token, want := range map[string]error{"used": ErrTokenUsedUp, "revoked": ErrTokenRevoked, "fresh": nil} {
		if _, err := r.Enroll(ctx, newJoin(token, "m", time.Now())); !errors.Is(err, want) {
			t.Errorf("join with the token %s: %v, want %v", token, err, want)
		}
	}
	if _, err := r.ClaimOwner(ctx, link, newAPIKey(t, "new")); !errors.Is(err, ErrLinkInvalid) {
		t.Errorf("an owner link of before the restore: %v", err)
	}
	// It goes on by itself, and further than the other.
	for i := range 40 {
		r.token(t, fmt.Sprintf("more-%d", i), 1, time.Hour)
	}
	must(r.Close())

	// The newer one over an older one takes nothing that was made in between. Nor
	// does one that went on from the same backup apart: it has more entries, but others.
	stale := filepath.Join(t.TempDir(), "stale.db")
	f = open(t, late, Meta{})
	must(f.CreateAPIKey(ctx, Grantor{}, newAPIKey(t, "owner")))
	must(f.CopyTo(ctx, stale))
	must(f.Close())
	must(open(t, stale, Meta{}).Close())
	for what, old := range map[string]string{"older": stale, "parted": early} {
		made := newAPIKey(t, "owner")
		l := open(t, late, Meta{})
		must(l.CreateAPIKey(ctx, Grantor{}, made))
		must(second(l.Approve(ctx, must1(l.ListNodes(ctx))(t)[0].ID)))
		over := filepath.Join(t.TempDir(), "over.db")
		must(l.CopyTo(ctx, over))
		must(l.Close())
		o := open(t, over, Meta{})
		kept, err := o.ReadKept(ctx, old)
		must(err)
		must(o.Rebase(ctx, kept, "then"))
		if k, _, err := o.APIKey(ctx, made.ID); err != nil || k.Revoked {
			t.Errorf("%s: a key that the other database cannot know is revoked: %v", what, err)
		}
		if ns, err := o.ListNodes(ctx); err != nil || len(ns) != 1 {
			t.Errorf("%s: nodes = %v, %v; want the one that was there", what, ns, err)
		}
		must(o.Close())
	}
}

func must1[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// restored makes a backup, lets change run on, and returns the backup restored over
// what came of it.
func restored(t *testing.T, f *fixture, change func()) *fixture {
	t.Helper()
	ctx, backup := t.Context(), filepath.Join(t.TempDir(), "backup.db")
	if err := f.CopyTo(ctx, backup); err != nil {
		t.Fatal(err)
	}
	change()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r := open(t, backup, Meta{})
	if err := r.Rebase(ctx, must1(r.ReadKept(ctx, f.path))(t), "then"); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRestoreKeepsNodesOut: a node that was locked, deleted, or re-keyed and then
// revoked since the backup is not let in by its restore, at once or later.
func TestRestoreKeepsNodesOut(t *testing.T) {
	f := open(t, "", testMeta)
	ctx := t.Context()
	f.token(t, "k", 9, time.Hour)
	good, _ := f.enroll(t, "good")
	locked, _ := f.enroll(t, "locked")
	deleted, _ := f.enroll(t, "deleted")
	rekeyed, _ := f.enroll(t, "rekeyed")
	r := restored(t, f, func() {
		_, err := f.Recover(ctx, Recovery{ID: locked.ID, Generation: 9, Attempt: make([]byte, 16)}, issue(time.Now()))
		if !errors.Is(err, ErrNodeLocked) {
			t.Fatal(err)
		}
		if err := f.Delete(ctx, deleted.ID, "delete", time.Now()); err != nil {
			t.Fatal(err)
		}
		j := newJoin("", "", time.Now())
		n := must1(f.Rekey(ctx, rekeyed.ID, j.Ed25519, j.X25519, issue(time.Now())))(t)
		if err := f.RevokeNode(ctx, n.ID, "stolen"); err != nil {
			t.Fatal(err)
		}
		f.enroll(t, "late")
	})
	check := func(when string) {
		t.Helper()
		for _, c := range []struct {
			n    Node
			want error
		}{{good, nil}, {locked, ErrNodeLocked}, {deleted, ErrNotFound}, {rekeyed, ErrNotFound}} {
			if _, err := r.Admit(ctx, c.n.ID, nil); !errors.Is(err, c.want) {
				t.Errorf("%s: admit %s: %v, want %v", when, c.n.Name, err, c.want)
			}
		}
		for _, n := range []Node{locked, deleted, rekeyed} {
			_, err := r.Recover(ctx, Recovery{ID: n.ID, Attempt: make([]byte, 16)}, issue(time.Now()))
			if err == nil {
				t.Errorf("%s: %s recovers", when, n.Name)
			}
		}
	}
	check("at once")
	if err := r.PruneCerts(ctx, time.Now().AddDate(0, 2, 0)); err != nil {
		t.Fatal(err)
	}
	check("after the certificates' end")
	// The old key of the one that has new keys stays out whatever comes.
	j := newJoin("k", "rekeyed", time.Now())
	j.Ed25519, j.X25519 = rekeyed.Ed25519, rekeyed.X25519
	if _, err := r.Enroll(ctx, j); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("join with the key from before the re-key: %v", err)
	}
	// What was not stolen can join again under its name.
	if n, err := r.Enroll(ctx, newJoin("k", "rekeyed", time.Now())); err != nil || n.Name != "rekeyed" {
		t.Errorf("join with new keys = %s, %v", n.Name, err)
	}
}

// TestRestoreRevokesReplaced: where the database at hand is no later state of the
// backup, so that none of its rows goes, the old id of a re-keyed node is revoked
// for good although its denial ends.
func TestRestoreRevokesReplaced(t *testing.T) {
	f := open(t, "", testMeta)
	ctx := t.Context()
	f.token(t, "k", 9, time.Hour)
	n, _ := f.enroll(t, "n")
	kept := Kept{Denials: []Denial{{Kind: DenyNode, Value: n.ID[:], Until: time.Now().Add(time.Hour)}}}
	if err := f.Rebase(ctx, kept, "then"); err != nil {
		t.Fatal(err)
	}
	if err := f.PruneCerts(ctx, time.Now().AddDate(0, 2, 0)); err != nil {
		t.Fatal(err)
	}
	if got, err := f.NodeByID(ctx, n.ID); err != nil || got.State != Revoked {
		t.Errorf("state = %s, %v; want revoked", got.State, err)
	}
	if _, err := f.Admit(ctx, n.ID, nil); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("admit = %v", err)
	}
}

// TestRestoreOldKey: a key that was revoked so long ago that the hub has forgotten
// it is not good again.
func TestRestoreOldKey(t *testing.T) {
	f := people(t)
	ctx := t.Context()
	k := newAPIKey(t, "owner")
	k.Expires = time.Now().AddDate(1, 0, 0)
	if err := f.CreateAPIKey(ctx, Grantor{}, k); err != nil {
		t.Fatal(err)
	}
	r := restored(t, f, func() {
		if _, err := f.RevokeAPIKey(ctx, Grantor{}, k.ID); err != nil {
			t.Fatal(err)
		}
		err := f.update(ctx, func(t *tx) error { return t.q.DeleteOldKeys(bg, time.Now().Add(time.Second).UnixMicro()) })
		if err != nil {
			t.Fatal(err)
		}
	})
	if got, _, err := r.APIKey(ctx, k.ID); err != nil || !got.Revoked {
		t.Errorf("key = %+v, %v; want it revoked", got, err)
	}
}

// TestRestoreOtherMesh: nothing is taken over from the database of another mesh.
func TestRestoreOtherMesh(t *testing.T) {
	f := open(t, "", testMeta)
	other := open(t, "", Meta{MeshID: "other", CIDR: testMeta.CIDR, CIDR6: testMeta.CIDR6})
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	k, err := f.ReadKept(t.Context(), other.path)
	if !errors.Is(err, ErrOtherMesh) || k.Denials != nil || k.PSKEpoch != 0 || k.access != nil {
		t.Errorf("kept = %+v, %v; want nothing and ErrOtherMesh", k, err)
	}
}
