// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// DenialKind says what a Denial is about.
type DenialKind string

// The kinds of denials. A certificate's hash is none of them: whoever holds a
// certificate can have others of other hashes for the same key.
const (
	DenyNode   DenialKind = "node"   // a PeerID
	DenyKey    DenialKind = "key"    // an Ed25519 public key
	DenySerial DenialKind = "serial" // a certificate's serial number
)

// Denial is something that may not connect any more.
type Denial struct {
	Kind  DenialKind
	Value []byte
	// Until is when it may be forgotten, in seconds; zero means never.
	Until time.Time
}

func (t *tx) deny(d Denial, reason string) error {
	until := int64(0)
	if !d.Until.IsZero() {
		until = d.Until.Unix()
	}
	err := t.q.InsertDenial(bg, db.InsertDenialParams{
		Kind: string(d.Kind), Value: d.Value, Until: until, Reason: reason, Created: t.now.UnixMicro(),
	})
	if err != nil {
		return fmt.Errorf("deny: %w", err)
	}
	return nil
}

// Denials returns all that are in force at now.
func (s *Store) Denials(ctx context.Context, now time.Time) ([]Denial, error) {
	return denials(ctx, s.rq, now)
}

func denials(ctx context.Context, q *db.Queries, now time.Time) ([]Denial, error) {
	rows, err := q.DenialsAt(ctx, now.Unix())
	if err != nil {
		return nil, fmt.Errorf("read denials: %w", err)
	}
	out := make([]Denial, len(rows))
	for i, r := range rows {
		out[i] = Denial{Kind: DenialKind(r.Kind), Value: r.Value}
		if r.Until != 0 {
			out[i].Until = time.Unix(r.Until, 0)
		}
	}
	return out, nil
}

// RevokeNode shuts a node out for good: it and its keys are denied, its
// certificates are refused, others are told, and its name and address are kept from
// others until it is deleted.
// Errors: ErrNotFound, also where it is revoked already.
func (s *Store) RevokeNode(ctx context.Context, id identity.PeerID, reason string) error {
	return s.update(ctx, func(t *tx) error {
		n, err := nodeByID(bg, t.q, s.meta, id)
		if err == nil && n.State == Revoked {
			err = fmt.Errorf("node %s: %w", id.Short(), ErrNotFound)
		}
		if err != nil {
			return err
		}
		return t.revoke(n, reason)
	})
}

// RevokeNodeKey denies an Ed25519 key and revokes the node that has it, whose id it
// returns; the zero id where none has.
func (s *Store) RevokeNodeKey(ctx context.Context, ed []byte, reason string) (id identity.PeerID, err error) {
	err = s.update(ctx, func(t *tx) error {
		r, err := t.q.NodeByKey(bg, ed)
		if err == nil {
			n, err := withTags(bg, t.q, s.meta, r, nil)
			if err != nil {
				return err
			}
			id = n.ID
			if n.State != Revoked {
				return t.revoke(n, reason)
			}
		} else if !isNoRows(err) {
			return fmt.Errorf("look up key: %w", err)
		}
		d := Denial{Kind: DenyKey, Value: ed}
		if err := t.deny(d, reason); err != nil {
			return err
		}
		t.change(Change{Scope: ScopeAll, Denials: []Denial{d}})
		t.audit("node-key.revoke", hex.EncodeToString(ed), detail("reason", reason))
		return nil
	})
	return id, err
}

// RevokeSerial denies one certificate and returns the node that it belongs to,
// which may get another. Errors: ErrNotFound.
func (s *Store) RevokeSerial(ctx context.Context, serial []byte, reason string) (id identity.PeerID, err error) {
	err = s.update(ctx, func(t *tx) error {
		c, err := t.q.CertBySerial(bg, serial)
		if isNoRows(err) {
			return fmt.Errorf("certificate %x: %w", serial, ErrNotFound)
		}
		if err != nil {
			return fmt.Errorf("look up certificate: %w", err)
		}
		if id, err = peerID(c.NodeID); err != nil {
			return err
		}
		if _, err := t.q.RevokeCert(bg, db.RevokeCertParams{RevokedAt: t.now.UnixMicro(), Reason: reason, Serial: serial}); err != nil {
			return fmt.Errorf("revoke certificate: %w", err)
		}
		d := Denial{Kind: DenySerial, Value: serial, Until: time.UnixMicro(c.NotAfter).Add(time.Second)}
		if err := t.deny(d, reason); err != nil {
			return err
		}
		t.change(Change{Scope: ScopeAll, Denials: []Denial{d}})
		t.audit("certificate.revoke", hex.EncodeToString(serial), detail("node", id.String(), "reason", reason))
		return nil
	})
	return id, err
}

func (t *tx) revoke(n Node, reason string) error {
	if _, err := t.q.SetState(bg, db.SetStateParams{State: string(Revoked), ID: n.ID[:]}); err != nil {
		return fmt.Errorf("revoke node: %w", err)
	}
	err := t.q.RevokeCerts(bg, db.RevokeCertsParams{RevokedAt: t.now.UnixMicro(), Reason: reason, NodeID: n.ID[:]})
	if err != nil {
		return fmt.Errorf("revoke certificates: %w", err)
	}
	ds := []Denial{{Kind: DenyNode, Value: n.ID[:]}, {Kind: DenyKey, Value: n.Ed25519}}
	for _, d := range ds {
		if err := t.deny(d, reason); err != nil {
			return err
		}
	}
	t.change(Change{Scope: ScopeAll, Delete: n.ID, Denials: ds})
	t.audit("node.revoke", n.ID.String(), detail("name", n.Name, "reason", reason))
	return nil
}

// importDenials adds denials, as a restore does with those that the backup is too
// old to know, and revokes the nodes concerned: for good also where a denial ends.
// That is the old id of a node with new keys, and its end would let a row of the
// backup in again that the mesh has replaced.
func (t *tx) importDenials(m Meta, ds []Denial, reason string) error {
	for _, d := range ds {
		if err := t.deny(d, reason); err != nil {
			return err
		}
		if d.Kind != DenyNode {
			continue
		}
		id, err := peerID(d.Value)
		if err != nil {
			return err
		}
		n, err := nodeByID(bg, t.q, m, id)
		if err == nil && n.State != Revoked {
			err = t.revoke(n, reason)
		}
		if err != nil && !isNotFound(err) {
			return err
		}
	}
	return nil
}
