// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"weak"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// handles are the PeerRules that were given out. Those of peers that left, or
// that never came, live as long as someone holds them and no longer, so a mesh
// in which nodes come and go does not grow for ever.
type handles struct {
	present map[identity.PeerID]*PeerRules
	absent  map[identity.PeerID]weak.Pointer[PeerRules]
	// sweepAt is the size of absent at which the dead are removed.
	sweepAt int
}

const leastSweep = 64

func newHandles() handles {
	return handles{
		present: map[identity.PeerID]*PeerRules{},
		absent:  map[identity.PeerID]weak.Pointer[PeerRules]{},
		sweepAt: leastSweep,
	}
}

// get returns the handle of a peer, which stays as it is: present or absent.
func (h *handles) get(id identity.PeerID) *PeerRules {
	if p := h.present[id]; p != nil {
		return p
	}
	if p := h.absent[id].Value(); p != nil {
		return p
	}
	p := new(PeerRules)
	h.miss(id, p)
	return p
}

// arrive returns the handle of a peer that is there from now on.
func (h *handles) arrive(id identity.PeerID) *PeerRules {
	p := h.get(id)
	h.present[id] = p
	delete(h.absent, id)
	return p
}

// leave makes the handle deny and forgets it as soon as its holders do.
func (h *handles) leave(id identity.PeerID) {
	p := h.present[id]
	p.table.Store(nil)
	delete(h.present, id)
	h.miss(id, p)
}

func (h *handles) miss(id identity.PeerID, p *PeerRules) {
	h.absent[id] = weak.Make(p)
	if len(h.absent) < h.sweepAt {
		return
	}
	for id, w := range h.absent {
		if w.Value() == nil {
			delete(h.absent, id)
		}
	}
	h.sweepAt = max(2*len(h.absent), leastSweep)
}
