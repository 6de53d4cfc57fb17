// SPDX-License-Identifier: Apache-2.0

package conduittest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// ErrHubDown is what Signal returns while the hub is down.
var ErrHubDown = errors.New("hub is down")

// Hub is a hub in memory. All methods are safe for concurrent use.
type Hub struct {
	mu       sync.Mutex // guards all
	down     bool
	turned   chan struct{} // closed when down changes
	peers    map[identity.PeerID]conduit.Peer
	links    map[identity.PeerID]*connector
	document []byte
	version  uint64
	instance uint64
	tap      Tap
	denials  []conduit.Denial
	lazy     bool
	asked    []conduit.PeerQuery
	relay    bool
	streams  map[identity.PeerID]*stream
}

// Tap sees each signalling body and returns what is delivered instead; nil drops
// it. It may change body and must not call the hub.
type Tap func(from, to identity.PeerID, body []byte) []byte

// SetTap installs a tap; nil removes it.
func (h *Hub) SetTap(tap Tap) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tap = tap
}

// NewHub returns a hub with the default policy and no peers.
func NewHub() *Hub {
	return &Hub{
		peers: map[identity.PeerID]conduit.Peer{}, links: map[identity.PeerID]*connector{}, streams: map[identity.PeerID]*stream{},
		document: policy.Default().Marshal(), version: 1, turned: make(chan struct{}),
	}
}

// Enrol adds or replaces a node.
func (h *Hub) Enrol(p conduit.Peer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.peers[p.ID] = p
	h.eachLocked(func(c *connector) { c.put(func(ev conduit.HubEvents) { ev.PeersChanged([]conduit.Peer{p}, nil) }) })
}

// Remove takes a node out of the mesh.
func (h *Hub) Remove(id identity.PeerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.peers, id)
	h.eachLocked(func(c *connector) {
		c.put(func(ev conduit.HubEvents) { ev.PeersChanged(nil, []identity.PeerID{id}) })
	})
}

// Deny tells all nodes to shut somebody out. The hub goes on to deliver for him.
func (h *Hub) Deny(d conduit.Denial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.denials = append(h.denials, d)
	h.eachLocked(func(c *connector) {
		c.put(func(ev conduit.HubEvents) { ev.Denied([]conduit.Denial{d}, false) })
	})
}

// SetLazy makes the hub tell of peers on request only, to nodes that come from now
// on.
func (h *Hub) SetLazy(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lazy = on
}

// Asked returns what nodes asked for, in order.
func (h *Hub) Asked() []conduit.PeerQuery {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.asked)
}

// ResolvePeer implements conduit.PeerResolver.
func (c *connector) ResolvePeer(_ context.Context, q conduit.PeerQuery) (conduit.ResolvedPeer, error) {
	h := c.h
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, q)
	if h.down {
		return conduit.ResolvedPeer{}, ErrHubDown
	}
	for id, p := range h.peers {
		if id == q.ID || q.Name != "" && p.Name == q.Name || q.Addr.IsValid() && (p.Virtual4 == q.Addr || p.Virtual6 == q.Addr) {
			return conduit.ResolvedPeer{Peer: p, Online: h.links[id] != nil, Instance: 1}, nil
		}
	}
	return conduit.ResolvedPeer{}, conduit.ErrUnknownPeer
}

// SetPolicy activates a policy.
func (h *Hub) SetPolicy(d *policy.Document) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.document = d.Marshal()
	h.version++
	doc, version := h.document, h.version
	h.eachLocked(func(c *connector) { c.put(func(ev conduit.HubEvents) { ev.Policy(version, doc) }) })
}

// SetDown breaks all links, or lets them come back.
func (h *Hub) SetDown(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down == down {
		return
	}
	h.down = down
	if down {
		h.breakStreamsLocked()
	}
	close(h.turned)
	h.turned = make(chan struct{})
	h.eachLocked(func(c *connector) {
		if down {
			c.put(func(ev conduit.HubEvents) { ev.HubState(false, ErrHubDown) })
			return
		}
		h.welcomeLocked(c)
	})
}

func (h *Hub) eachLocked(f func(*connector)) {
	for _, c := range h.links {
		f(c)
	}
}

// welcomeLocked tells a node all there is.
func (h *Hub) welcomeLocked(c *connector) {
	peers := make([]conduit.Peer, 0, len(h.peers))
	for _, p := range h.peers {
		if !h.lazy {
			peers = append(peers, p)
		}
	}
	doc, version := h.document, h.version
	denials := slices.Clone(h.denials)
	var online []identity.PeerID
	for id := range h.links {
		online = append(online, id)
	}
	h.instance++
	instance := h.instance
	c.put(func(ev conduit.HubEvents) {
		ev.Denied(denials, true)
		ev.PeersSynced(peers)
		ev.Policy(version, doc)
		ev.HubState(true, nil)
		for _, id := range online {
			ev.Presence(id, true, instance)
		}
	})
	for id, o := range h.links {
		if id != c.id {
			o.put(func(ev conduit.HubEvents) { ev.Presence(c.id, true, instance) })
		}
	}
}

// Connector returns the link of one node.
func (h *Hub) Connector(id identity.PeerID) conduit.HubConnector {
	c := &connector{h: h, id: id, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.relay {
		return relayConnector{c}
	}
	return c
}

// connector implements conduit.HubConnector.
type connector struct {
	h    *Hub
	id   identity.PeerID
	wake chan struct{}

	mu    sync.Mutex // guards queue
	queue []func(conduit.HubEvents)
}

func (c *connector) put(f func(conduit.HubEvents)) {
	c.mu.Lock()
	c.queue = append(c.queue, f)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run implements conduit.HubConnector.
func (c *connector) Run(ctx context.Context, ev conduit.HubEvents) error {
	c.h.mu.Lock()
	c.h.links[c.id] = c
	if !c.h.down {
		c.h.welcomeLocked(c)
	}
	c.h.mu.Unlock()
	defer func() {
		c.h.mu.Lock()
		defer c.h.mu.Unlock()
		if c.h.links[c.id] == c {
			delete(c.h.links, c.id)
			c.h.eachLocked(func(o *connector) {
				o.put(func(ev conduit.HubEvents) { ev.Presence(c.id, false, 0) })
			})
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.wake:
		}
		c.mu.Lock()
		queue := c.queue
		c.queue = nil
		c.mu.Unlock()
		for _, f := range queue {
			f(ev)
		}
	}
}

// Signal implements conduit.HubConnector.
func (c *connector) Signal(to identity.PeerID, body []byte) error {
	body = bytes.Clone(body)
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if c.h.tap != nil {
		if body = c.h.tap(c.id, to, body); body == nil {
			return nil
		}
	}
	if c.h.down {
		return ErrHubDown
	}
	if o := c.h.links[to]; o != nil {
		o.put(func(ev conduit.HubEvents) { ev.Signaled(c.id, body) })
		return nil
	}
	reason := "offline"
	if _, ok := c.h.peers[to]; !ok {
		reason = "unknown"
	}
	c.put(func(ev conduit.HubEvents) { ev.Undeliverable(to, reason) })
	return nil
}
