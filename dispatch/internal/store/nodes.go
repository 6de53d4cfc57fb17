// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// Facts are what a node says of itself; nothing depends on them.
type Facts struct{ Hostname, OS, Arch, Version string }

// NodeState is where a node stands.
type NodeState string

// The states of a node. Locked is an active node of which a clone is suspected.
const (
	Pending NodeState = "pending"
	Active  NodeState = "active"
	Locked  NodeState = "locked"
	Revoked NodeState = "revoked"
)

// Node is a node, enrolled or about to be.
type Node struct {
	ID       identity.PeerID
	Name     string
	Virtual4 netip.Addr
	Virtual6 netip.Addr
	Ed25519  []byte
	X25519   []byte
	Tags     []string // sorted
	Site     string
	State    NodeState
	Facts    Facts
	Created  time.Time
	LastSeen time.Time // end of its last stream; zero where it never had one

	// Version grows with each change.
	Version   uint64
	Ephemeral bool
	// ServerKey tells that the hub made the Ed25519 key.
	ServerKey   bool
	Generation  uint64 // counts recoveries; 0 where anyGeneration
	RecoverLeft int
	TokenID     string
	ApprovedBy  string
	// CertExpires is the end of the newest certificate. Only ListNodes sets it.
	CertExpires time.Time

	// anyGeneration: whichever the next recovery comes with counts.
	anyGeneration bool

	index      uint32
	recoveryID []byte
}

// Visible reports whether others may know of the node.
func (n *Node) Visible() bool { return n.State == Active && !n.ServerKey }

func nodeOf(m Meta, r *db.Node, tags []string) (n Node, err error) {
	n = Node{
		Name: r.Name, Ed25519: r.Ed25519, X25519: r.X25519, Tags: tags, Site: r.Site, State: NodeState(r.State),
		Facts:   Facts{Hostname: r.Hostname, OS: r.Os, Arch: r.Arch, Version: r.Version},
		Created: time.UnixMicro(r.Created), Version: uint64(r.RowVersion), Ephemeral: r.Ephemeral != 0,
		ServerKey: r.KeyOrigin == "server", Generation: uint64(r.Generation), RecoverLeft: int(r.RecoverLeft),
		TokenID: r.TokenID, ApprovedBy: r.ApprovedBy, index: uint32(r.Ip), recoveryID: r.RecoveryID,
	}
	if r.Generation < 0 {
		n.Generation, n.anyGeneration = 0, true
	}
	if r.LastSeen != 0 {
		n.LastSeen = time.UnixMicro(r.LastSeen)
	}
	if n.State == Active && r.Locked != 0 {
		n.State = Locked
	}
	n.Virtual4, n.Virtual6 = m.Addresses(n.index)
	n.ID, err = peerID(r.ID)
	return n, err
}

// withTags completes a row. Errors: ErrNotFound where err is sql.ErrNoRows.
func withTags(ctx context.Context, q *db.Queries, m Meta, r db.Node, err error) (Node, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return Node{}, fmt.Errorf("node: %w", ErrNotFound)
	}
	if err != nil {
		return Node{}, fmt.Errorf("read node: %w", err)
	}
	tags, err := q.TagsOf(ctx, r.ID)
	if err != nil {
		return Node{}, fmt.Errorf("read tags: %w", err)
	}
	return nodeOf(m, &r, tags)
}

func nodeByID(ctx context.Context, q *db.Queries, m Meta, id identity.PeerID) (Node, error) {
	r, err := q.NodeByID(ctx, id[:])
	return withTags(ctx, q, m, r, err)
}

// NodeByID returns a node. Errors: ErrNotFound.
func (s *Store) NodeByID(ctx context.Context, id identity.PeerID) (Node, error) {
	return nodeByID(ctx, s.rq, s.meta, id)
}

// NodeByName returns a node. Errors: ErrNotFound.
func (s *Store) NodeByName(ctx context.Context, name string) (Node, error) {
	r, err := s.rq.NodeByName(ctx, name)
	return withTags(ctx, s.rq, s.meta, r, err)
}

// NodeByAddr returns the node of a virtual address. Errors: ErrNotFound.
func (s *Store) NodeByAddr(ctx context.Context, a netip.Addr) (Node, error) {
	i, ok := s.meta.index(a)
	if !ok {
		return Node{}, fmt.Errorf("address %v: %w", a, ErrNotFound)
	}
	r, err := s.rq.NodeByIndex(ctx, int64(i))
	return withTags(ctx, s.rq, s.meta, r, err)
}

// minPrefix is how many characters of a PeerID stand for it at least.
const minPrefix = 6

