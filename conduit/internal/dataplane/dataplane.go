// SPDX-License-Identifier: Apache-2.0

// Package dataplane moves packets between the TUN device and the UDP sockets.
//
// Outbound, one packet at a time (outbound.go):
//
//  1. tun.Read   one goroutine per queue, a batch at a time
//  2. classify   same goroutine: the lane
//  3. route      same goroutine, immutable snapshot of the mesh's addresses
//  4. policy     same goroutine: the verdict, the budget, and what demotes
//  5. lane       one lock per batch; the reader never waits for the network
//  6. pace       one goroutine for all: a packet leaves its lane as its path allows
//  7. seal       same goroutine, then
//  8. transport  same goroutine, a batch at a time
//
// Inbound (inbound.go):
//
//  1. transport  one goroutine per socket, a batch at a time
//  2. demux      first byte: STUN goes to ICE, 0x80 stays
//  3. open       session by receiver index, replay window, AEAD, in place
//  4. policy     source address binding, then the verdict
//  5. tun.Write  same goroutine, a batch at a time
//
// Which session and which paths a peer uses is decided by package engine, which
// stores its choice in atomic pointers read here. A packet is sealed once and sent
// byte-identical on all paths of its lane (ways.go); what is sent on a path that
// comes to Critical's begins with what the path has missed (ring.go). What came on a
// path is told its sender (reports.go), whose strategy paces by it.
package dataplane

import (
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/classify"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/route"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
)

// Config is what a Dataplane is made of. Device, Policy, Local, STUN, Want, Control
// and Logger are required. Hooks run on the packet path's goroutines: they must not
// block.
type Config struct {
	Device tun.Device
	// Binds are the first ones that AddBind takes.
	Binds  []transport.Bind
	Policy *policy.Engine
	// Local are our virtual addresses.
	Local []netip.Addr
	// STUN takes datagrams for ICE; it must not keep b.
	STUN func(bind int, b []byte, from netip.AddrPort)
	// Want asks for a session with a peer that packets wait for.
	Want func(*Peer)
	// Ask asks who has an address inside Mesh that no route leads to; Resolved is the
	// answer. Packets wait for it. Without Ask they are dropped.
	Ask  func(netip.Addr)
	Mesh []netip.Prefix
	// Control takes events of sessions. Body is its to keep.
	Control func(Control)
	// Pacing returns the strategy that paces a path; nil means congestion.NewNull.
	Pacing func(*Peer, Path) congestion.Strategy
	// CriticalShare is the share of a path's rate that Critical may have beside the
	// rest; zero means lane.DefaultCriticalShare.
	CriticalShare float64
	// Handshake takes whole HANDSHAKE datagrams, at most 20,000 a second, on the
	// reader's goroutine: it must tell cheaply what is a stranger's, and not keep b. Nil: they are dropped.
	Handshake func(from Path, b []byte)
	// Forward returns the peer that a packet from a peer goes on to through us, or
	// nil where we do not relay between the two. Nil: we relay nothing.
	Forward func(from *Peer, to identity.PeerID) *Peer
	// Relayed tells which path a packet from a peer came on that relay has passed
	// on. Nil or false: it is dropped.
	Relayed func(relay *Peer, from identity.PeerID) (Path, bool)
	// Refused is told of datagrams that the system did not take, at most 100 a
	// second: the link is down, or they are too large. May be nil.
	Refused func(to Path, why transport.Refusal)
	// Classify has the rules by which packets get their lanes.
	Classify classify.Config
	Logger   *slog.Logger
}

// Dataplane is the running packet path.
type Dataplane struct {
	cfg      Config // set once in New
	local    map[netip.Addr]struct{}
	lanes    *lane.Scheduler
	urgent   *lane.Uplink // of the peers' pipes for Critical, which no path owns
	classify *classify.Classifier
	routes   route.Table[*Peer]
	sessions sessionTable
	unknown  unknown
	echoes   echoes
	start    time.Time

	stats stats
	big   [bigSlots]limiter // by flow: ICMP about packets that do not fit

	handshakes, refusals limiter

	links    atomic.Pointer[[]*link] // by index; nil where it is gone
	alive    atomic.Int32            // how many there are
	sweeping atomic.Bool             // sweeper runs
	sweeper  *time.Timer
	reports  reports

	done chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu              sync.Mutex // guards the rest, and the changes of links
	started, closed bool
	uplinks         []*uplink
	rates           map[uint8]float64 // of uplinks, by number
}

// New assembles a packet path. Nothing runs before Start.
func New(cfg Config) *Dataplane {
	d := &Dataplane{
		cfg: cfg, classify: classify.New(cfg.Classify), start: time.Now(),
		local: make(map[netip.Addr]struct{}), done: make(chan struct{}),
	}
	for _, a := range cfg.Local {
		d.local[a] = struct{}{}
	}
	d.lanes = lane.New(lane.Config{Now: d.Now, CriticalShare: cfg.CriticalShare, Flows: d.classify, OnDrop: func(b *packet.Buf, why lane.Drop) {
		if why == lane.Closed { // the node ends
			return
		}
		switch x := b.Dest.(type) {
		case *Peer:
			x.txDropped.Add(1)
		case *sweepDest:
			d.sweeping.Store(false)
		case *flushDest:
			close(x.done)
		}
		d.stats.tx[txOfDrop[why]].Add(1)
	}})
	d.urgent = d.lanes.AddUplink()
	d.reports.init()
	d.sweeper = time.AfterFunc(time.Hour, func() { d.enqueueRaw(nil, &sweepDest{}) })
	d.sweeper.Stop()
	for _, b := range cfg.Binds {
		d.AddBind(b, 0)
	}
	return d
}

// Start starts the goroutines.
func (d *Dataplane) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.started = true
	for q := range d.cfg.Device.Queues() {
		d.wg.Go(func() { d.readTun(q) })
	}
	d.wg.Go(d.drainLanes)
	d.wg.Go(d.sendReports)
	for _, l := range d.list() {
		if l != nil {
			d.serve(l)
		}
	}
}

// Close stops the goroutines and closes device and binds. What still waits in
// the lanes is dropped. Idempotent.
func (d *Dataplane) Close() error {
	d.once.Do(func() {
		close(d.done)
		_ = d.cfg.Device.Close() // no new plaintext
		d.sweeper.Stop()
		d.lanes.Close() // the sender ends
		d.mu.Lock()
		d.closed = true
		for _, l := range d.list() {
			if l != nil {
				d.retire(l)
			}
		}
		d.links.Store(nil)
		d.alive.Store(0)
		d.mu.Unlock()
	})
	d.wg.Wait()
	d.unknown.release()
	return nil
}

// Now is the packet path's clock: nanoseconds since New, monotonic.
func (d *Dataplane) Now() int64 { return int64(time.Since(d.start)) }

// IsLocal reports whether a is one of our own virtual addresses.
func (d *Dataplane) IsLocal(a netip.Addr) bool {
	_, ok := d.local[a]
	return ok
}

// SetRoutes replaces the table of virtual addresses.
func (d *Dataplane) SetRoutes(m map[netip.Addr]*Peer) { d.routes.Set(m) }

// monotonic stamps of sessions use Now; 0 means never.
type stamp = atomic.Int64
