// SPDX-License-Identifier: Apache-2.0

// Package signal relays opaque connection set-up messages between the nodes that
// have a stream open, and knows by that who is online. Every queue is bounded and
// every message that cannot be delivered is answered with a reason.
package signal

import (
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

const (
	// QueueLen is how many messages wait for one receiver.
	QueueLen = 64
	// Rate is what one sender may send for long, in messages per second.
	Rate = 50
	// Burst is what one sender may send at once.
	Burst = 200
	// MaxBody is the largest body in bytes.
	MaxBody = 16 << 10
)

// Reason says what became of a message.
type Reason uint8

// The reasons; Delivered means that the message is in the receiver's queue.
const (
	Delivered Reason = iota
	Offline
	Busy
	OverRate
	Invalid
)

// Envelope is a message with its authenticated sender.
type Envelope struct {
	From identity.PeerID
	Body []byte
}

// Registry knows the open streams. It is safe for concurrent use.
type Registry struct {
	presence func(id identity.PeerID, site string, online bool, instance uint64)

	mu       sync.Mutex // guards the following
	streams  map[identity.PeerID]*Stream
	sites    map[string]map[identity.PeerID]*Stream // the same ones
	instance uint64
	// buckets are those of the nodes that have a stream, and of those that had one
	// lately: who comes back at once has not a whole burst again.
	buckets map[identity.PeerID]*bucket
	sweepAt int // how many buckets are looked through
}

const minSweep = 1024

// bucket is what a node may send.
type bucket struct {
	mu     sync.Mutex // guards the rest
	tokens float64
	filled time.Time
}

// fill brings b up to now. The lock is held.
func (b *bucket) fill(now time.Time) {
	b.tokens = min(Burst, b.tokens+Rate*now.Sub(b.filled).Seconds())
	b.filled = now
}

func (b *bucket) full(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	return b.tokens >= Burst
}

// NewRegistry returns an empty registry. presence is called, in order and never
// concurrently, whenever a node comes, comes anew, or goes; it must not block nor
// call back.
func NewRegistry(presence func(id identity.PeerID, site string, online bool, instance uint64)) *Registry {
	return &Registry{
		presence: presence,
		streams:  make(map[identity.PeerID]*Stream),
		sites:    make(map[string]map[identity.PeerID]*Stream),
		buckets:  make(map[identity.PeerID]*bucket),
		sweepAt:  minSweep,
		// Higher after a restart than ever before it.
		instance: uint64(time.Now().UnixMicro()),
	}
}

// Stream is the one signalling stream of a node.
type Stream struct {
	ID       identity.PeerID
	Site     string // the node's scope
	Instance uint64

	reg   *Registry
	queue chan *Envelope
	gone  chan struct{} // closed once another stream took its place

	bucket *bucket
}

// Open registers the stream of a node. An older one of the same node is closed:
// the newest wins, because the older is mostly one whose end nobody has noticed.
func (r *Registry) Open(id identity.PeerID, site string) *Stream {
	s := &Stream{
		ID: id, Site: site, reg: r, queue: make(chan *Envelope, QueueLen), gone: make(chan struct{}),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.bucket = r.bucketOf(id, time.Now())
	if old := r.streams[id]; old != nil {
		close(old.gone)
		r.forget(old) // its site may be another
	}
	r.instance++
	s.Instance = r.instance
	r.streams[id] = s
	if r.sites[site] == nil {
		r.sites[site] = make(map[identity.PeerID]*Stream)
	}
	r.sites[site][id] = s
	r.presence(id, site, true, s.Instance)
	return s
}

// bucketOf returns the bucket of a node. The lock is held.
func (r *Registry) bucketOf(id identity.PeerID, now time.Time) *bucket {
	if b := r.buckets[id]; b != nil {
		return b
	}
	if len(r.buckets) >= r.sweepAt {
		for k, b := range r.buckets {
			if r.streams[k] == nil && b.full(now) {
				delete(r.buckets, k)
			}
		}
		r.sweepAt = max(minSweep, 2*len(r.buckets))
	}
	b := &bucket{tokens: Burst, filled: now}
	r.buckets[id] = b
	return b
}

// Close unregisters s, unless another stream has taken its place already.
func (s *Stream) Close() {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	if s.reg.streams[s.ID] == s {
		s.reg.forget(s)
		s.reg.presence(s.ID, s.Site, false, s.Instance)
	}
}

// forget takes s out. The lock is held.
func (r *Registry) forget(s *Stream) {
	delete(r.streams, s.ID)
	if delete(r.sites[s.Site], s.ID); len(r.sites[s.Site]) == 0 {
		delete(r.sites, s.Site)
	}
}

// Gone is closed once s is no longer the node's stream.
func (s *Stream) Gone() <-chan struct{} { return s.gone }

// Queue is what others sent to the node.
func (s *Stream) Queue() <-chan *Envelope { return s.queue }

// Send puts a message from s into the receiver's queue. It keeps body.
func (s *Stream) Send(to identity.PeerID, body []byte) Reason {
	if len(body) == 0 || len(body) > MaxBody || to == s.ID {
		return Invalid
	}
	s.reg.mu.Lock()
	dst := s.reg.streams[to]
	s.reg.mu.Unlock()
	if dst == nil {
		return Offline
	}
	select {
	case dst.queue <- &Envelope{From: s.ID, Body: body}:
		return Delivered
	default:
		return Busy
	}
}

// Allow takes one message from the sender's budget. It counts what is refused
// elsewhere too, since that costs the hub as well.
func (s *Stream) Allow() bool {
	b := s.bucket
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(time.Now())
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// Online calls f for every node of a site that has a stream, in no order, and costs
// no more than these. f must not call back.
func (r *Registry) Online(site string, f func(id identity.PeerID, instance uint64)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.sites[site] {
		f(id, s.Instance)
	}
}

// Lookup returns the stream of a node, where it has one.
func (r *Registry) Lookup(id identity.PeerID) (site string, instance uint64, online bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.streams[id]
	if s == nil {
		return "", 0, false
	}
	return s.Site, s.Instance, true
}

// Count returns how many nodes have a stream.
func (r *Registry) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.streams)
}
