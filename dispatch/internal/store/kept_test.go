// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
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
	kept, err := ReadKept(ctx, f.path)
	must(err)
	r := open(t, early, Meta{})
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
	must(r.Close())

	// The newer one over an older one takes nothing that was made in between.
	kept, err = ReadKept(ctx, early)
	must(err)
	kept.access.auditSeq, kept.access.roles, kept.access.keys = 1, map[string]authz.Role{}, map[string]bool{}
	l := open(t, late, Meta{})
	must(l.Rebase(ctx, kept, "then"))
	if k, _, err := l.APIKey(ctx, keys["good"].ID); err != nil || k.Revoked {
		t.Errorf("a key that the older database cannot know is revoked: %v", err)
	}
	must(l.Close())

	// Nor does the database of another mesh.
	other := open(t, "", Meta{MeshID: "other", CIDR: testMeta.CIDR, CIDR6: testMeta.CIDR6})
	must(other.Close())
	kept, err = ReadKept(ctx, other.path)
	must(err)
	kept.access.auditSeq = 1 << 40
	l = open(t, late, Meta{})
	must(l.Rebase(ctx, kept, "then"))
	if k, _, err := l.APIKey(ctx, keys["good"].ID); err != nil || k.Revoked {
		t.Errorf("the database of another mesh revoked a key: %v", err)
	}
}
