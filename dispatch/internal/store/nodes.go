// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// Facts are what a node says of itself; nothing depends on them.
type Facts struct{ Hostname, OS, Arch, Version string }

// Node is an enrolled node.
type Node struct {
	ID       identity.PeerID
	Name     string
	Virtual4 netip.Addr
	Virtual6 netip.Addr
	Ed25519  []byte
	X25519   []byte
	Tags     []string
	Facts    Facts
	Created  time.Time
	// CertExpires is the end of the newest certificate. Only ListNodes sets it.
	CertExpires time.Time
}

// Join is a machine that wants to become a node.
type Join struct {
	TokenID    string
	SecretHash [32]byte
	Ed25519    []byte
	X25519     []byte
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
// nothing; with another token it uses that one. Errors: ErrToken*, ErrKeyInUse,
// ErrNodeRevoked, ErrExhausted.
func (s *Store) Enroll(ctx context.Context, j Join) (n Node, err error) {
	err = s.update(ctx, func(t *tx) error {
		n, err = t.enroll(s.meta, j)
		return err
	})
	return n, err
}

func (t *tx) enroll(m Meta, j Join) (Node, error) {
	k, err := t.token(j.TokenID, j.SecretHash, j.Now)
	if err != nil {
		return Node{}, err
	}
	id := identity.NewPeerID(j.Ed25519, j.X25519)
	n, st, err := t.node(m, id)
	switch {
	case err == nil && st.state == "revoked":
		return Node{}, ErrNodeRevoked
	case err == nil && st.token != j.TokenID:
		err = t.rejoin(&n, j, k.tags)
	case errors.Is(err, ErrNotFound):
		n, err = t.insertNode(m, id, j, k.tags)
	}
	if err != nil {
		return Node{}, err
	}
	return n, t.addCert(id, j.Serial, j.NotAfter)
}

// Renew records a further certificate for an active node whose Ed25519 key is ed,
// and returns the node to sign it for. Errors: ErrNotFound, ErrNodeRevoked,
// ErrKeyMismatch.
func (s *Store) Renew(ctx context.Context, id identity.PeerID, ed, serial []byte, notAfter time.Time) (n Node, err error) {
	err = s.update(ctx, func(t *tx) error {
		var st nodeState
		n, st, err = t.node(s.meta, id)
		switch {
		case err != nil:
			return err
		case st.state != "active":
			return ErrNodeRevoked
		case !bytes.Equal(n.Ed25519, ed):
			return ErrKeyMismatch
		}
		return t.addCert(id, serial, notAfter)
	})
	return n, err
}

func (t *tx) insertNode(m Meta, id identity.PeerID, j Join, tags []string) (n Node, err error) {
	var taken int
	err = t.row(`SELECT count(*) FROM nodes WHERE ed25519 = ? OR x25519 = ?`, j.Ed25519, j.X25519).Scan(&taken)
	if err != nil {
		return n, fmt.Errorf("look up keys: %w", err)
	}
	if taken > 0 {
		return n, ErrKeyInUse
	}
	if err := t.consume(j.TokenID, j.Now); err != nil {
		return n, err
	}
	n = Node{ID: id, Ed25519: j.Ed25519, X25519: j.X25519, Facts: j.Facts, Created: j.Now}
	if n.Name, err = t.freeName(j.Name); err != nil {
		return n, err
	}
	index, err := t.allocate(m, j.Now)
	if err != nil {
		return n, err
	}
	n.Virtual4, n.Virtual6 = m.Addresses(index)
	_, err = t.exec(`INSERT INTO nodes (id, name, ip, ed25519, x25519, state, token_id, hostname, os, arch, version, created)
		VALUES (?, ?, ?, ?, ?, 'active', ?, ?, ?, ?, ?, ?)`, id[:], n.Name, index, j.Ed25519, j.X25519, j.TokenID,
		j.Facts.Hostname, j.Facts.OS, j.Facts.Arch, j.Facts.Version, j.Now.UnixMicro())
	if err != nil {
		return n, fmt.Errorf("insert node: %w", err)
	}
	if err := t.addTags(&n, tags); err != nil {
		return n, err
	}
	t.changes = append(t.changes, Change{Upsert: &n})
	return n, nil
}

// rejoin lets a known machine in with a further token, whose tags it gains.
func (t *tx) rejoin(n *Node, j Join, tags []string) error {
	if err := t.consume(j.TokenID, j.Now); err != nil {
		return err
	}
	_, err := t.exec(`UPDATE nodes SET token_id = ?, hostname = ?, os = ?, arch = ?, version = ? WHERE id = ?`,
		j.TokenID, j.Facts.Hostname, j.Facts.OS, j.Facts.Arch, j.Facts.Version, n.ID[:])
	if err != nil {
		return fmt.Errorf("update node: %w", err)
	}
	had := len(n.Tags)
	if err := t.addTags(n, tags); err != nil {
		return err
	}
	if len(n.Tags) != had {
		c := *n
		t.changes = append(t.changes, Change{Upsert: &c})
	}
	return nil
}

func (t *tx) addTags(n *Node, tags []string) error {
	for _, tag := range tags {
		if slices.Contains(n.Tags, tag) {
			continue
		}
		if _, err := t.exec(`INSERT INTO node_tags (node_id, tag) VALUES (?, ?)`, n.ID[:], tag); err != nil {
			return fmt.Errorf("tag node: %w", err)
		}
		n.Tags = append(n.Tags, tag)
	}
	slices.Sort(n.Tags)
	return nil
}

func (t *tx) addCert(id identity.PeerID, serial []byte, notAfter time.Time) error {
	_, err := t.exec(`INSERT INTO certs (serial, node_id, not_after) VALUES (?, ?, ?)`, serial, id[:], notAfter.UnixMicro())
	if err != nil {
		return fmt.Errorf("record certificate: %w", err)
	}
	return nil
}

// freeName returns want, or want-2, want-3 and so on where that is taken. "hub"
// is the hub's own.
func (t *tx) freeName(want string) (string, error) {
	name := want
	for try := 0; ; try++ {
		var n int
		if err := t.row(`SELECT count(*) FROM nodes WHERE name = ?`, name).Scan(&n); err != nil {
			return "", fmt.Errorf("look up name: %w", err)
		}
		if n == 0 && name != "hub" {
			return name, nil
		}
		var suffix int
		err := t.row(`INSERT INTO name_suffix (base, next) VALUES (?, 3)
			ON CONFLICT (base) DO UPDATE SET next = next + 1 RETURNING next - 1`, want).Scan(&suffix)
		if err != nil {
			return "", fmt.Errorf("choose name: %w", err)
		}
		s := "-" + strconv.Itoa(suffix)
		name = want[:min(len(want), 63-len(s))] + s
	}
}

type nodeState struct{ state, token string }

func (t *tx) node(m Meta, id identity.PeerID) (n Node, st nodeState, err error) {
	var index uint32
	n.ID = id
	err = t.row(`SELECT name, ip, ed25519, x25519, state, token_id FROM nodes WHERE id = ?`, id[:]).
		Scan(&n.Name, &index, &n.Ed25519, &n.X25519, &st.state, &st.token)
	if errors.Is(err, sql.ErrNoRows) {
		return n, st, ErrNotFound
	}
	if err != nil {
		return n, st, fmt.Errorf("read node: %w", err)
	}
	n.Virtual4, n.Virtual6 = m.Addresses(index)
	rows, err := t.raw.QueryContext(context.Background(), `SELECT tag FROM node_tags WHERE node_id = ? ORDER BY tag`, id[:])
	if err != nil {
		return n, st, fmt.Errorf("read tags: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var tag string
		if err := rows.Scan(&tag); err != nil {
			return n, st, fmt.Errorf("read tags: %w", err)
		}
		n.Tags = append(n.Tags, tag)
	}
	return n, st, rows.Err()
}

// RevokeNode shuts a node out for good: its certificates are refused, others are
// told that it is gone, and its address is never used again.
func (s *Store) RevokeNode(ctx context.Context, id identity.PeerID, reason string) error {
	return s.update(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE nodes SET state = 'revoked' WHERE id = ? AND state != 'revoked'`, id[:])
		if err != nil {
			return fmt.Errorf("revoke node: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("node %s: %w", id.Short(), ErrNotFound)
		}
		_, err = t.exec(`UPDATE certs SET revoked_at = ?, reason = ? WHERE node_id = ? AND revoked_at = 0`,
			time.Now().UnixMicro(), reason, id[:])
		if err != nil {
			return fmt.Errorf("revoke certificates: %w", err)
		}
		t.changes = append(t.changes, Change{Delete: id})
		return nil
	})
}

// DeleteNode forgets a node; its address is free again after a day.
func (s *Store) DeleteNode(ctx context.Context, id identity.PeerID, now time.Time) error {
	return s.update(ctx, func(t *tx) error {
		var index uint32
		err := t.row(`DELETE FROM nodes WHERE id = ? RETURNING ip`, id[:]).Scan(&index)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("node %s: %w", id.Short(), ErrNotFound)
		}
		if err != nil {
			return fmt.Errorf("delete node: %w", err)
		}
		if err := t.release(index, now); err != nil {
			return fmt.Errorf("release address: %w", err)
		}
		t.changes = append(t.changes, Change{Delete: id})
		return nil
	})
}

// Admit reports whether the bearer of a certificate is a node in good standing.
// Errors: ErrNotFound, ErrNodeRevoked.
func (s *Store) Admit(ctx context.Context, id identity.PeerID, serial []byte) error {
	var state string
	var revoked int64
	err := s.read.QueryRowContext(ctx, `SELECT n.state, coalesce(c.revoked_at, 0) FROM nodes n
		LEFT JOIN certs c ON c.serial = ? AND c.node_id = n.id WHERE n.id = ?`, serial, id[:]).Scan(&state, &revoked)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return ErrNotFound
	case err != nil:
		return fmt.Errorf("look up node: %w", err)
	case state != "active" || revoked != 0:
		return ErrNodeRevoked
	}
	return nil
}

// ListNodes returns the active nodes by name.
func (s *Store) ListNodes(ctx context.Context) (nodes []Node, err error) {
	err = s.view(ctx, func(t *sql.Tx) error {
		nodes, err = listNodes(ctx, t, s.meta)
		return err
	})
	return nodes, err
}

func listNodes(ctx context.Context, t *sql.Tx, m Meta) ([]Node, error) {
	rows, err := t.QueryContext(ctx, `SELECT n.id, n.name, n.ip, n.ed25519, n.x25519, n.hostname, n.os, n.arch, n.version,
		n.created, coalesce((SELECT max(not_after) FROM certs c WHERE c.node_id = n.id), 0), coalesce(g.tag, '')
		FROM nodes n LEFT JOIN node_tags g ON g.node_id = n.id
		WHERE n.state = 'active' ORDER BY n.name, g.tag`)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	defer rows.Close()
	var out []Node
	for rows.Next() {
		var (
			n                Node
			id               []byte
			index            uint32
			created, expires int64
			tag              string
		)
		err := rows.Scan(&id, &n.Name, &index, &n.Ed25519, &n.X25519, &n.Facts.Hostname, &n.Facts.OS, &n.Facts.Arch,
			&n.Facts.Version, &created, &expires, &tag)
		if err != nil {
			return nil, fmt.Errorf("list nodes: %w", err)
		}
		if k := len(out); k > 0 && bytes.Equal(out[k-1].ID[:], id) {
			out[k-1].Tags = append(out[k-1].Tags, tag)
			continue
		}
		if n.ID, err = peerID(id); err != nil {
			return nil, err
		}
		if tag != "" {
			n.Tags = []string{tag}
		}
		n.Virtual4, n.Virtual6 = m.Addresses(index)
		n.Created, n.CertExpires = time.UnixMicro(created), time.UnixMicro(expires)
		out = append(out, n)
	}
	return out, rows.Err()
}
