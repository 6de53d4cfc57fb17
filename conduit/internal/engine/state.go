// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/ed25519"
	"net/netip"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
)

// Known is a peer and where it was last reached.
type Known struct {
	registry.Peer
	// Addrs are underlay addresses, the newest first.
	Addrs []netip.AddrPort
}

// State is what the engine has to know to go on without the hub.
type State struct {
	Peers         []Known
	PolicyVersion uint64
	Policy        []byte
	Denials       []Denial
}

// State returns what a restart should know.
func (e *Engine) State(ctx context.Context) (s State, err error) {
	err = e.ask(ctx, func() {
		s.PolicyVersion, s.Policy = e.docSeq, e.docText
		for _, p := range e.peers {
			s.Peers = append(s.Peers, Known{*p.info, slices.Clone(p.remotes)})
		}
		s.Denials = e.denied.list(time.Now())
	})
	return s, err
}

// Restore puts a State into force, before Run. What the hub says later replaces it.
func (e *Engine) Restore(s State) {
	e.denied.add(s.Denials)
	list := make([]registry.Peer, len(s.Peers))
	for i := range s.Peers {
		list[i] = s.Peers[i].Peer
	}
	e.changed(e.cfg.Registry.Sync(e.others(list)))
	for _, k := range s.Peers {
		if p := e.peers[k.ID]; p != nil {
			p.remotes = slices.DeleteFunc(slices.Clone(k.Addrs[:min(len(k.Addrs), maxRemotes)]), func(a netip.AddrPort) bool {
				return e.cfg.Mux.Forbidden(a.Addr())
			})
		}
	}
	if s.Policy != nil {
		e.policy(s.PolicyVersion, s.Policy)
	}
	e.rebuild()
}

// list returns the denials in force.
func (d *denials) list(now time.Time) []Denial {
	var out []Denial
	for id, until := range d.ids {
		if inForce(until, now) {
			out = append(out, Denial{ID: id, Until: until})
		}
	}
	for k, until := range d.keys {
		if inForce(until, now) {
			out = append(out, Denial{Ed25519: ed25519.PublicKey(k), Until: until})
		}
	}
	for s, until := range d.serials {
		if inForce(until, now) {
			out = append(out, Denial{Serial: []byte(s), Until: until})
		}
	}
	return out
}
