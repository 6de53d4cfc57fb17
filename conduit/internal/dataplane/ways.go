// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/report"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// Path is one way to a peer.
type Path struct {
	// Bind is the index of the local socket.
	Bind   int
	Remote netip.AddrPort
}

// Ways are the paths that a peer's packets leave on.
type Ways struct {
	// Critical and Telemetry packets leave on all of theirs, byte-identical.
	Critical, Telemetry []Path
	// Bulk packets leave on one of them, the same for all packets of a flow.
	Bulk []Path
	// Since is the time on the clock of Now from which on a path that is new in
	// Critical has missed packets: those of the last second that were sealed since
	// are sent again on it, before anything newer. 0 means all of them.
	Since int64
	// MTU is the largest datagram, in bytes of UDP payload, that all of these paths
	// carry; 0 means unknown. Inner packets that would not fit are refused with
	// ICMP or fragmented, and TCP is told to send smaller ones.
	MTU int
}

// way is a path with what a packet needs of it.
type way struct {
	Path
	stat *pathStat // nil where the path is not tracked
	seed uint64
	over int        // bytes of IP and UDP headers
	free *lane.Pipe // of the uplink, without pace; nil where the bind is gone
}

// wayset is an immutable Ways. seen is set by the sealing goroutine.
type wayset struct {
	lanes [packet.NumLanes][]way
	since int64
	mtu   int
	seen  atomic.Bool
}

var pathSeed = maphash.MakeSeed()

func (d *Dataplane) resolveLocked(p *Peer, paths []Path) []way {
	out := make([]way, 0, len(paths))
	for _, path := range paths {
		if !slices.ContainsFunc(out, func(w way) bool { return w.Path == path }) {
			out = append(out, d.wayLocked(p, path))
		}
	}
	return out
}

// wayLocked makes a way of a path, which gets a pipe if it has none.
func (d *Dataplane) wayLocked(p *Peer, path Path) way {
	w := way{path, p.statOf(path), maphash.Comparable(pathSeed, path), overIP(path.Remote.Addr()), nil}
	if l := linkOf(d.list(), path.Bind); l != nil {
		w.free = l.up.free
		if w.stat != nil {
			d.pace(w.stat, l)
		}
	}
	return w
}

// overIP is what IP and UDP add to a datagram. What IPv6 would add by extensions
// nobody sends.
func overIP(a netip.Addr) int {
	if a.Is4() {
		return 28
	}
	return 48
}

// pace gives a path the pipe that its packets wait in.
func (d *Dataplane) pace(st *pathStat, l *link) {
	if st.pipe.Load() != nil {
		return
	}
	strategy := congestion.NewNull()
	if d.cfg.Pacing != nil {
		strategy = d.cfg.Pacing(st.peer, st.path)
	}
	_, learns := strategy.(congestion.Learner)
	st.learns.Store(learns)
	st.pipe.Store(l.up.lanes.AddPipe(strategy, overIP(st.path.Remote.Addr())+wire.Overhead))
}

// pipe returns where a packet of a lane waits; nil where it has no way.
func (p *Peer) pipe(l packet.Lane, flow uint32) *lane.Pipe {
	set := p.ways.Load()
	if set == nil {
		return nil
	}
	ways := set.choose(l, flow)
	if len(ways) == 0 {
		return nil
	}
	return ways[0].pipe()
}

func (w *way) pipe() *lane.Pipe {
	if w.stat != nil && !w.stat.unheard() {
		if pipe := w.stat.pipe.Load(); pipe != nil {
			return pipe
		}
	}
	return w.free
}

// SetWays changes the paths on which p's packets leave; nil means that there is no
// way. Safe for concurrent use. w is copied.
func (d *Dataplane) SetWays(p *Peer, w *Ways) {
	if w == nil {
		w = new(Ways)
	}
	set := &wayset{since: w.Since, mtu: w.MTU}
	p.mu.Lock()
	for l, paths := range [packet.NumLanes][]Path{w.Critical, w.Telemetry, w.Bulk} {
		set.lanes[l] = d.resolveLocked(p, paths)
	}
	// What was set before may never have been used: a path that it added has missed
	// just as much.
	if old := p.ways.Load(); old != nil && !old.seen.Load() {
		set.since = min(set.since, old.since)
	}
	p.ways.Store(set)
	p.mu.Unlock()
	d.enqueueRaw(nil, &kickDest{p})
}

// Ways returns the paths in use, or nil where none were ever set.
func (p *Peer) Ways() *Ways {
	set := p.ways.Load()
	if set == nil {
		return nil
	}
	w := &Ways{Since: set.since, MTU: set.mtu}
	for l, out := range [packet.NumLanes]*[]Path{&w.Critical, &w.Telemetry, &w.Bulk} {
		for i := range set.lanes[l] {
			*out = append(*out, set.lanes[l][i].Path)
		}
	}
	return w
}

