// SPDX-License-Identifier: Apache-2.0

// Package relay passes sealed packets between nodes that have no better path: it
// knows who is here, queues and forgets. It reads the lane of a packet, two bits
// that the sender authenticated to the receiver, and nothing else.
//
// A sender never waits for a receiver. Each receiver has a queue of QueueLen
// packets, which one goroutine of its stream empties, Critical first; what does
// not fit is dropped at the head. So a receiver that stands still costs the hub a
// few packets of memory and others nothing.
package relay

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

const (
	// goneEvery is how often a node hears that the same peer cannot be reached.
	goneEvery = time.Second
	// permitFor is how long an answer of Allowed is believed.
	permitFor = time.Second
	// maxRoutes bounds what is remembered of a sender's peers.
	maxRoutes = 1024
	// minCost is what the smallest packet takes from the budget, in bytes: it costs
	// the hub as much work as another.
	minCost = 128
	// maxGone bounds the notices that wait for a sender.
	maxGone = 64
)

// Config is how a Registry behaves. The zero value of a field is its documented
// default.
type Config struct {
	// Allowed tells whether two nodes may talk in at least one direction; nil means
	// that all may. It is asked at most once a second for a pair, in the sender's
	// goroutine.
	Allowed func(a, b identity.PeerID) bool
	// Rate is what one node may send, in bytes of packets per second; zero means
	// 1,000,000 (8 Mbit/s). Burst is what it may send at once; zero means a quarter
	// of a second's worth, 64 KiB at least. Bulk does not get the last quarter of
	// it, nor Telemetry the last eighth.
	Rate, Burst int
}

// Stats are counters since the start, but for Clients, which is the present
// number. Arrays are by lane.
type Stats struct {
	Clients int
	// Relayed packets were handed to the receiver's stream.
	RelayedPackets, RelayedBytes [Lanes]uint64
	// Dropped packets: the receiver's queue was full, and the sender was over its
	// rate.
	DroppedQueue, DroppedRate [Lanes]uint64
	// Gone packets were for a node that is not here, or not allowed.
	Gone uint64
	// Invalid packets were none of the data plane.
	Invalid uint64
}

type counters struct {
	relayedPackets, relayedBytes, droppedQueue, droppedRate [Lanes]atomic.Uint64
	gone, invalid                                           atomic.Uint64
}

// Registry knows the open streams. It is safe for concurrent use.
type Registry struct {
	cfg   Config // set once in New
	count counters

	mu      sync.RWMutex // guards clients
	clients map[identity.PeerID]*Client
}

// New returns an empty registry.
func New(cfg Config) *Registry {
	if cfg.Allowed == nil {
		cfg.Allowed = func(identity.PeerID, identity.PeerID) bool { return true }
	}
	if cfg.Rate <= 0 {
		cfg.Rate = 1_000_000
	}
	if cfg.Burst <= 0 {
		cfg.Burst = max(cfg.Rate/4, 64<<10)
	}
	return &Registry{cfg: cfg, clients: make(map[identity.PeerID]*Client)}
}

// Stats returns the counters.
func (r *Registry) Stats() Stats {
	var s Stats
	c := &r.count
	for l := range Lanes {
		s.RelayedPackets[l], s.RelayedBytes[l] = c.relayedPackets[l].Load(), c.relayedBytes[l].Load()
		s.DroppedQueue[l], s.DroppedRate[l] = c.droppedQueue[l].Load(), c.droppedRate[l].Load()
	}
	s.Gone, s.Invalid = c.gone.Load(), c.invalid.Load()
	r.mu.RLock()
	s.Clients = len(r.clients)
	r.mu.RUnlock()
	return s
}

// Revoke ends the stream of a node.
func (r *Registry) Revoke(id identity.PeerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.clients[id]; c != nil {
		c.endLocked()
	}
}

// Client is the one relay stream of a node.
type Client struct {
	ID identity.PeerID

	reg  *Registry
	gone chan struct{} // closed once this is no longer the node's stream
	wake chan struct{} // holds a token where there may be something to Take

	// Owned by the goroutine that calls Send.
	routes map[identity.PeerID]route
	tokens float64
	filled time.Time

	mu      sync.Mutex // guards the following
	queue   queue
	notices []identity.PeerID
}

// route is what a sender knows of a peer.
type route struct {
	asked, told time.Time // when Allowed was, and when the sender was told that the peer is gone
	allowed     bool
}

