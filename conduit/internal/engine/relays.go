// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

const (
	// relayAfter is how long a peer may be without a direct path before willing peers
	// are tried.
	relayAfter = time.Second
	// relayTrial is how long willing peers are tried before others are.
	relayTrial = 3 * time.Second
	// maxRelays bounds the willing peers that are tried for one peer.
	maxRelays = 2
)

// relayBind returns the bind that sends through a willing peer, made at first use.
func (e *Engine) relayBind(relay *peer) int {
	bind, ok := e.relayBinds[relay.info.ID]
	if !ok {
		bind = e.cfg.PeerBind(relay.dp)
		e.relayBinds[relay.info.ID] = bind
	}
	return bind
}

// relaysFor reports whether others are reached through p: its own packets must then
// not go through others, or each would carry the other's for ever.
func (e *Engine) relaysFor(p *peer) bool {
	_, ok := e.relayBinds[p.info.ID]
	return ok
}

// dropRelay ends the use of a peer as relay.
func (e *Engine) dropRelay(relay *peer) {
	bind, ok := e.relayBinds[relay.info.ID]
	if !ok {
		return
	}
	delete(e.relayBinds, relay.info.ID)
	e.inbound.forget(func(k pair) bool { return k.from == relay.info.ID })
	now := time.Now()
	for _, p := range e.peers {
		if i := slices.Index(p.relays, bind); i >= 0 {
			p.relays = slices.Delete(p.relays, i, i+1)
			p.syncSockets(now)
			p.drain(now)
		}
	}
	e.cfg.DropBind(bind)
}

// useRelay makes a way through a willing peer one of p's.
func (p *peer) useRelay(relay *peer) {
	bind := p.e.relayBind(relay)
	if !slices.Contains(p.relays, bind) {
		p.relays = append(p.relays, bind)
	}
	p.e.inbound.set(pair{relay.info.ID, p.info.ID}, dataplane.Path{Bind: bind, Remote: p.relayAddr()})
}

// dropRelays ends the ways through willing peers.
func (p *peer) dropRelays() {
	if p.relays != nil {
		p.relays = nil
		p.e.inbound.forget(func(k pair) bool { return k.to == p.info.ID })
		p.e.pruneRelays()
	}
}

// pruneRelays lets willing peers go that nobody is reached through any more.
func (e *Engine) pruneRelays() {
	used := make(map[int]bool)
	for _, p := range e.peers {
		for _, bind := range p.relays {
			used[bind] = true
		}
	}
	for id, bind := range e.relayBinds {
		if q := e.peers[id]; !used[bind] && q != nil {
			e.dropRelay(q)
		}
	}
}

// findRelay looks for willing peers where no direct path leads to p, and lets them
// go when one does.
func (p *peer) findRelay(now time.Time) {
	if p.e.cfg.PeerBind == nil || !p.capable() || p.relays == nil && p.e.relaysFor(p) {
		return
	}
	if p.hasDirect() {
		if len(p.relays) > 0 && p.demand() == path.Idle {
			p.dropRelays()
			p.syncSockets(now)
		}
		return
	}
	if p.demand() == path.Idle || now.Sub(p.noDirect) < relayAfter || now.Sub(p.relaysAt) < relayTrial {
		return
	}
	if len(p.relays) >= maxRelays {
		for _, st := range p.paths.Status(now) {
			if st.Kind == path.Peer && st.State == path.StateValid {
				return
			}
		}
		p.relays = slices.Delete(p.relays, 0, 1) // make room for one that may answer
		p.e.inbound.forget(func(k pair) bool { return k.to == p.info.ID })
	}
	p.relaysAt = now
	found := false
	for _, q := range p.e.peers {
		if q == p || len(q.relays) > 0 || !q.connected() || !q.hasDirect() || q.newest().est.PeerCaps&wire.CapRelay == 0 {
			continue
		}
		if bind, ok := p.e.relayBinds[q.info.ID]; ok && slices.Contains(p.relays, bind) {
			continue
		}
		p.useRelay(q)
		found = true
		if len(p.relays) >= maxRelays {
			break
		}
	}
	if found {
		p.syncSockets(now)
	}
}

// Relayed says on which of our paths a packet came that relay brought from another
// peer; the first of a pair is dropped while the path is made. Safe for concurrent
// use; it does not block.
func (e *Engine) Relayed(relay *dataplane.Peer, from identity.PeerID) (dataplane.Path, bool) {
	k := pair{relay.ID, from}
	way, ok := e.inbound.get(k)
	if !ok && e.cfg.PeerBind != nil && relay.Miss(e.cfg.Dataplane.Now()) {
		e.box.offer(func() {
			r, p := e.peers[k.from], e.peers[k.to]
			if r == nil || p == nil || r == p || !r.connected() || r.newest().est.PeerCaps&wire.CapRelay == 0 || !p.capable() || e.relaysFor(p) || len(r.relays) > 0 || len(p.relays) >= 2*maxRelays {
				return
			}
			now := time.Now()
			p.useRelay(r)
			p.syncSockets(now)
			p.drain(now)
			e.touch(p)
		})
	}
	return way, ok
}

// inbound maps relay and sender to the path that packets come on. The zero value
// knows none.
type inbound struct {
	mu    sync.RWMutex
	known map[pair]dataplane.Path
}

func (f *inbound) get(k pair) (dataplane.Path, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	p, ok := f.known[k]
	return p, ok
}

func (f *inbound) set(k pair, p dataplane.Path) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil {
		f.known = make(map[pair]dataplane.Path)
	}
	f.known[k] = p
}

// forget drops the pairs that match; from is the relay.
func (f *inbound) forget(match func(pair) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.known, func(k pair, _ dataplane.Path) bool { return match(k) })
}
