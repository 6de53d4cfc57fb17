// SPDX-License-Identifier: Apache-2.0

// Package lane decides which packet leaves next, and when.
//
// A [Scheduler] holds what waits for the uplinks of a node. Critical leaves on
// several uplinks at once, so it waits for the node as a whole, and for nothing
// but the processor. Telemetry and Bulk wait per uplink and per [Pipe], which is
// one path of one peer, until the pipe's [congestion.Strategy] has tokens for
// them: deficit round robin between the lanes of an uplink and between the pipes
// of a lane (Shreedhar and Varghese, 1995), FQ-CoDel between the flows of a
// pipe's Bulk (RFC 8290).
//
// An IP datagram that is in fragments is dropped as a whole or not at all.
package lane

import (
	"math"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Capacities in packets: of Critical for the node, of the others for each uplink.
// DefaultCriticalShare is the share of a pipe's rate that Critical may have.
const (
	DefaultCritical      = 1024
	DefaultTelemetry     = 2048
	DefaultBulk          = 4096
	DefaultCriticalShare = 0.4
)

// maxDemoted is how many demoted packets a pipe holds.
const maxDemoted = 1024

// What waits for longer is of no use any more: newer data has been made.
const (
	criticalDeadline = int64(250 * time.Millisecond)
	telemetryAge     = int64(200 * time.Millisecond)
	demotedAge       = int64(200 * time.Millisecond)
)

// Drop says why a packet left its lane without being sent.
type Drop uint8

// The reasons for drops.
const (
	Overflow Drop = iota // its lane, pipe or flow was the fullest
	Deadline             // Critical that waited for over 250 ms
	Age                  // Telemetry, or demoted, that waited for over 200 ms
	CoDel                // its flow had a standing queue
	Datagram             // another fragment of its datagram was dropped
	Closed               // the Scheduler is closed
	// NumDrops is how many reasons there are.
	NumDrops = 6
)

var dropNames = [NumDrops]string{"overflow", "deadline", "age", "codel", "datagram", "closed"}

// String returns "overflow", "deadline", "age", "codel", "datagram" or "closed".
func (d Drop) String() string {
	if int(d) < len(dropNames) {
		return dropNames[d]
	}
	return "unknown"
}

// Flows is told when a packet of a flow leaves its lane, sent or dropped. Whoever
// decided for the lane has counted it in.
type Flows interface {
	Left(flow uint32, l packet.Lane)
}

// Config of a Scheduler. Zero means the defaults; nil hooks are not called.
type Config struct {
	// Critical is how many packets of that lane wait at most, Telemetry and Bulk
	// how many for each uplink.
	Critical, Telemetry, Bulk int
	// CriticalShare is the share of a pipe's rate that Police lets Critical have.
	CriticalShare float64
	// Flows is called inside the lock and must be quick.
	Flows Flows
	// OnDrop is told of each packet that is dropped, before its release and outside
	// the lock.
	OnDrop func(*packet.Buf, Drop)
	// Now is a clock in nanoseconds that does not step. Nil: the time since New.
	Now func() int64
}

// Stats are the counters of one lane. Enqueued is the sum of Dequeued, Drops and
// Depth.
type Stats struct {
	// Enqueued counts all packets that were given to the Scheduler, Dequeued those
	// that it gave back.
	Enqueued, Dequeued uint64
	// Depth and Bytes of inner packets wait now.
	Depth, Bytes int
	Drops        [NumDrops]uint64
	// Marked counts the packets that were marked with ECN instead of being dropped.
	Marked uint64
	// Demoted counts those of Enqueued that were demoted.
	Demoted uint64
	// SojournNs is how long packets wait until they are dequeued, smoothed over 16 of
	// them; SojournMaxNs the longest of the last second or two.
	SojournNs, SojournMaxNs int64
}

// The classes: the lanes, and Bulk that is demoted.
const (
	demoted    = packet.NumLanes
	numClasses = packet.NumLanes + 1
)

func class(b *packet.Buf) int {
	switch {
	case b.Lane != packet.Bulk:
		return int(b.Lane)
	case b.Demoted:
		return demoted
	}
	return int(packet.Bulk)
}

func laneOf(class int) packet.Lane { return packet.Lane(min(class, int(packet.Bulk))) }

// Scheduler holds what waits. Enqueue and the methods of Uplink and Pipe are safe
// for concurrent use; Wait, Dequeue, NextAt, Sent and TrainSent are for the one
// goroutine that seals and sends, since the order of Dequeue is that of the
// counters.
type Scheduler struct {
	cfg   Config
	now   func() int64
	wake  chan struct{} // has room for one
	done  chan struct{} // closed by Close
	timer *time.Timer   // of Wait

	mu       sync.Mutex // guards the rest
	closed   bool
	sleeping bool  // Wait sleeps, and is to be woken
	sleepTo  int64 // until then
	wakeAt   int64 // asked for with Wake
	control  list
	critical ring // pipes with Critical
	nCrit    int  // packets in them
	uplinks  []*Uplink
	turn     int   // the uplink that is next
	free     *Pipe // of packets without a pipe
	trains   []*Pipe
	fresh    []*Pipe // those that began to wait in this Enqueue
	idle     idleList
	fates    fates
	lanes    [packet.NumLanes]laneStats
	dead     graves
	anyDead  bool
}

type laneStats struct {
	enqueued, dequeued, marked, demoted uint64
	depth, bytes                        int
	drops                               [NumDrops]uint64
	wait                                sojourn
}

// New returns an empty Scheduler.
func New(cfg Config) *Scheduler {
	for _, c := range []struct {
		n   *int
		def int
	}{{&cfg.Critical, DefaultCritical}, {&cfg.Telemetry, DefaultTelemetry}, {&cfg.Bulk, DefaultBulk}} {
		if *c.n <= 0 {
			*c.n = c.def
		}
	}
	if cfg.CriticalShare <= 0 {
		cfg.CriticalShare = DefaultCriticalShare
	}
	if cfg.Now == nil {
		start := time.Now()
		cfg.Now = func() int64 { return int64(time.Since(start)) }
	}
	s := &Scheduler{
		cfg: cfg, now: cfg.Now, wake: make(chan struct{}, 1), done: make(chan struct{}),
		sleepTo: math.MaxInt64, wakeAt: math.MaxInt64,
	}
	s.critical.class, s.idle.class = int(packet.Critical), inIdle
	s.free = s.AddUplink().AddPipe(nil, 0)
	return s
}

// Enqueue takes all bufs, each into its Lane on its pipe, and never waits. Critical
// without a pipe is control: it leaves before everything else and in its order;
// what else has no pipe is not paced. Enqueue overwrites elements of bufs.
func (s *Scheduler) Enqueue(bufs []*packet.Buf, pipes []*Pipe) {
	s.mu.Lock()
	now := s.now()
	urgent := false
	for i, b := range bufs {
		bufs[i] = nil
		p := pipes[i]
		l := b.Lane
		s.lanes[l].enqueued++
		if s.closed {
			s.bury(b, Closed)
			continue
		}
		b.Queued = now
		if p == nil {
			if l == packet.Critical {
				s.enqueueControl(b)
				urgent = true
				continue
			}
			p = s.free
		}
		c := class(b)
		if c == demoted {
			s.lanes[l].demoted++
		}
		if b.Datagram != 0 && s.fates.arrives(b, now) {
			s.bury(b, Datagram)
			continue
		}
		s.push(p, c, b)
		urgent = urgent || l == packet.Critical || !p.blocked
		s.trim(p, c, now)
	}
	for i, p := range s.fresh {
		s.fresh[i] = nil
		p.fresh = false
		if p.waits() {
			p.update(now)
			p.u.expect(p, now)
			urgent = urgent || !p.blocked || p.train > 0 || p.u.scanAt < s.sleepTo
		}
	}
	s.fresh = s.fresh[:0]
	if urgent {
		s.signalLocked()
	}
	dead := s.exhume()
	s.mu.Unlock()
	s.release(dead)
}

func (s *Scheduler) enqueueControl(b *packet.Buf) {
	s.control.push(b)
	st := &s.lanes[packet.Critical]
	st.depth++
	st.bytes += b.N
	if s.control.n > s.cfg.Critical {
		old := s.control.pop()
		st.depth--
		st.bytes -= old.N
		s.bury(old, Overflow)
	}
}

// push puts b at the end of its queue in p.
func (s *Scheduler) push(p *Pipe, c int, b *packet.Buf) {
	st := &s.lanes[b.Lane]
	st.depth++
	st.bytes += b.N
	switch c {
	case int(packet.Bulk):
		if p.n[c] == 0 {
			p.fq = s.idle.queues(p, b.Queued)
			p.served = b.Queued
		}
		p.fq.push(b)
	default:
		p.queues[c].push(b)
	}
	p.bytes[c] += b.N
	p.n[c]++
	u := p.u
	if c == int(packet.Critical) {
		if s.nCrit++; p.n[c] == 1 {
			s.critical.link(p)
		}
		return
	}
	u.n[c]++
	if p.n[c] > 1 {
		return
	}
	if p.waiting++; p.waiting == 1 {
		u.waits(p)
		if !p.fresh {
			p.fresh = true
			s.fresh = append(s.fresh, p)
		}
	} else if !p.blocked {
		u.rings[c].link(p)
	}
}

// gone accounts for b, which was just taken out of its queue in p.
func (s *Scheduler) gone(p *Pipe, c int, b *packet.Buf) {
	st := &s.lanes[b.Lane]
	st.depth--
	st.bytes -= b.N
	p.bytes[c] -= b.N
	p.n[c]--
	u := p.u
	if c == int(packet.Critical) {
		if s.nCrit--; p.n[c] == 0 {
			s.critical.unlink(p)
		}
		return
	}
	u.n[c]--
	if c == int(packet.Bulk) {
		p.fq.bytes[flowOf(b)] -= flowCost(b)
	}
	if p.n[c] > 0 {
		return
	}
	if c == int(packet.Bulk) {
		s.idle.push(p, b.Queued)
	}
	u.rings[c].unlink(p)
	if p.waiting--; p.waiting == 0 {
		u.rests(p)
	}
}

// bury counts b, which is in no queue any more, as dropped.
func (s *Scheduler) bury(b *packet.Buf, why Drop) {
	s.left(b)
	s.lanes[b.Lane].drops[why]++
	s.dead[why].push(b)
	s.anyDead = true
}

func (s *Scheduler) left(b *packet.Buf) {
	if s.cfg.Flows != nil {
		s.cfg.Flows.Left(b.FlowHash, b.Lane)
	}
}

// graves are the dropped packets that are to be released outside the lock.
type graves [NumDrops]list

func (s *Scheduler) exhume() (dead *graves) {
	if !s.anyDead {
		return nil
	}
	dead = gravePool.Get().(*graves)
	*dead, s.dead = s.dead, graves{}
	s.anyDead = false
	return dead
}

var gravePool = sync.Pool{New: func() any { return new(graves) }}

func (s *Scheduler) release(dead *graves) {
	if dead == nil {
		return
	}
	for why := range dead {
		for b := dead[why].pop(); b != nil; b = dead[why].pop() {
			if s.cfg.OnDrop != nil {
				s.cfg.OnDrop(b, Drop(why))
			}
			b.Release()
		}
	}
	*dead = graves{}
	gravePool.Put(dead)
}

// Close drops what waits and ends Wait. Idempotent.
func (s *Scheduler) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	for b := s.control.pop(); b != nil; b = s.control.pop() {
		s.lanes[packet.Critical].depth--
		s.lanes[packet.Critical].bytes -= b.N
		s.bury(b, Closed)
	}
	for s.critical.head != nil {
		s.empty(s.critical.head)
	}
	for _, u := range s.uplinks {
		for u.waiting.head != nil {
			s.empty(u.waiting.head)
		}
	}
	s.trains = nil
	dead := s.exhume()
	s.mu.Unlock()
	s.release(dead)
}

// empty drops all that waits in p.
func (s *Scheduler) empty(p *Pipe) {
	for c := range numClasses {
		for p.n[c] > 0 {
			l := &p.queues[c]
			if c == int(packet.Bulk) {
				l = &p.fq.fattest().list
			}
			b := l.pop()
			s.gone(p, c, b)
			s.bury(b, Closed)
		}
	}
}

// Stats returns the counters of all lanes, of one instant.
func (s *Scheduler) Stats() (out [packet.NumLanes]Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for l := range out {
		st := &s.lanes[l]
		out[l] = Stats{
			Enqueued: st.enqueued, Dequeued: st.dequeued, Depth: st.depth, Bytes: st.bytes,
			Drops: st.drops, Marked: st.marked, Demoted: st.demoted,
			SojournNs: st.wait.mean, SojournMaxNs: st.wait.most(now),
		}
	}
	return out
}
