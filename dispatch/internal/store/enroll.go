// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// Join is a machine that wants to become a node.
type Join struct {
	TokenID    string
	SecretHash [32]byte
	Ed25519    []byte
	X25519     []byte
	// ServerKey tells that the hub made the Ed25519 key just now.
	ServerKey bool
	// Name is a valid name; where it is taken, a number is appended.
	Name  string
	Facts Facts
	// Serial and NotAfter are those of the certificate that the caller is going to
	// sign from the Node that Enroll returns.
	Serial   []byte
	NotAfter time.Time
	Now      time.Time
}

// Enroll uses the token and inserts the node, both or neither. A machine that
// comes again with the same keys and the same token gets the same node and uses
// nothing; with another token it uses that one. Where the hub made the key, the
// X25519 key alone tells the machine. A node that is Pending has no certificate
// yet. Errors: ErrToken*, ErrKeyInUse, ErrNodeRevoked, ErrNodeLocked,
// ErrCSRRequired, ErrNeedsPerson, ErrExhausted.
func (s *Store) Enroll(ctx context.Context, j Join) (n Node, err error) {
	err = s.update(ctx, func(t *tx) error {
		n, err = t.enroll(s.meta, j)
		return err
	})
	return n, err
}

func (t *tx) enroll(m Meta, j Join) (Node, error) {
	k, err := t.token(j.TokenID, j.SecretHash, j.Now)
	if errors.Is(err, ErrTokenExpired) || errors.Is(err, ErrTokenRevoked) {
		// Its use was taken when it was good, and a person's approval takes its time.
		n, kerr := nodeByID(bg, t.q, m, identity.NewPeerID(j.Ed25519, j.X25519))
		if kerr == nil && !j.ServerKey && n.TokenID == j.TokenID && t.unanswered(n) {
			err = nil
		}
	}
	if err != nil {
		return Node{}, err
	}
	if j.ServerKey && k.RequireCSR {
		return Node{}, ErrCSRRequired
	}
	id := identity.NewPeerID(j.Ed25519, j.X25519)
	n, err := t.known(m, id, j)
	repeated := err == nil && n.TokenID == j.TokenID
	switch {
	case err == nil && n.State == Revoked:
		return Node{}, ErrNodeRevoked
	case err == nil && n.State == Locked:
		return Node{}, ErrNodeLocked
	case err == nil && n.TokenID != j.TokenID:
		err = t.rejoin(&n, j, k)
	case errors.Is(err, ErrNotFound):
		n, err = t.insertNode(m, id, j, k)
	}
	if err != nil || n.State == Pending {
		return n, err
	}
	if repeated {
		// No use of the token, but one certificate more.
		t.audit("node.rejoin", id.String(), detail("name", n.Name, "token", j.TokenID))
	}
	return n, t.addCert(id, j.Serial, j.NotAfter)
}

// unanswered reports whether a node has waited for its approval, or still does: it
// has no certificate yet.
func (t *tx) unanswered(n Node) bool {
	last, err := t.q.LastCert(bg, n.ID[:])
	return err == nil && last == 0 && (n.State == Pending || n.State == Active)
}

// known returns the node that the machine is already.
func (t *tx) known(m Meta, id identity.PeerID, j Join) (Node, error) {
	if !j.ServerKey {
		return nodeByID(bg, t.q, m, id)
	}
	// Its last answer was lost, and with it the key, which nobody has stored: put
	// the new one in its place.
	r, err := t.q.ServerKeyNode(bg, j.X25519)
	old, err := withTags(bg, t.q, m, r, err)
	if err != nil || old.State == Revoked || old.State == Locked || old.TokenID != j.TokenID {
		if err == nil && old.TokenID != j.TokenID {
			err = ErrKeyInUse
		}
		return old, err
	}
	n := old
	n.ID, n.Ed25519 = id, j.Ed25519
	return n, t.replace(old, n)
}