// Open registers the stream of a node. An older one of the same node ends: the
// newest wins.
func (r *Registry) Open(id identity.PeerID) *Client {
	c := &Client{
		ID: id, reg: r, gone: make(chan struct{}), wake: make(chan struct{}, 1),
		routes: make(map[identity.PeerID]route), tokens: float64(r.cfg.Burst), filled: time.Now(),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.clients[id]; old != nil {
		old.endLocked()
	}
	r.clients[id] = c
	return c
}

// endLocked takes c out of its registry.
func (c *Client) endLocked() {
	if c.reg.clients[c.ID] == c {
		delete(c.reg.clients, c.ID)
		close(c.gone)
	}
}

// Close unregisters c. It may be called again.
func (c *Client) Close() {
	c.reg.mu.Lock()
	defer c.reg.mu.Unlock()
	c.endLocked()
}

// Gone is closed once c is no longer the node's stream: it was closed, replaced or
// revoked.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Wake yields a value after something came to take.
func (c *Client) Wake() <-chan struct{} { return c.wake }

// Send passes a packet to another node and never waits. It keeps packet, which the
// caller must not touch again. One goroutine may call it. It tells whether the
// packet is in the receiver's queue.
func (c *Client) Send(to identity.PeerID, packet []byte) bool {
	return c.send(time.Now(), to, packet)
}

func (c *Client) send(now time.Time, to identity.PeerID, packet []byte) bool {
	r := c.reg
	lane, ok := Lane(packet)
	if !ok || to == c.ID {
		r.count.invalid.Add(1)
		return false
	}
	if !c.allow(now, max(len(packet), minCost), lane) {
		r.count.droppedRate[lane].Add(1)
		return false
	}
	r.mu.RLock()
	dst := r.clients[to]
	if r.clients[c.ID] != c { // revoked or replaced, and not stopped yet
		dst = nil
	}
	r.mu.RUnlock()
	rt := c.routes[to]
	if dst != nil && now.Sub(rt.asked) >= permitFor {
		rt.asked, rt.allowed = now, r.cfg.Allowed(c.ID, to)
		c.remember(to, rt)
	}
	if dst == nil || !rt.allowed {
		r.count.gone.Add(1)
		if now.Sub(rt.told) >= goneEvery {
			rt.told = now
			c.remember(to, rt)
			c.notify(to)
		}
		return false
	}
	dst.deliver(Packet{From: c.ID, Data: packet}, lane)
	return true
}

// allow takes from the sender's budget, of which lower lanes may not use all.
func (c *Client) allow(now time.Time, n, lane int) bool {
	burst := float64(c.reg.cfg.Burst)
	if d := now.Sub(c.filled); d > 0 {
		c.tokens = min(burst, c.tokens+d.Seconds()*float64(c.reg.cfg.Rate))
		c.filled = now
	}
	keep := [Lanes]float64{0, burst / 8, burst / 4}[lane]
	if c.tokens-float64(n) < keep {
		return false
	}
	c.tokens -= float64(n)
	return true
}

// remember notes a route; where there are too many, all are asked for again.
func (c *Client) remember(to identity.PeerID, rt route) {
	if _, ok := c.routes[to]; !ok && len(c.routes) >= maxRoutes {
		clear(c.routes)
	}
	c.routes[to] = rt
}

// notify queues the news that a peer is gone.
func (c *Client) notify(peer identity.PeerID) {
	c.mu.Lock()
	if len(c.notices) < maxGone {
		c.notices = append(c.notices, peer)
	}
	c.mu.Unlock()
	c.rouse()
}

func (c *Client) deliver(p Packet, lane int) {
	c.mu.Lock()
	dropped := c.queue.push(p, lane)
	c.mu.Unlock()
	if dropped >= 0 {
		c.reg.count.droppedQueue[dropped].Add(1)
	}
	c.rouse()
}

func (c *Client) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Take appends what waits to packets and gone, Critical first, and returns them. It
// takes at most limit packets and leaves a token in Wake where some are left.
func (c *Client) Take(packets []Packet, gone []identity.PeerID, limit int) ([]Packet, []identity.PeerID) {
	var n, size [Lanes]uint64
	c.mu.Lock()
	gone = append(gone, c.notices...)
	c.notices = c.notices[:0]
	for range limit {
		p, lane, ok := c.queue.pop()
		if !ok {
			break
		}
		packets = append(packets, p)
		n[lane]++
		size[lane] += uint64(len(p.Data))
	}
	left := c.queue.n > 0
	c.mu.Unlock()
	if left {
		c.rouse()
	}
	for l := range Lanes {
		if n[l] > 0 {
			c.reg.count.relayedPackets[l].Add(n[l])
			c.reg.count.relayedBytes[l].Add(size[l])
		}
	}
	return packets, gone
}
