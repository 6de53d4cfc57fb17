// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// Errors of users and keys.
var (
	// ErrLastOwner means that nobody could administer the hub any more.
	ErrLastOwner = errors.New("this is the last owner")
	// ErrLinkInvalid means that an owner link is unknown, used or expired.
	ErrLinkInvalid = errors.New("owner link is not valid")
	// ErrTooMany means that a limit is reached.
	ErrTooMany = errors.New("limit reached")
)

const (
	maxUsers       = 1000
	maxKeysPerUser = 100
	// keepKeys is how long expired and revoked keys are still listed.
	keepKeys = 90 * 24 * time.Hour
)

// User is somebody who may administer the hub.
type User struct {
	Name    string
	Role    authz.Role
	Version uint64
	Created time.Time
	// Keys is how many keys he has that are good.
	Keys int
}

// APIKey is an API key as the hub keeps it: without its secret.
type APIKey struct {
	ID, User   string
	SecretHash [32]byte
	Scopes     []authz.Permission
	Note       string
	Created    time.Time
	Expires    time.Time
	LastUsed   time.Time // zero where it never was
	Revoked    bool
}

// Grantor is who changes users and keys: the bearer of a key. The zero value is
// whoever owns the machine.
type Grantor struct {
	User string
	Role authz.Role
	// Scopes are those of his key.
	Scopes []authz.Permission
}

// may checks that g, as he is at this moment, has need, and as much as (role,
// scopes). The role may have been lowered since the call came in.
func (t *tx) may(g Grantor, need authz.Permission, role authz.Role, scopes []authz.Permission) error {
	if g.User == "" {
		return nil
	}
	u, err := t.q.UserByName(bg, g.User)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("user %s is gone: %w", g.User, authz.ErrExceeds)
	}
	if err != nil {
		return fmt.Errorf("read user: %w", err)
	}
	now := authz.Role(u.Role)
	if !authz.Allowed(now, g.Scopes, need) || authz.Exceeds(role, scopes, now, g.Scopes) {
		return authz.ErrExceeds
	}
	return nil
}

