// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// keptAccess is what the replaced database knows of credentials. A restore takes
// rights away by it, and never gives any: a key that was revoked, a role that was
// lowered and a token that was used since the backup stay so.
type keptAccess struct {
	auditSeq int64
	roles    map[string]authz.Role
	keys     map[string]bool // revoked or not
	tokens   []db.AllTokenUsesRow
}

func readAccess(ctx context.Context, q *db.Queries) (*keptAccess, error) {
	m, err := q.GetMeta(ctx)
	if err != nil {
		return nil, fmt.Errorf("read mesh state: %w", err)
	}
	k := &keptAccess{auditSeq: m.AuditSeq, roles: make(map[string]authz.Role), keys: make(map[string]bool)}
	users, err := q.ListUsers(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	for _, u := range users {
		k.roles[u.User.Name] = authz.Role(u.User.Role)
	}
	keys, err := q.ListKeys(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	for _, r := range keys {
		k.keys[r.ID] = r.RevokedAt != 0
	}
	if k.tokens, err = q.AllTokenUses(ctx); err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return k, nil
}

// takeAway applies k to the restored database.
func (t *tx) takeAway(k *keptAccess) error {
	if err := t.q.VoidOwnerLinks(bg, t.now.UnixMicro()); err != nil {
		return fmt.Errorf("void owner links: %w", err)
	}
	if k == nil {
		return nil
	}
	m, err := t.q.GetMeta(bg)
	if err != nil {
		return fmt.Errorf("read mesh state: %w", err)
	}
	// What is missing from a log that is older than the backup was made later.
	newer := k.auditSeq >= m.AuditSeq
	users, err := t.q.ListUsers(bg, 0)
	if err != nil {
		return fmt.Errorf("list users: %w", err)
	}
	for _, u := range users {
		was := authz.Role(u.User.Role)
		now, known := k.roles[u.User.Name]
		if !known || !newer || !authz.Exceeds(was, nil, now, nil) {
			continue
		}
		_, err := t.q.SetUserRole(bg, db.SetUserRoleParams{Role: string(now), Name: u.User.Name, Version: u.User.Version})
		if err != nil {
			return fmt.Errorf("store role: %w", err)
		}
		t.audit("user.role", u.User.Name, detail("from", string(was), "to", string(now), "why", "as before the restore"))
	}
	keys, err := t.q.ListKeys(bg, "")
	if err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	for _, r := range keys {
		revoked, known := k.keys[r.ID]
		if _, user := k.roles[r.UserName]; !user && newer {
			revoked, known = true, true // the user was deleted, and his keys with him
		}
		if r.RevokedAt != 0 || !known || !revoked {
			continue
		}
		if _, err := t.q.RevokeKey(bg, db.RevokeKeyParams{RevokedAt: t.now.UnixMicro(), ID: r.ID}); err != nil {
			return fmt.Errorf("revoke key: %w", err)
		}
		t.audit("key.revoke", r.ID, detail("user", r.UserName, "why", "revoked before the restore"))
	}
	for _, r := range k.tokens {
		if err := t.q.RaiseTokenUse(bg, db.RaiseTokenUseParams{Uses: r.Uses, RevokedAt: r.RevokedAt, ID: r.ID}); err != nil {
			return fmt.Errorf("restore uses of token: %w", err)
		}
	}
	return nil
}