func (t *tx) insertNode(m Meta, id identity.PeerID, j Join, k Token) (n Node, err error) {
	taken, err := t.q.CountKeys(bg, db.CountKeysParams{Ed25519: j.Ed25519, X25519: j.X25519})
	if err != nil {
		return n, fmt.Errorf("look up keys: %w", err)
	}
	if taken > 0 {
		return n, ErrKeyInUse
	}
	denied, err := t.q.CountDenied(bg, db.CountDeniedParams{Node: id[:], Key: j.Ed25519, Serial: []byte{}})
	if err != nil {
		return n, fmt.Errorf("look up denials: %w", err)
	}
	if denied > 0 {
		return n, ErrNodeRevoked
	}
	if err := t.consume(j.TokenID, j.Now); err != nil {
		return n, err
	}
	n = Node{
		ID: id, Ed25519: j.Ed25519, X25519: j.X25519, Facts: j.Facts, Created: j.Now, Site: k.Site, State: Active,
		Ephemeral: k.Ephemeral, ServerKey: j.ServerKey, TokenID: j.TokenID, Tags: slices.Clone(k.Tags), Version: 1,
	}
	if k.NeedsApproval {
		n.State = Pending
	} else {
		n.ApprovedBy = "token:" + j.TokenID
	}
	if n.Name, err = t.freeName(j.Name); err != nil {
		return n, err
	}
	if n.index, err = t.allocate(m, j.Now); err != nil {
		return n, err
	}
	n.Virtual4, n.Virtual6 = m.Addresses(n.index)
	if err := t.insert(&n); err != nil {
		return n, err
	}
	t.upsert(n)
	t.audit("node.join", id.String(), detail("name", n.Name, "virtual_ip", n.Virtual4.String(), "token", j.TokenID,
		"site", n.Site, "state", string(n.State)))
	return n, nil
}

// insert writes the row of a node and its tags.
func (t *tx) insert(n *Node) error {
	origin := "node"
	if n.ServerKey {
		origin = "server"
	}
	seen := int64(0)
	if !n.LastSeen.IsZero() {
		seen = n.LastSeen.UnixMicro()
	}
	err := t.q.InsertNode(bg, db.InsertNodeParams{
		ID: n.ID[:], Name: n.Name, Ip: int64(n.index), Ed25519: n.Ed25519, X25519: n.X25519, KeyOrigin: origin,
		State: string(n.State), TokenID: n.TokenID, Hostname: n.Facts.Hostname, Os: n.Facts.OS, Arch: n.Facts.Arch,
		Version: n.Facts.Version, Created: n.Created.UnixMicro(), Site: n.Site, Ephemeral: flag(n.Ephemeral),
		Generation: int64(n.Generation), ApprovedBy: n.ApprovedBy, LastSeen: seen,
	})
	if err != nil {
		return fmt.Errorf("insert node: %w", err)
	}
	return t.insertTags(n.ID, n.Tags)
}

func (t *tx) insertTags(id identity.PeerID, tags []string) error {
	for _, tag := range tags {
		if err := t.q.InsertTag(bg, db.InsertTagParams{NodeID: id[:], Tag: tag}); err != nil {
			return fmt.Errorf("tag node: %w", err)
		}
	}
	return nil
}