// choose returns the paths for one packet of a lane.
func (s *wayset) choose(l packet.Lane, flow uint32) []way {
	ways := s.lanes[l]
	if l != packet.Bulk || len(ways) < 2 {
		return ways
	}
	// The highest of the flow's draws wins (rendezvous hashing, Thaler and
	// Ravishankar 1998): a path that comes or goes moves no flow between others.
	best, top := 0, uint64(0)
	for i := range ways {
		if h := mix(ways[i].seed ^ uint64(flow)*0x9e3779b97f4a7c15); h >= top {
			best, top = i, h
		}
	}
	return ways[best : best+1]
}

// mix is the finalizer of MurmurHash3.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// unheard reports whether the path's pace would have to be learnt from reports that
// the peer does not send. It is not paced then.
func (st *pathStat) unheard() bool { return st.learns.Load() && st.peer.mute.Load() }

// PathCounters are what went over one path: datagrams and their bytes, whatever
// their type. Only what authenticated counts as received, so bonded copies that
// came second do not.
type PathCounters struct {
	Path
	// LastRecv is when the newest authenticated packet came, on the clock of Now; 0
	// means never.
	LastRecv                               int64
	RxPackets, RxBytes, TxPackets, TxBytes uint64
	// RxCopies are packets that the window had seen before. They did not
	// authenticate; somebody who replays packets can make this grow.
	RxCopies uint64
}

// Pacing is how a path is paced.
type Pacing struct {
	lane.PipeState
	// Copies is how often a Critical packet leaves on it, where it is the only path.
	Copies int
}

// Pacing tells how a path is paced; false where it was never used. Safe for
// concurrent use.
func (p *Peer) Pacing(path Path) (Pacing, bool) {
	st := p.statOf(path)
	if st == nil {
		return Pacing{}, false
	}
	pipe := st.pipe.Load()
	if pipe == nil || st.unheard() {
		return Pacing{}, false
	}
	return Pacing{pipe.State(), int(max(st.copies.Load(), 1))}, true
}

type pathStat struct {
	peer                                             *Peer
	path                                             Path
	lastRecv                                         stamp
	rxPackets, rxBytes, txPackets, txBytes, rxCopies atomic.Uint64

	pipe   atomic.Pointer[lane.Pipe] // nil until the path is a way
	learns atomic.Bool               // its strategy is a Learner
	// copies is how often a Critical packet leaves on the path where it is the only
	// one: 1, and more where much is lost; 0 means 1.
	copies atomic.Int32
	calm   stamp // since when it loses less than its copies are for

	// What is told the peer of what came on the path; nil until data came.
	receiver atomic.Pointer[report.Receiver]
	due      atomic.Int64 // of the next report; noReport without any
	listed   bool         // guarded by reports.mu
}

// Track sets which paths of p get counters of their own; those that stay keep
// theirs. A packet that authenticates on another path is an EventSource. Safe for
// concurrent use.
func (d *Dataplane) Track(p *Peer, known []Path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := make([]*pathStat, 0, len(known))
	for _, path := range known {
		st := p.statOf(path)
		if st == nil {
			st = &pathStat{peer: p, path: path}
			st.due.Store(noReport)
		}
		if !slices.Contains(stats, st) {
			stats = append(stats, st)
		}
	}
	before := p.tracked.Swap(&tracked{stats})
	if before != nil {
		for _, st := range before.stats {
			if pipe := st.pipe.Load(); pipe != nil && !slices.Contains(stats, st) {
				defer pipe.Close() // after the ways know no more of it
			}
		}
	}
	old := p.ways.Load()
	if old == nil {
		return
	}
	set := &wayset{since: old.since, mtu: old.mtu}
	for l := range old.lanes {
		set.lanes[l] = slices.Clone(old.lanes[l])
		for i := range set.lanes[l] {
			w := &set.lanes[l][i]
			*w = d.wayLocked(p, w.Path)
		}
	}
	set.seen.Store(old.seen.Load())
	p.ways.Store(set)
}

// tracked is an immutable set.
type tracked struct{ stats []*pathStat }

func (t *tracked) find(path Path) *pathStat {
	for _, st := range t.stats {
		if st.path == path {
			return st
		}
	}
	return nil
}

func (p *Peer) statOf(path Path) *pathStat {
	if t := p.tracked.Load(); t != nil {
		return t.find(path)
	}
	return nil
}

// Paths returns the counters of the tracked paths. Safe for concurrent use.
func (p *Peer) Paths() []PathCounters {
	t := p.tracked.Load()
	if t == nil {
		return nil
	}
	out := make([]PathCounters, len(t.stats))
	for i, st := range t.stats {
		out[i] = PathCounters{
			st.path, st.lastRecv.Load(), st.rxPackets.Load(), st.rxBytes.Load(),
			st.txPackets.Load(), st.txBytes.Load(), st.rxCopies.Load(),
		}
	}
	return out
}
