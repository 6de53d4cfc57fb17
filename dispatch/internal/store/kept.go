// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// keptAccess is what the replaced database knows of credentials and nodes. A restore
// takes rights away by it, and never gives any: a key that was revoked, a role that
// was lowered, a token that was used, and a node that was locked or deleted since
// the backup stay so.
type keptAccess struct {
	// newer: it is a later state of the backup, so that what it lacks was deleted.
	newer  bool
	roles  map[string]authz.Role
	keys   map[string]bool // revoked or not
	nodes  map[string]bool // by the bytes of the id, locked or not
	tokens []db.AllTokenUsesRow
}

func readAccess(ctx context.Context, q *db.Queries) (*keptAccess, error) {
	k := &keptAccess{roles: make(map[string]authz.Role), keys: make(map[string]bool), nodes: make(map[string]bool)}
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
	nodes, err := q.NodeLocks(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for _, r := range nodes {
		k.nodes[string(r.ID)] = r.Locked != 0
	}
	if k.tokens, err = q.AllTokenUses(ctx); err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return k, nil
}

// takeAway applies k to the restored database.
func (t *tx) takeAway(meta Meta, k *keptAccess) error {
	if err := t.q.VoidOwnerLinks(bg, t.now.UnixMicro()); err != nil {
		return fmt.Errorf("void owner links: %w", err)
	}
	if k == nil {
		return nil
	}
	if k.newer {
		if err := t.lowerRoles(k); err != nil {
			return err
		}
		if err := t.takeNodes(meta, k); err != nil {
			return err
		}
	}
	if err := t.takeKeys(k); err != nil {
		return err
	}
	for _, r := range k.tokens {
		if err := t.q.RaiseTokenUse(bg, db.RaiseTokenUseParams{Uses: r.Uses, RevokedAt: r.RevokedAt, ID: r.ID}); err != nil {
			return fmt.Errorf("restore uses of token: %w", err)
		}
	}
	return nil
}

func (t *tx) lowerRoles(k *keptAccess) error {
	users, err := t.q.ListUsers(bg, 0)
	if err != nil {
		return fmt.Errorf("list users: %w", err)
	}
	for _, u := range users {
		was := authz.Role(u.User.Role)
		now, known := k.roles[u.User.Name]
		if !known || !authz.Exceeds(was, nil, now, nil) {
			continue
		}
		_, err := t.q.SetUserRole(bg, db.SetUserRoleParams{Role: string(now), Name: u.User.Name, Version: u.User.Version})
		if err != nil {
			return fmt.Errorf("store role: %w", err)
		}
		t.audit("user.role", u.User.Name, detail("from", string(was), "to", string(now), "why", "as before the restore"))
	}
	return nil
}

func (t *tx) takeKeys(k *keptAccess) error {
	keys, err := t.q.ListKeys(bg, "")
	if err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	for _, r := range keys {
		revoked, known := k.keys[r.ID]
		// One that a newer database lacks was deleted with its user, or long after it
		// was revoked.
		if r.RevokedAt != 0 || !revoked && (known || !k.newer) {
			continue
		}
		if _, err := t.q.RevokeKey(bg, db.RevokeKeyParams{RevokedAt: t.now.UnixMicro(), ID: r.ID}); err != nil {
			return fmt.Errorf("revoke key: %w", err)
		}
		t.audit("key.revoke", r.ID, detail("user", r.UserName, "why", "revoked before the restore"))
	}
	return nil
}

// takeNodes deletes the nodes that a newer database lacks, and locks those that are
// locked in it.
func (t *tx) takeNodes(meta Meta, k *keptAccess) error {
	rows, err := t.q.NodeLocks(bg)
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, r := range rows {
		locked, known := k.nodes[string(r.ID)]
		if known && (!locked || r.Locked != 0) {
			continue
		}
		id, err := peerID(r.ID)
		if err != nil {
			return err
		}
		if !known {
			if err := t.delete(meta, id, "delete", t.now); err != nil {
				return err
			}
			continue
		}
		if _, err := t.q.LockNode(bg, r.ID); err != nil {
			return fmt.Errorf("lock node: %w", err)
		}
		t.change(Change{Scope: ScopeAll, Delete: id})
		t.audit("node.lock", id.String(), detail("name", r.Name, "reason", "locked before the restore"))
	}
	return nil
}