// FindNode returns the node that a person means by its PeerID, also the one that it
// had before its keys were replaced, its name or the beginning of its PeerID. A
// PeerID never stands for a name. Errors: ErrNotFound, ErrAmbiguous.
func (s *Store) FindNode(ctx context.Context, text string) (Node, error) {
	if id, err := identity.ParsePeerID(text); err == nil {
		n, err := s.NodeByID(ctx, id)
		if errors.Is(err, ErrNotFound) {
			r, werr := s.rq.NodeByWas(ctx, id[:])
			n, err = withTags(ctx, s.rq, s.meta, r, werr)
		}
		return n, err
	}
	named, err := s.NodeByName(ctx, text)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Node{}, err
	}
	isName := err == nil
	low, high, ok := prefixRange(text)
	var rows []db.Node
	if ok {
		if rows, err = s.rq.NodesInRange(ctx, db.NodesInRangeParams{Low: low, High: high}); err != nil {
			return Node{}, fmt.Errorf("look up node: %w", err)
		}
	}
	switch {
	case isName && len(rows) == 0, isName && len(rows) == 1 && bytes.Equal(rows[0].ID, named.ID[:]):
		return named, nil
	case isName, len(rows) > 1:
		return Node{}, fmt.Errorf("node %q: %w", text, ErrAmbiguous)
	case len(rows) == 0:
		return Node{}, fmt.Errorf("node %q: %w", text, ErrNotFound)
	}
	return withTags(ctx, s.rq, s.meta, rows[0], nil)
}

// Member reports whether an X25519 key belongs to a node that is let in.
func (s *Store) Member(ctx context.Context, x []byte) (bool, error) {
	r, err := s.rq.NodeByX25519(ctx, x)
	if isNoRows(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up key: %w", err)
	}
	return r.State == string(Active), nil
}

// prefixRange returns the lowest and the highest id whose text begins with text.
func prefixRange(text string) (low, high []byte, ok bool) {
	if len(text) < minPrefix || len(text) > identity.PeerIDLen {
		return nil, nil, false
	}
	enc := base32.StdEncoding.WithPadding(base32.NoPadding)
	fill := func(c string) []byte {
		b, err := enc.DecodeString(strings.ToUpper(text) + strings.Repeat(c, 56-len(text)))
		if err != nil {
			return nil
		}
		return b[:len(identity.PeerID{})]
	}
	low, high = fill("A"), fill("7")
	return low, high, low != nil && high != nil
}

// ListNodes returns all nodes by name.
func (s *Store) ListNodes(ctx context.Context) ([]Node, error) {
	rows, err := s.rq.ListNodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	out := make([]Node, len(rows))
	for i := range rows {
		if out[i], err = nodeOf(s.meta, &rows[i].Node, splitTags(rows[i].Tags)); err != nil {
			return nil, err
		}
		out[i].CertExpires = time.UnixMicro(rows[i].CertExpires)
	}
	return out, nil
}

func listScope(ctx context.Context, q *db.Queries, m Meta, site string) ([]Node, error) {
	rows, err := q.ListScope(ctx, site)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	out := make([]Node, len(rows))
	for i := range rows {
		if out[i], err = nodeOf(m, &rows[i].Node, splitTags(rows[i].Tags)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func splitTags(s string) []string {
	if s == "" {
		return nil
	}
	tags := strings.Split(s, ",")
	slices.Sort(tags)
	return tags
}

// Counts are how many nodes there are by state.
type Counts map[NodeState]int

// CountNodes counts the nodes.
func (s *Store) CountNodes(ctx context.Context) (Counts, error) {
	rows, err := s.rq.CountNodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("count nodes: %w", err)
	}
	out := Counts{}
	for _, r := range rows {
		st := NodeState(r.State)
		if st == Active && r.Locked != 0 {
			st = Locked
		}
		out[st] += int(r.N)
	}
	return out, nil
}

// ScopeSize returns how many nodes watchers of a site would be told of.
func (s *Store) ScopeSize(ctx context.Context, site string) (int, error) {
	n, err := s.rq.CountScope(ctx, site)
	if err != nil {
		return 0, fmt.Errorf("count nodes: %w", err)
	}
	return int(n), nil
}

// Cert is a certificate that the hub has issued.
type Cert struct {
	Serial   []byte
	NotAfter time.Time
	Revoked  bool
	Reason   string
}

// Certs returns the newest certificates of a node, newest first.
func (s *Store) Certs(ctx context.Context, id identity.PeerID) ([]Cert, error) {
	rows, err := s.rq.CertsOf(ctx, id[:])
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	out := make([]Cert, len(rows))
	for i, r := range rows {
		out[i] = Cert{Serial: r.Serial, NotAfter: time.UnixMicro(r.NotAfter), Revoked: r.RevokedAt != 0, Reason: r.Reason}
	}
	return out, nil
}

// Standing is what the hub needs to know of a caller at each call.
type Standing struct {
	Name, Site string
	ServerKey  bool
}