func (t *tx) user(name string) (db.User, error) {
	u, err := t.q.UserByName(bg, name)
	if errors.Is(err, sql.ErrNoRows) {
		return u, fmt.Errorf("user %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return u, fmt.Errorf("read user: %w", err)
	}
	return u, nil
}

// CreateUser makes a user. Errors: authz.ErrExceeds, ErrNameTaken, ErrTooMany.
func (s *Store) CreateUser(ctx context.Context, by Grantor, name string, role authz.Role) (User, error) {
	var out User
	err := s.update(ctx, func(t *tx) error {
		if err := t.may(by, authz.UsersWrite, role, nil); err != nil {
			return err
		}
		if err := t.insertUser(name, role); err != nil {
			return err
		}
		t.audit("user.create", name, detail("role", string(role)))
		out = User{Name: name, Role: role, Version: 1, Created: time.UnixMicro(t.now.UnixMicro())}
		return nil
	})
	return out, err
}

func (t *tx) insertUser(name string, role authz.Role) error {
	if _, err := t.q.UserByName(bg, name); err == nil {
		return fmt.Errorf("user %s: %w", name, ErrNameTaken)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read user: %w", err)
	}
	if n, err := t.q.CountUsers(bg); err != nil {
		return fmt.Errorf("count users: %w", err)
	} else if n >= maxUsers {
		return fmt.Errorf("create user: %w: %d users", ErrTooMany, n)
	}
	err := t.q.InsertUser(bg, db.InsertUserParams{Name: name, Role: string(role), Created: t.now.UnixMicro()})
	if err != nil {
		return fmt.Errorf("store user: %w", err)
	}
	return nil
}

// Users returns all users by name.
func (s *Store) Users(ctx context.Context) ([]User, error) {
	rows, err := s.rq.ListUsers(ctx, time.Now().UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	out := make([]User, len(rows))
	for i, r := range rows {
		out[i] = userOf(r.User)
		out[i].Keys = int(r.Keys)
	}
	return out, nil
}

// UserRole returns what a user is now. Errors: ErrNotFound.
func (s *Store) UserRole(ctx context.Context, name string) (authz.Role, error) {
	u, err := s.rq.UserByName(ctx, name)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("user %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("read user: %w", err)
	}
	return authz.Role(u.Role), nil
}

// SetUserRole changes a role where version is the user's newest. Errors:
// ErrNotFound, ErrConflict, ErrLastOwner, authz.ErrExceeds.
func (s *Store) SetUserRole(ctx context.Context, by Grantor, name string, role authz.Role, version uint64) (User, error) {
	var out User
	err := s.update(ctx, func(t *tx) error {
		old, err := t.changeUser(by, name, version)
		if err != nil {
			return err
		}
		if err = t.may(by, authz.UsersWrite, role, nil); err != nil {
			return err
		}
		if role != authz.Owner {
			if err := t.notLastOwner(old); err != nil {
				return err
			}
		}
		u, err := t.q.SetUserRole(bg, db.SetUserRoleParams{Role: string(role), Name: name, Version: int64(version)})
		if err != nil {
			return fmt.Errorf("store role: %w", err)
		}
		t.audit("user.role", name, detail("from", old.Role, "to", string(role)))
		out = userOf(u)
		return nil
	})
	return out, err
}

// changeUser checks that by may change the user, of whom he has seen version.
func (t *tx) changeUser(by Grantor, name string, version uint64) (db.User, error) {
	u, err := t.user(name)
	if err != nil {
		return u, err
	}
	if err := t.may(by, authz.UsersWrite, authz.Role(u.Role), nil); err != nil {
		return u, err
	}
	if uint64(u.Version) != version {
		return u, fmt.Errorf("user %s has version %d, not %d: %w", name, u.Version, version, ErrConflict)
	}
	return u, nil
}

func (t *tx) notLastOwner(u db.User) error {
	if authz.Role(u.Role) != authz.Owner {
		return nil
	}
	n, err := t.q.CountOwners(bg)
	if err != nil {
		return fmt.Errorf("count owners: %w", err)
	}
	if n < 2 {
		return fmt.Errorf("user %s: %w", u.Name, ErrLastOwner)
	}
	return nil
}

// DeleteUser deletes a user with his keys where version is his newest. Errors: as
// SetUserRole.
func (s *Store) DeleteUser(ctx context.Context, by Grantor, name string, version uint64) error {
	return s.update(ctx, func(t *tx) error {
		u, err := t.changeUser(by, name, version)
		if err != nil {
			return err
		}
		if err := t.notLastOwner(u); err != nil {
			return err
		}
		if _, err := t.q.DeleteUser(bg, db.DeleteUserParams{Name: name, Version: int64(version)}); err != nil {
			return fmt.Errorf("delete user: %w", err)
		}
		t.audit("user.delete", name, detail("role", u.Role))
		return nil
	})
}

// CreateAPIKey stores a key of k.User. Errors: ErrNotFound, ErrTooMany,
// authz.ErrExceeds where it could do more than by.
func (s *Store) CreateAPIKey(ctx context.Context, by Grantor, k APIKey) error {
	return s.update(ctx, func(t *tx) error {
		u, err := t.user(k.User)
		if err != nil {
			return err
		}
		need := authz.KeysWrite
		if k.User != by.User {
			need = authz.UsersWrite
		}
		if err := t.may(by, need, authz.Role(u.Role), k.Scopes); err != nil {
			return err
		}
		return t.insertKey(k)
	})
}

func (t *tx) insertKey(k APIKey) error {
	// Here rather than on a timer: keys grow in number only by this.
	if err := t.q.DeleteOldKeys(bg, t.now.Add(-keepKeys).UnixMicro()); err != nil {
		return fmt.Errorf("delete old keys: %w", err)
	}
	n, err := t.q.CountUserKeys(bg, db.CountUserKeysParams{UserName: k.User, Expires: t.now.UnixMicro()})
	if err != nil {
		return fmt.Errorf("count keys: %w", err)
	}
	if n >= maxKeysPerUser {
		return fmt.Errorf("create key: %w: user %s has %d", ErrTooMany, k.User, n)
	}
	err = t.q.InsertKey(bg, db.InsertKeyParams{
		ID: k.ID, UserName: k.User, SecretSha256: k.SecretHash[:], Scopes: authz.JoinScopes(k.Scopes, ","),
		Note: k.Note, Created: t.now.UnixMicro(), Expires: k.Expires.UnixMicro(),
	})
	if err != nil {
		return fmt.Errorf("store key: %w", err)
	}
	t.audit("key.create", k.ID, detail("user", k.User, "scopes", authz.JoinScopes(k.Scopes, ","),
		"expires", k.Expires.UTC().Format(time.RFC3339)))
	return nil
}

// APIKey returns a key and what its user is now. Errors: ErrNotFound.
func (s *Store) APIKey(ctx context.Context, id string) (APIKey, authz.Role, error) {
	r, err := s.rq.KeyByID(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return APIKey{}, "", fmt.Errorf("key %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return APIKey{}, "", fmt.Errorf("read key: %w", err)
	}
	return keyOf(r.ApiKey), authz.Role(r.Role), nil
}

// APIKeys returns the keys of a user, or all where user is empty, newest first.
func (s *Store) APIKeys(ctx context.Context, user string) ([]APIKey, error) {
	rows, err := s.rq.ListKeys(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	out := make([]APIKey, len(rows))
	for i, r := range rows {
		out[i] = keyOf(r)
	}
	return out, nil
}

// RevokeAPIKey makes a key useless at once and returns whose it was. Errors:
// ErrNotFound, also where it is revoked already; authz.ErrExceeds.
func (s *Store) RevokeAPIKey(ctx context.Context, by Grantor, id string) (user string, err error) {
	err = s.update(ctx, func(t *tx) error {
		r, err := t.q.KeyByID(bg, id)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("key %s: %w", id, ErrNotFound)
		}
		if err != nil {
			return fmt.Errorf("read key: %w", err)
		}
		user = r.ApiKey.UserName
		// One's own keys, also those that can do more than the one at hand: who finds
		// that a key leaked must be able to stop it.
		if user == by.User {
			err = t.may(by, authz.KeysWrite, "", nil)
		} else {
			err = t.may(by, authz.UsersWrite, authz.Role(r.Role), nil)
		}
		if err != nil {
			return err
		}
		n, err := t.q.RevokeKey(bg, db.RevokeKeyParams{RevokedAt: t.now.UnixMicro(), ID: id})
		if err != nil {
			return fmt.Errorf("revoke key: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("key %s is revoked already: %w", id, ErrNotFound)
		}
		t.audit("key.revoke", id, detail("user", user))
		return nil
	})
	return user, err
}

// TouchAPIKeys records when keys were used. It is not audited.
func (s *Store) TouchAPIKeys(ctx context.Context, used map[string]time.Time) error {
	return s.update(ctx, func(t *tx) error {
		for id, at := range used {
			if err := t.q.TouchKey(bg, db.TouchKeyParams{LastUsed: at.UnixMicro(), ID: id}); err != nil {
				return fmt.Errorf("record use of key: %w", err)
			}
		}
		return nil
	})
}

// CreateOwnerLink stores the hash of a new link's secret. Older links that nobody
// has used are void from then on.
func (s *Store) CreateOwnerLink(ctx context.Context, hash [32]byte, expires time.Time) error {
	return s.update(ctx, func(t *tx) error {
		if err := t.q.VoidOwnerLinks(bg, t.now.UnixMicro()); err != nil {
			return fmt.Errorf("void older links: %w", err)
		}
		err := t.q.InsertOwnerLink(bg, db.InsertOwnerLinkParams{
			SecretSha256: hash[:], Expires: expires.UnixMicro(), Created: t.now.UnixMicro(),
		})
		if err != nil {
			return fmt.Errorf("store owner link: %w", err)
		}
		t.audit("owner-link.create", "", detail("expires", expires.UTC().Format(time.RFC3339)))
		return nil
	})
}

// OwnerLinkNeeded reports whether there is neither a user nor was ever a link to
// make one.
func (s *Store) OwnerLinkNeeded(ctx context.Context) (bool, error) {
	users, err := s.rq.CountUsers(ctx)
	if err != nil {
		return false, fmt.Errorf("count users: %w", err)
	}
	links, err := s.rq.CountOwnerLinks(ctx)
	if err != nil {
		return false, fmt.Errorf("count owner links: %w", err)
	}
	return users == 0 && links == 0, nil
}

// ClaimOwner uses up the link of hash, and makes the owner k.User and his key.
// Errors: ErrLinkInvalid; ErrNameTaken, which does not use it up.
func (s *Store) ClaimOwner(ctx context.Context, hash [32]byte, k APIKey) (User, error) {
	var out User
	err := s.update(ctx, func(t *tx) error {
		n, err := t.q.UseOwnerLink(bg, db.UseOwnerLinkParams{Now: t.now.UnixMicro(), Secret: hash[:]})
		if err != nil {
			return fmt.Errorf("use owner link: %w", err)
		}
		if n == 0 {
			return ErrLinkInvalid
		}
		if err := t.insertUser(k.User, authz.Owner); err != nil {
			return err
		}
		t.audit("owner-link.claim", k.User, "")
		if err := t.insertKey(k); err != nil {
			return err
		}
		out = User{Name: k.User, Role: authz.Owner, Version: 1, Created: time.UnixMicro(t.now.UnixMicro()), Keys: 1}
		return nil
	})
	return out, err
}

func userOf(u db.User) User {
	return User{Name: u.Name, Role: authz.Role(u.Role), Version: uint64(u.Version), Created: time.UnixMicro(u.Created)}
}

func keyOf(r db.ApiKey) APIKey {
	k := APIKey{
		ID: r.ID, User: r.UserName, Note: r.Note, Created: time.UnixMicro(r.Created),
		Expires: time.UnixMicro(r.Expires), Revoked: r.RevokedAt != 0,
	}
	copy(k.SecretHash[:], r.SecretSha256)
	if r.LastUsed != 0 {
		k.LastUsed = time.UnixMicro(r.LastUsed)
	}
	if r.Scopes != "" {
		// A scope that this program does not know stays: it lets nothing through, while
		// dropping the last one would mean all.
		for s := range strings.SplitSeq(r.Scopes, ",") {
			k.Scopes = append(k.Scopes, authz.Permission(s))
		}
	}
	return k
}
