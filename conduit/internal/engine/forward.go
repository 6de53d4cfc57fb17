// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// maxForwards bounds the pairs of peers whose packets we carry.
const maxForwards = 4096

type pair struct{ from, to identity.PeerID }

// forwards remembers which peers may send through us to which, for the readers of
// sockets. The zero value remembers nothing.
type forwards struct {
	mu    sync.RWMutex
	known map[pair]*dataplane.Peer // nil: they may not
}

func (f *forwards) get(k pair) (to *dataplane.Peer, known bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	to, known = f.known[k]
	return to, known
}

func (f *forwards) set(k pair, to *dataplane.Peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil || len(f.known) >= maxForwards {
		f.known = make(map[pair]*dataplane.Peer)
	}
	f.known[k] = to
}

// clear forgets all, because policy or peers changed.
func (f *forwards) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = nil
}

// Forward says to whom a packet goes that from wants carried to another peer; nil:
// to nobody. The first packet of a pair is dropped while the policy is asked. Safe
// for concurrent use; it does not block.
func (e *Engine) Forward(from *dataplane.Peer, to identity.PeerID) *dataplane.Peer {
	if !e.cfg.Relay || e.cfg.Registry.Get(to) == nil {
		return nil
	}
	k := pair{from.ID, to}
	if p, known := e.forwards.get(k); known {
		return p
	}
	if from.Miss(e.cfg.Dataplane.Now()) {
		e.box.offer(func() { e.decideForward(k) })
	}
	return nil
}

// decideForward: who may talk to each other may do so through us.
func (e *Engine) decideForward(k pair) {
	from, to := e.peers[k.from], e.peers[k.to]
	now := time.Now()
	if from == nil || to == nil || from == to || e.doc == nil || from.shutOut(now) || to.shutOut(now) {
		e.forwards.set(k, nil)
		return
	}
	flows, _, err := e.doc.Reach([]policy.Subject{from.subject(), to.subject()})
	if err != nil || len(flows) == 0 {
		e.forwards.set(k, nil)
		return
	}
	e.forwards.set(k, to.dp)
}

func (p *peer) subject() policy.Subject {
	return policy.Subject{ID: p.info.ID, Name: p.info.Name, Tags: p.info.Tags}
}
