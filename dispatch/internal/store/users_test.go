// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
)

func newAPIKey(t *testing.T, user string, scopes ...authz.Permission) APIKey {
	t.Helper()
	k, err := authz.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return APIKey{ID: k.ID, User: user, SecretHash: k.Hash(), Scopes: scopes, Expires: time.Now().Add(time.Hour)}
}

// people makes a store with a user of each role, who has that role's name, and a
// second owner.
func people(t *testing.T) *fixture {
	t.Helper()
	f := open(t, "", testMeta)
	for _, r := range authz.Roles() {
		if _, err := f.CreateUser(t.Context(), Grantor{}, string(r), r); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func as(role authz.Role, scopes ...authz.Permission) Grantor {
	return Grantor{User: string(role), Role: role, Scopes: scopes}
}

// TestGrants tries every role against every role: nobody gives what he has not,
// and nobody touches who is above him.
func TestGrants(t *testing.T) {
	f := people(t)
	ctx := t.Context()
	may := map[authz.Role][]authz.Role{
		"":          authz.Roles(), // the socket
		authz.Owner: authz.Roles(),
		authz.Admin: {authz.Admin, authz.Operator, authz.Auditor, authz.Viewer},
	}
	n := 0
	for _, by := range append(authz.Roles(), "") {
		g := as(by)
		for _, role := range authz.Roles() {
			n++
			name := fmt.Sprintf("u%d", n)
			want := false
			for _, r := range may[by] {
				want = want || r == role
			}
			check := func(what string, err error) {
				t.Helper()
				if want && err != nil || !want && !errors.Is(err, authz.ErrExceeds) {
					t.Errorf("%q %s %s: %v, want allowed %v", by, what, role, err, want)
				}
			}
			_, err := f.CreateUser(ctx, g, name, role)
			check("creates", err)
			if err != nil {
				if _, err := f.CreateUser(ctx, Grantor{}, name, role); err != nil {
					t.Fatal(err)
				}
			}
			check("makes a key for", f.CreateAPIKey(ctx, g, newAPIKey(t, name)))
			k := newAPIKey(t, name)
			if err := f.CreateAPIKey(ctx, Grantor{}, k); err != nil {
				t.Fatal(err)
			}
			_, err = f.RevokeAPIKey(ctx, g, k.ID)
			check("revokes a key of", err)
			// Demoting: what he is counts, not only what he becomes.
			_, err = f.SetUserRole(ctx, g, name, authz.Viewer, 1)
			check("demotes", err)
			if role == authz.Viewer {
				continue
			}
			if err == nil {
				_, err = f.SetUserRole(ctx, g, name, role, 2)
				check("promotes to", err)
				check("deletes", f.DeleteUser(ctx, g, name, 3))
			} else {
				check("deletes", f.DeleteUser(ctx, g, name, 1))
			}
		}
	}
	// A scope narrows what a key may grant.
	if _, err := f.CreateUser(ctx, as(authz.Owner, authz.UsersWrite), "x", authz.Viewer); !errors.Is(err, authz.ErrExceeds) {
		t.Errorf("a key of one scope made a user that can do more: %v", err)
	}
	own := as(authz.Operator, authz.KeysWrite, authz.NodesRead)
	for _, tt := range []struct {
		scopes []authz.Permission
		ok     bool
	}{
		{[]authz.Permission{authz.NodesRead}, true},
		{[]authz.Permission{authz.NodesRead, authz.NodesWrite}, false},
		{nil, false},
	} {
		err := f.CreateAPIKey(ctx, own, newAPIKey(t, "operator", tt.scopes...))
		if (err == nil) != tt.ok {
			t.Errorf("a key of two scopes makes one of %v: %v", tt.scopes, err)
		}
	}
	if err := f.CreateAPIKey(ctx, as(authz.Operator, authz.NodesRead), newAPIKey(t, "operator", authz.NodesRead)); !errors.Is(err, authz.ErrExceeds) {
		t.Errorf("a key without keys:write made another: %v", err)
	}
}

// TestGrantorLowered: what counts is the role at the time of the write, not at the
// time of the call.
func TestGrantorLowered(t *testing.T) {
	f := people(t)
	ctx := t.Context()
	g := as(authz.Admin)
	if _, err := f.SetUserRole(ctx, Grantor{}, "admin", authz.Viewer, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := f.CreateUser(ctx, g, "x", authz.Viewer); !errors.Is(err, authz.ErrExceeds) {
		t.Errorf("a lowered admin made a user: %v", err)
	}
	if err := f.DeleteUser(ctx, Grantor{}, "admin", 2); err != nil {
		t.Fatal(err)
	}
	if _, err := f.CreateUser(ctx, g, "x", authz.Viewer); !errors.Is(err, authz.ErrExceeds) {
		t.Errorf("a deleted admin made a user: %v", err)
	}
}

// TestRoleRace: of many writers who have read the same version, one wins.
func TestRoleRace(t *testing.T) {
	f := people(t)
	var wg sync.WaitGroup
	errs := make(chan error, 50)
	for range cap(errs) {
		wg.Go(func() {
			_, err := f.SetUserRole(context.Background(), Grantor{}, "viewer", authz.Auditor, 1)
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	won := 0
	for err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrConflict):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d writers won, want 1", won)
	}
}

func TestLastOwner(t *testing.T) {
	f := people(t)
	ctx := t.Context()
	if _, err := f.SetUserRole(ctx, Grantor{}, "owner", authz.Admin, 1); !errors.Is(err, ErrLastOwner) {
		t.Errorf("demote the last owner: %v", err)
	}
	if err := f.DeleteUser(ctx, Grantor{}, "owner", 1); !errors.Is(err, ErrLastOwner) {
		t.Errorf("delete the last owner: %v", err)
	}
	if _, err := f.CreateUser(ctx, Grantor{}, "second", authz.Owner); err != nil {
		t.Fatal(err)
	}
	// Two owners remove each other at once: one stays.
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, pair := range [][2]string{{"owner", "second"}, {"second", "owner"}} {
		wg.Go(func() {
			errs[i] = f.DeleteUser(context.Background(), Grantor{User: pair[0], Role: authz.Owner}, pair[1], 1)
		})
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("owners removed each other: %v", errs)
	}
}

func TestUserErrors(t *testing.T) {
	f := people(t)
	ctx := t.Context()
	if _, err := f.CreateUser(ctx, Grantor{}, "viewer", authz.Admin); !errors.Is(err, ErrNameTaken) {
		t.Errorf("second user of a name: %v", err)
	}
	for what, err := range map[string]error{
		"delete": f.DeleteUser(ctx, Grantor{}, "nobody", 1),
		"key":    f.CreateAPIKey(ctx, Grantor{}, newAPIKey(t, "nobody")),
		"role":   second(f.SetUserRole(ctx, Grantor{}, "nobody", authz.Viewer, 1)),
		"revoke": second(f.RevokeAPIKey(ctx, Grantor{}, "nokey")),
		"read":   second(f.UserRole(ctx, "nobody")),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", what, err)
		}
	}
	if err := f.DeleteUser(ctx, Grantor{}, "viewer", 7); !errors.Is(err, ErrConflict) {
		t.Errorf("delete with a stale version: %v", err)
	}
	k := newAPIKey(t, "viewer", authz.NodesRead, authz.HubRead)
	k.Note = "wall screen"
	if err := f.CreateAPIKey(ctx, Grantor{}, k); err != nil {
		t.Fatal(err)
	}
	at := time.UnixMicro(1_700_000_000_000_000)
	if err := f.TouchAPIKeys(ctx, map[string]time.Time{k.ID: at, "gone": at}); err != nil {
		t.Fatal(err)
	}
	got, role, err := f.APIKey(ctx, k.ID)
	if err != nil || role != authz.Viewer || got.SecretHash != k.SecretHash || !got.LastUsed.Equal(at) || len(got.Scopes) != 2 || got.Note != k.Note {
		t.Errorf("key = %+v of a %s, %v", got, role, err)
	}
	if list, err := f.APIKeys(ctx, "admin"); err != nil || len(list) != 0 {
		t.Errorf("keys of somebody else: %v, %v", list, err)
	}
	if user, err := f.RevokeAPIKey(ctx, Grantor{}, k.ID); err != nil || user != "viewer" {
		t.Errorf("revoke: %s, %v", user, err)
	}
	if _, err := f.RevokeAPIKey(ctx, Grantor{}, k.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("revoke again: %v", err)
	}
	if err := f.DeleteUser(ctx, Grantor{}, "viewer", 1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.APIKey(ctx, k.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the key outlives its user: %v", err)
	}
	for i := range maxKeysPerUser + 1 {
		err = f.CreateAPIKey(ctx, Grantor{}, newAPIKey(t, "auditor"))
		if err != nil && i < maxKeysPerUser {
			t.Fatal(err)
		}
	}
	if !errors.Is(err, ErrTooMany) {
		t.Errorf("key %d: %v", maxKeysPerUser+1, err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestClaimOnce: 200 claims of one link at the same time make one owner.
func TestClaimOnce(t *testing.T) {
	f := open(t, "", testMeta)
	ctx := t.Context()
	if need, err := f.OwnerLinkNeeded(ctx); err != nil || !need {
		t.Fatalf("a new hub needs no link: %v", err)
	}
	hash := authz.HashSecret("s")
	if err := f.CreateOwnerLink(ctx, hash, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if need, err := f.OwnerLinkNeeded(ctx); err != nil || need {
		t.Fatalf("a second link would be printed: %v", err)
	}
	var wg sync.WaitGroup
	errs := make(chan error, 200)
	for i := range cap(errs) {
		k := newAPIKey(t, fmt.Sprintf("o%d", i))
		wg.Go(func() {
			_, err := f.ClaimOwner(context.Background(), hash, k)
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	won := 0
	for err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrLinkInvalid):
			t.Error(err)
		}
	}
	if users, err := f.Users(ctx); won != 1 || err != nil || len(users) != 1 || users[0].Role != authz.Owner || users[0].Keys != 1 {
		t.Errorf("%d claims won, users %v, %v", won, users, err)
	}
}

func TestOwnerLinks(t *testing.T) {
	f := people(t)
	ctx := t.Context()
	link := func(secret string, life time.Duration) [32]byte {
		t.Helper()
		h := authz.HashSecret(secret)
		if err := f.CreateOwnerLink(ctx, h, time.Now().Add(life)); err != nil {
			t.Fatal(err)
		}
		return h
	}
	if _, err := f.ClaimOwner(ctx, link("expired", -time.Second), newAPIKey(t, "new")); !errors.Is(err, ErrLinkInvalid) {
		t.Errorf("an expired link: %v", err)
	}
	old, fresh := link("old", time.Hour), link("fresh", time.Hour)
	if _, err := f.ClaimOwner(ctx, old, newAPIKey(t, "new")); !errors.Is(err, ErrLinkInvalid) {
		t.Errorf("a link that a newer one replaced: %v", err)
	}
	if _, err := f.ClaimOwner(ctx, authz.HashSecret("guess"), newAPIKey(t, "new")); !errors.Is(err, ErrLinkInvalid) {
		t.Errorf("a guess: %v", err)
	}
	if _, err := f.ClaimOwner(ctx, fresh, newAPIKey(t, "viewer")); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a claim promotes somebody: %v", err)
	}
	if _, err := f.ClaimOwner(ctx, fresh, newAPIKey(t, "new")); err != nil {
		t.Errorf("the claim that failed for its name used the link up: %v", err)
	}
}

// TestAccessAudited: each change of users and keys is in the log, and no secret is.
func TestAccessAudited(t *testing.T) {
	f := open(t, "", testMeta)
	ctx := WithActor(t.Context(), "user:alice")
	secret := "a secret of an owner link"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.CreateOwnerLink(ctx, authz.HashSecret(secret), time.Now().Add(time.Hour)))
	k, err := authz.NewKey()
	must(err)
	must(second(f.ClaimOwner(ctx, authz.HashSecret(secret), APIKey{ID: k.ID, User: "alice", SecretHash: k.Hash(), Expires: time.Now().Add(time.Hour)})))
	must(second(f.CreateUser(ctx, Grantor{}, "bob", authz.Viewer)))
	must(second(f.SetUserRole(ctx, Grantor{}, "bob", authz.Auditor, 1)))
	must(second(f.RevokeAPIKey(ctx, Grantor{}, k.ID)))
	must(f.DeleteUser(ctx, Grantor{}, "bob", 2))
	_, _ = f.CreateUser(ctx, Grantor{User: "nobody"}, "x", authz.Viewer) // refused, not in the log
	log, err := f.Audit(ctx, AuditFilter{Limit: 100})
	must(err)
	var got []string
	for _, e := range log {
		if e.Actor == "user:alice" {
			got = append(got, e.Action+" "+e.Target)
		}
	}
	want := []string{
		"owner-link.create ", "owner-link.claim alice", "key.create " + k.ID,
		"user.create bob", "user.role bob", "key.revoke " + k.ID, "user.delete bob",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("audit log:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	must(f.Close())
	files, err := filepath.Glob(filepath.Join(filepath.Dir(f.path), "*"))
	must(err)
	for _, name := range files {
		b, err := os.ReadFile(name)
		must(err)
		if strings.Contains(string(b), k.Secret) || strings.Contains(string(b), secret) {
			t.Errorf("%s holds a secret", name)
		}
	}
}
