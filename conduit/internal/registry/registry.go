// SPDX-License-Identifier: Apache-2.0

// Package registry knows the mesh's nodes: what the hub last said of each, found
// by PeerID, by name or by virtual address.
package registry

import (
	"bytes"
	"cmp"
	"crypto/ecdh"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// Peer is a node as the hub describes it.
type Peer struct {
	ID       identity.PeerID
	Name     string
	Virtual4 netip.Addr
	Virtual6 netip.Addr
	Ed25519  ed25519.PublicKey
	X25519   *ecdh.PublicKey
	Tags     []string
}

// Errors of Check and Resolve.
var (
	ErrKeys      = errors.New("keys do not match the peer id")
	ErrUnknown   = errors.New("no such peer")
	ErrAmbiguous = errors.New("more than one peer matches")
)

// Check reports whether p is consistent: its keys hash to its id and it has a
// virtual address. A peer that is not must be ignored, whoever says it.
func (p *Peer) Check() error {
	if len(p.Ed25519) != ed25519.PublicKeySize || p.X25519 == nil {
		return fmt.Errorf("%w: key missing", ErrKeys)
	}
	if identity.NewPeerID(p.Ed25519, p.X25519.Bytes()) != p.ID {
		return ErrKeys
	}
	if !p.Virtual4.Is4() || p.Virtual6.IsValid() && (!p.Virtual6.Is6() || p.Virtual6.Is4In6() || p.Virtual6.Zone() != "") {
		return errors.New("virtual addresses are not one of IPv4 and at most one of IPv6")
	}
	if !identity.ValidName(p.Name) {
		return errors.New("name is not a DNS label")
	}
	return nil
}

// Equal reports whether p and o say the same.
func (p *Peer) Equal(o *Peer) bool {
	return p.ID == o.ID && p.Name == o.Name && p.Virtual4 == o.Virtual4 && p.Virtual6 == o.Virtual6 &&
		bytes.Equal(p.Ed25519, o.Ed25519) && slices.Equal(p.Tags, o.Tags)
}

// Registry is the set of peers. The zero value is empty; all methods are safe
// for concurrent use.
type Registry struct {
	mu    sync.RWMutex
	peers map[identity.PeerID]*Peer
}

// Change is what a call changed.
type Change struct {
	// Upserts are new or different now.
	Upserts []*Peer
	Deletes []identity.PeerID
	// Rejected are inconsistent and were ignored.
	Rejected map[identity.PeerID]error
}

// Empty reports whether nothing changed.
func (c *Change) Empty() bool { return len(c.Upserts) == 0 && len(c.Deletes) == 0 }

// Sync replaces the whole set.
func (r *Registry) Sync(peers []Peer) Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	keep := make(map[identity.PeerID]bool, len(peers))
	for i := range peers {
		keep[peers[i].ID] = true
	}
	var gone []identity.PeerID
	for id := range r.peers {
		if !keep[id] {
			gone = append(gone, id)
		}
	}
	return r.applyLocked(peers, gone)
}

// Apply adds or replaces some peers and deletes others.
func (r *Registry) Apply(upserts []Peer, deletes []identity.PeerID) Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applyLocked(upserts, deletes)
}

func (r *Registry) applyLocked(upserts []Peer, deletes []identity.PeerID) Change {
	c := Change{Rejected: map[identity.PeerID]error{}}
	if r.peers == nil {
		r.peers = make(map[identity.PeerID]*Peer)
	}
	for _, id := range deletes {
		if _, ok := r.peers[id]; ok {
			delete(r.peers, id)
			c.Deletes = append(c.Deletes, id)
		}
	}
	for _, p := range upserts {
		if err := p.Check(); err != nil {
			c.Rejected[p.ID] = err
			continue
		}
		if old := r.peers[p.ID]; old != nil && old.Equal(&p) {
			continue
		}
		r.peers[p.ID] = &p
		c.Upserts = append(c.Upserts, &p)
	}
	return c
}

// Get returns a peer, or nil. The peer must not be changed.
func (r *Registry) Get(id identity.PeerID) *Peer {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.peers[id]
}

// All returns the peers by name. They must not be changed.
func (r *Registry) All() []*Peer {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]*Peer, 0, len(r.peers))
	for _, p := range r.peers {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *Peer) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.ID.Compare(b.ID))
	})
	return out
}

// Resolve finds a peer by what people type: a PeerID or a unique prefix of one
// of at least four characters, a name with or without ".mesh", or a virtual
// address. An exact match wins over a prefix.
func (r *Registry) Resolve(text string) (*Peer, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	name := strings.TrimSuffix(text, ".mesh")
	addr, addrErr := netip.ParseAddr(text)
	var named, prefix []*Peer
	for _, p := range r.All() {
		id := p.ID.String()
		switch {
		case id == text: // before any name: a node may call itself what it likes
			return p, nil
		case p.Name == name, addrErr == nil && (addr == p.Virtual4 || addr == p.Virtual6):
			named = append(named, p)
		case len(text) >= 4 && strings.HasPrefix(id, text):
			prefix = append(prefix, p)
		}
	}
	found := named
	if len(named) == 0 {
		found = prefix
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %q", ErrUnknown, text)
	case 1:
		return found[0], nil
	}
	names := make([]string, len(found))
	for i, p := range found {
		names[i] = p.Name + " (" + p.ID.Short() + ")"
	}
	return nil, fmt.Errorf("%w %q: %s", ErrAmbiguous, text, strings.Join(names, ", "))
}