// upsert tells of the node: the watchers of its site, or only those who look after
// the fleet where others may not know of it.
func (t *tx) upsert(n Node) {
	scope := ScopeNone
	if n.Visible() {
		scope = n.Site
	}
	t.change(Change{Upsert: &n, Scope: scope})
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// rejoin lets a known machine in with a further token, whose tags it gains.
func (t *tx) rejoin(n *Node, j Join, k Token) error {
	if k.NeedsApproval && n.State == Active && slices.ContainsFunc(k.Tags, func(tag string) bool { return !slices.Contains(n.Tags, tag) }) {
		return ErrNeedsPerson
	}
	if err := t.consume(j.TokenID, j.Now); err != nil {
		return err
	}
	err := t.q.SetJoin(bg, db.SetJoinParams{
		TokenID: j.TokenID, Hostname: j.Facts.Hostname, Os: j.Facts.OS, Arch: j.Facts.Arch, Version: j.Facts.Version, ID: n.ID[:],
	})
	if err != nil {
		return fmt.Errorf("update node: %w", err)
	}
	n.Version++
	var gained []string
	for _, tag := range k.Tags {
		if !slices.Contains(n.Tags, tag) {
			gained = append(gained, tag)
		}
	}
	if err := t.insertTags(n.ID, gained); err != nil {
		return err
	}
	n.Tags = slices.Sorted(slices.Values(slices.Concat(n.Tags, gained)))
	// A token that needs no approval approves.
	if n.State == Pending && !k.NeedsApproval {
		by := "token:" + j.TokenID
		if _, err := t.q.ApproveNode(bg, db.ApproveNodeParams{ApprovedBy: by, ID: n.ID[:]}); err != nil {
			return fmt.Errorf("approve node: %w", err)
		}
		n.State, n.ApprovedBy = Active, by
		gained = n.Tags
	}
	if len(gained) > 0 {
		t.upsert(*n)
	}
	t.audit("node.rejoin", n.ID.String(), detail("name", n.Name, "token", j.TokenID))
	return nil
}

func (t *tx) addCert(id identity.PeerID, serial []byte, notAfter time.Time) error {
	err := t.q.InsertCert(bg, db.InsertCertParams{Serial: serial, NodeID: id[:], NotAfter: notAfter.UnixMicro()})
	if err != nil {
		return fmt.Errorf("record certificate: %w", err)
	}
	return nil
}

// freeName returns want, or want-2, want-3 and so on where that is taken. "hub"
// is the hub's own.
func (t *tx) freeName(want string) (string, error) {
	name := want
	for {
		free, err := t.isFree(name)
		if err != nil || free {
			return name, err
		}
		next, err := t.q.NextSuffix(bg, want)
		if err != nil {
			return "", fmt.Errorf("choose name: %w", err)
		}
		suffix := "-" + strconv.FormatInt(next-1, 10)
		name = want[:min(len(want), 63-len(suffix))] + suffix
	}
}

func (t *tx) isFree(name string) (bool, error) {
	n, err := t.q.CountName(bg, name)
	if err != nil {
		return false, fmt.Errorf("look up name: %w", err)
	}
	if n > 0 || name == "hub" {
		return false, nil
	}
	// Nobody is called what stands for another: a person who names a node by its id
	// means that one.
	if _, err := identity.ParsePeerID(name); err == nil {
		return false, nil
	}
	low, high, ok := prefixRange(name)
	if !ok {
		return true, nil
	}
	rows, err := t.q.NodesInRange(bg, db.NodesInRangeParams{Low: low, High: high})
	if err != nil {
		return false, fmt.Errorf("look up name: %w", err)
	}
	return len(rows) == 0, nil
}

// replace puts new keys into the place of a node's old ones: another row, because
// the id is a hash of the keys, with the same name and address. The old id is
// denied for as long as a certificate of it may be about.
func (t *tx) replace(old, n Node) error {
	last, err := t.q.LastCert(bg, old.ID[:])
	if err != nil {
		return fmt.Errorf("read certificates: %w", err)
	}
	was := old.ID[:]
	if old.ServerKey {
		was = []byte{}
	}
	if _, err := t.q.DeleteNode(bg, old.ID[:]); err != nil {
		return fmt.Errorf("replace node: %w", err)
	}
	if err := t.insert(&n); err != nil {
		return err
	}
	err = t.q.SetReplaced(bg, db.SetReplacedParams{
		Was: was, RecoverLeft: int64(old.RecoverLeft), RowVersion: int64(old.Version) + 1, ID: n.ID[:],
	})
	if err != nil {
		return fmt.Errorf("replace node: %w", err)
	}
	// Nobody has ever heard of a node whose key the hub made, and the hub lets in
	// nobody whose row is gone.
	if last == 0 || old.ServerKey {
		t.change(Change{Scope: ScopeNone, Delete: old.ID})
		return nil
	}
	d := Denial{Kind: DenyNode, Value: old.ID[:], Until: time.UnixMicro(last).Add(time.Second)}
	if err := t.deny(d, "keys replaced"); err != nil {
		return err
	}
	t.change(Change{Scope: ScopeAll, Delete: old.ID, Denials: []Denial{d}})
	return nil
}

// detail makes the JSON of an audit entry from names and values; empty values are
// left out.
func detail(kv ...string) string {
	m := make(map[string]string, len(kv)/2)
	for i := 0; i+1 < len(kv); i += 2 {
		if kv[i+1] != "" {
			m[kv[i]] = kv[i+1]
		}
	}
	b, err := json.Marshal(m)
	if err != nil || len(m) == 0 {
		return ""
	}
	return string(b)
}

func isNoRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }
