// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// Issue is the certificate that the caller is going to sign.
type Issue struct {
	Serial   []byte
	NotAfter time.Time
}

// active returns a node in good standing. Errors: ErrNotFound, ErrNodeRevoked,
// ErrNodeLocked.
func (t *tx) active(m Meta, id identity.PeerID) (Node, error) {
	n, err := nodeByID(bg, t.q, m, id)
	switch {
	case err != nil:
		return n, err
	case n.State == Locked:
		return n, ErrNodeLocked
	case n.State != Active:
		return n, ErrNodeRevoked
	}
	denied, err := t.q.CountDenied(bg, db.CountDeniedParams{Node: id[:], Key: n.Ed25519, Serial: []byte{}})
	if err != nil {
		return n, fmt.Errorf("look up denials: %w", err)
	}
	if denied > 0 {
		return n, ErrNodeRevoked
	}
	return n, nil
}

// Renew records a further certificate for an active node whose Ed25519 key is ed,
// and returns the node to sign it for. Errors: ErrNotFound, ErrNodeRevoked,
// ErrNodeLocked, ErrRekey, ErrKeyMismatch.
func (s *Store) Renew(ctx context.Context, id identity.PeerID, ed []byte, c Issue) (n Node, err error) {
	err = s.update(ctx, func(t *tx) error {
		n, err = t.active(s.meta, id)
		switch {
		case err != nil:
			return err
		case n.ServerKey:
			return ErrRekey
		case !bytes.Equal(n.Ed25519, ed):
			return ErrKeyMismatch
		}
		// A node that renews in time has not been copied and left to sleep.
		if err := t.q.ResetRecoveries(bg, id[:]); err != nil {
			return fmt.Errorf("renew: %w", err)
		}
		t.audit("node.renew", id.String(), detail("name", n.Name))
		return t.addCert(id, c.Serial, c.NotAfter)
	})
	return n, err
}

// Rekey puts new keys into the place of a node's. Errors: those of Renew and
// ErrKeyInUse.
func (s *Store) Rekey(ctx context.Context, id identity.PeerID, ed, x []byte, c Issue) (n Node, err error) {
	err = s.update(ctx, func(t *tx) error {
		old, err := t.active(s.meta, id)
		if err != nil {
			return err
		}
		n = old
		n.ID, n.Ed25519, n.X25519, n.ServerKey = identity.NewPeerID(ed, x), ed, x, false
		n.Generation++
		if bytes.Equal(old.Ed25519, ed) {
			return ErrKeyInUse
		}
		taken, err := t.q.CountKeys(bg, db.CountKeysParams{Ed25519: ed, X25519: x})
		if err != nil {
			return fmt.Errorf("look up keys: %w", err)
		}
		// The X25519 key may stay, because it has been made on the node.
		if bytes.Equal(old.X25519, x) {
			taken--
		}
		denied, err := t.q.CountDenied(bg, db.CountDeniedParams{Node: n.ID[:], Key: ed, Serial: []byte{}})
		if err != nil {
			return fmt.Errorf("look up denials: %w", err)
		}
		if taken > 0 || denied > 0 {
			return ErrKeyInUse
		}
		if err := t.replace(old, n); err != nil {
			return err
		}
		t.upsert(n)
		t.audit("node.rekey", n.ID.String(), detail("name", n.Name, "was", id.String()))
		return t.addCert(n.ID, c.Serial, c.NotAfter)
	})
	return n, err
}

// Recovery is a node's claim to be itself after its certificate has expired; the
// caller has checked the signature.
type Recovery struct {
	ID         identity.PeerID
	Generation uint64
	// Attempt is random and kept by the node until it has the answer.
	Attempt []byte
}

// Recover counts a recovery and records the certificate. A generation that does
// not fit means that the identity is in two places: the node is then locked.
// Errors: ErrNotFound, ErrNodeRevoked, ErrNodeLocked, ErrRekey,
// ErrRecoveryExhausted.
func (s *Store) Recover(ctx context.Context, r Recovery, c Issue) (n Node, err error) {
	var refused error
	err = s.update(ctx, func(t *tx) error {
		if n, err = t.active(s.meta, r.ID); err != nil {
			return err
		}
		switch {
		case n.ServerKey:
			return ErrRekey
		case !n.anyGeneration && n.Generation == r.Generation+1 && bytes.Equal(n.recoveryID, r.Attempt):
			// The same attempt once more: its answer was lost.
		case n.Generation != r.Generation && !n.anyGeneration:
			refused = ErrNodeLocked // and the lock is committed
			if _, err := t.q.LockNode(bg, r.ID[:]); err != nil {
				return fmt.Errorf("lock node: %w", err)
			}
			t.change(Change{Scope: ScopeAll, Delete: r.ID})
			t.audit("node.lock", r.ID.String(), detail("name", n.Name, "reason", "generation does not fit: the identity may have been copied"))
			return nil
		default:
			done, err := t.q.SetRecovered(bg, db.SetRecoveredParams{Generation: int64(r.Generation), RecoveryID: r.Attempt, ID: r.ID[:]})
			if err != nil {
				return fmt.Errorf("recover: %w", err)
			}
			if done == 0 {
				return ErrRecoveryExhausted
			}
			n.Generation = r.Generation + 1
		}
		t.audit("node.recover", r.ID.String(), detail("name", n.Name))
		return t.addCert(r.ID, c.Serial, c.NotAfter)
	})
	if err == nil {
		err = refused
	}
	return n, err
}

// Approve lets a pending node in, unlocks a locked one, whose next recovery may come
// with any generation, and gives an active one its recoveries back. Errors: ErrNotFound, ErrNodeRevoked.
func (s *Store) Approve(ctx context.Context, id identity.PeerID) (n Node, err error) {
	err = s.update(ctx, func(t *tx) error {
		if n, err = nodeByID(bg, t.q, s.meta, id); err != nil {
			return err
		}
		if n.State == Revoked {
			return ErrNodeRevoked
		}
		was := n.State
		by := ActorOf(t.ctx)
		if _, err := t.q.ApproveNode(bg, db.ApproveNodeParams{ApprovedBy: by, ID: id[:]}); err != nil {
			return fmt.Errorf("approve node: %w", err)
		}
		n.State, n.ApprovedBy, n.RecoverLeft = Active, by, 3
		n.Version++
		if was != Active {
			t.upsert(n)
		}
		t.audit("node.approve", id.String(), detail("name", n.Name, "was", string(was)))
		return nil
	})
	return n, err
}

// Delete forgets a node; its address is free again after a day. why is "delete",
// "leave" or "expire". Errors: ErrNotFound.
func (s *Store) Delete(ctx context.Context, id identity.PeerID, why string, now time.Time) error {
	return s.update(ctx, func(t *tx) error { return t.delete(s.meta, id, why, now) })
}

func (t *tx) delete(m Meta, id identity.PeerID, why string, now time.Time) error {
	n, err := nodeByID(bg, t.q, m, id)
	if err != nil {
		return err
	}
	if _, err := t.q.DeleteNode(bg, id[:]); err != nil {
		return fmt.Errorf("delete node: %w", err)
	}
	if err := t.release(n.index, now); err != nil {
		return err
	}
	scope := ScopeNone
	if n.Visible() {
		scope = ScopeAll
	}
	t.change(Change{Scope: scope, Delete: id})
	t.audit("node."+why, id.String(), detail("name", n.Name, "virtual_ip", n.Virtual4.String()))
	return nil
}

// ExpireEphemeral deletes ephemeral nodes that are older than age, have no stream
// by online, and had none for age. It returns those that it deleted.
func (s *Store) ExpireEphemeral(ctx context.Context, age time.Duration, now time.Time, online func(identity.PeerID) bool) ([]identity.PeerID, error) {
	before := now.Add(-age).UnixMicro()
	var gone []identity.PeerID
	for last := []byte{}; ; {
		rows, err := s.rq.StaleEphemeral(ctx, db.StaleEphemeralParams{LastSeen: before, Created: before, ID: last})
		if err != nil {
			return gone, fmt.Errorf("list ephemeral nodes: %w", err)
		}
		if len(rows) == 0 {
			return gone, nil
		}
		last = rows[len(rows)-1]
		for _, b := range rows {
			id, err := peerID(b)
			if err != nil {
				return gone, err
			}
			if online(id) { // for long, maybe: what is stored is when it went
				continue
			}
			if err := s.Delete(ctx, id, "expire", now); err != nil {
				return gone, err
			}
			gone = append(gone, id)
		}
	}
}

// Touch records when nodes were last seen. It is not audited: nobody asked for it.
func (s *Store) Touch(ctx context.Context, seen map[identity.PeerID]time.Time) error {
	return s.update(ctx, func(t *tx) error {
		for id, at := range seen {
			if err := t.q.TouchNode(bg, db.TouchNodeParams{Seen: at.UnixMicro(), ID: id[:]}); err != nil {
				return fmt.Errorf("touch node: %w", err)
			}
		}
		return nil
	})
}

// Edit is what Update changes; nil leaves a field as it is.
type Edit struct {
	// Version is the one that the caller has read; 0 means whatever it is.
	Version uint64
	Name    *string
	Tags    *[]string // sorted, without repetition
	Site    *string
}

// Update changes a node. Errors: ErrNotFound, ErrNodeRevoked, ErrConflict,
// ErrNameTaken.
func (s *Store) Update(ctx context.Context, id identity.PeerID, e Edit) (n Node, err error) {
	err = s.update(ctx, func(t *tx) error {
		if n, err = nodeByID(bg, t.q, s.meta, id); err != nil {
			return err
		}
		if n.State == Revoked {
			return ErrNodeRevoked
		}
		if e.Version != 0 && e.Version != n.Version {
			return fmt.Errorf("node %s: %w", n.Name, ErrConflict)
		}
		was := n
		if err := t.edit(&n, e); err != nil {
			return err
		}
		if n.Version == was.Version {
			return nil // nothing to change
		}
		if n.Visible() && n.Site != was.Site {
			t.change(Change{Scope: was.Site, Delete: id, Moved: true})
		}
		t.upsert(n)
		t.audit("node.update", id.String(), detail("name", n.Name, "tags", strings.Join(n.Tags, ","), "site", n.Site,
			"old_name", was.Name, "old_tags", strings.Join(was.Tags, ","), "old_site", was.Site))
		return nil
	})
	return n, err
}

func (t *tx) edit(n *Node, e Edit) error {
	if e.Name != nil && *e.Name != n.Name {
		free, err := t.isFree(*e.Name)
		if err != nil {
			return err
		}
		if !free {
			return fmt.Errorf("name %q: %w", *e.Name, ErrNameTaken)
		}
		if err := t.q.SetName(bg, db.SetNameParams{Name: *e.Name, ID: n.ID[:]}); err != nil {
			return fmt.Errorf("rename node: %w", err)
		}
		n.Name = *e.Name
		n.Version++
	}
	if e.Site != nil && *e.Site != n.Site {
		if err := t.q.SetSite(bg, db.SetSiteParams{Site: *e.Site, ID: n.ID[:]}); err != nil {
			return fmt.Errorf("move node: %w", err)
		}
		n.Site = *e.Site
		n.Version++
	}
	if e.Tags != nil && !slices.Equal(*e.Tags, n.Tags) {
		if err := t.q.DeleteTags(bg, n.ID[:]); err != nil {
			return fmt.Errorf("tag node: %w", err)
		}
		if err := t.insertTags(n.ID, *e.Tags); err != nil {
			return err
		}
		if err := t.q.BumpNode(bg, n.ID[:]); err != nil {
			return fmt.Errorf("tag node: %w", err)
		}
		n.Tags = *e.Tags
		n.Version++
	}
	return nil
}

// PruneCerts forgets certificates that have been expired for a month, and denials
// that concern nothing any more.
func (s *Store) PruneCerts(ctx context.Context, now time.Time) error {
	return s.update(ctx, func(t *tx) error {
		if err := t.q.DeleteOldCerts(bg, now.AddDate(0, -1, 0).UnixMicro()); err != nil {
			return fmt.Errorf("prune certificates: %w", err)
		}
		if err := t.q.DeleteDenials(bg, now.AddDate(0, -1, 0).Unix()); err != nil {
			return fmt.Errorf("prune denials: %w", err)
		}
		return nil
	})
}
