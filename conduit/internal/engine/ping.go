// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
)

// Peer returns the packet path's view of a peer, or registry.ErrUnknown. connected
// tells whether a path to it stands.
func (e *Engine) Peer(ctx context.Context, id identity.PeerID) (dp *dataplane.Peer, connected bool, err error) {
	type answer struct {
		dp        *dataplane.Peer
		connected bool
	}
	a := make(chan answer, 1) // which nobody may wait for any more
	err = e.ask(ctx, func() {
		if p := e.peers[id]; p != nil {
			a <- answer{p.dp, p.connected()}
		} else {
			a <- answer{}
		}
	})
	if err != nil {
		return nil, false, err
	}
	got := <-a
	if got.dp == nil {
		return nil, false, registry.ErrUnknown
	}
	return got.dp, got.connected, nil
}

// DescribePath tells what kind of path to a peer one is and which interface it
// leaves by; false where it is not known any more.
func (e *Engine) DescribePath(ctx context.Context, id identity.PeerID, which dataplane.Path) (kind path.Kind, uplink string, ok bool) {
	type answer struct {
		kind   path.Kind
		uplink string
		ok     bool
	}
	a := make(chan answer, 1)
	err := e.ask(ctx, func() {
		var found answer
		if p := e.peers[id]; p != nil && p.hasPaths() {
			for _, s := range p.paths.Status(time.Now()) {
				if s.ID == path.ID(which) {
					found = answer{s.Kind, e.uplinkName(s.Uplink), true}
				}
			}
		}
		a <- found
	})
	if err != nil {
		return 0, "", false
	}
	found := <-a
	return found.kind, found.uplink, found.ok
}
