// SPDX-License-Identifier: Apache-2.0

// Package dataplane moves packets between the TUN device and the UDP sockets.
//
// Outbound, one packet at a time (outbound.go):
//
//  1. tun.Read   one goroutine per queue, a batch at a time
//  2. classify   same goroutine: the lane
//  3. route      same goroutine, immutable snapshot of the mesh's addresses
//  4. policy     same goroutine: the verdict
//  5. lane       one lock per batch; the reader never waits for the network
//  6. seal       one goroutine per uplink, when the packet leaves its lane
//  7. transport  same goroutine, a batch at a time
//
// Inbound (inbound.go):
//
//  1. transport  one goroutine per socket, a batch at a time
//  2. demux      first byte: STUN goes to ICE, 0x80 stays
//  3. open       session by receiver index, replay window, AEAD, in place
//  4. policy     source address binding, then the verdict
//  5. tun.Write  same goroutine, a batch at a time
//
// Which session and path a peer uses is decided by package engine, which stores
// its choice in atomic pointers read here.
package dataplane

import (
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/classify"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/route"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
)

// Config is what a Dataplane is made of. All fields but Ask and Mesh are required.
type Config struct {
	Device tun.Device
	Binds  []transport.Bind
	Policy *policy.Engine
	// Local are our virtual addresses.
	Local []netip.Addr
	// STUN takes datagrams for ICE; it must not block or keep b.
	STUN func(bind int, b []byte, from netip.AddrPort)
	// Want asks for a session with a peer that packets wait for.
	Want func(*Peer)
	// Ask asks who has an address inside Mesh that no route leads to; Resolved is the
	// answer. Packets wait for it. Without Ask they are dropped.
	Ask  func(netip.Addr)
	Mesh []netip.Prefix
	// Control takes sealed control packets that need a decision. body is its to
	// keep.
	Control func(Control)
	Logger  *slog.Logger
}

// Control is an authenticated control packet.
type Control struct {
	Session *Session
	Type    wire.Type
	Body    []byte
	Path    Path
	// At is when it arrived, on the clock of Now.
	At int64
}

// Dataplane is the running packet path.
type Dataplane struct {
	cfg      Config // set once in New
	local    map[netip.Addr]struct{}
	lanes    *lane.Uplink
	classify *classify.Classifier
	routes   route.Table[*Peer]
	sessions sessionTable
	unknown  unknown
	start    time.Time

	stats stats

	done chan struct{}
	once sync.Once
	wg   sync.WaitGroup
}

// New assembles a packet path. Nothing runs before Start.
func New(cfg Config) *Dataplane {
	d := &Dataplane{
		cfg: cfg, classify: classify.New(nil), start: time.Now(),
		local: make(map[netip.Addr]struct{}), done: make(chan struct{}),
	}
	for _, a := range cfg.Local {
		d.local[a] = struct{}{}
	}
	d.lanes = lane.New(lane.Config{Flows: d.classify, OnDrop: func(b *packet.Buf) {
		if p, ok := b.Dest.(*Peer); ok {
			p.txDropped.Add(1)
		}
		d.stats.tx[TxLaneOverflow].Add(1)
	}})
	return d
}

// Start starts the goroutines.
func (d *Dataplane) Start() {
	for q := range d.cfg.Device.Queues() {
		d.wg.Go(func() { d.readTun(q) })
	}
	d.wg.Go(d.drainLanes)
	for i, b := range d.cfg.Binds {
		for s := range b.Sockets() {
			d.wg.Go(func() { d.readSocket(i, s) })
		}
	}
}

// Close stops the goroutines and closes device and binds. What still waits in
// the lanes is dropped. Idempotent.
func (d *Dataplane) Close() error {
	d.once.Do(func() {
		close(d.done)
		_ = d.cfg.Device.Close() // no new plaintext
		d.lanes.Close()          // the sender ends
		for _, b := range d.cfg.Binds {
			_ = b.Close()
		}
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

// SendSTUN queues a STUN datagram as Critical. It does not block.
func (d *Dataplane) SendSTUN(bind int, b []byte, to netip.AddrPort) {
	d.enqueueRaw(b, &rawDest{Path{Bind: bind, Remote: to}})
}

// SendControl queues a control packet of a session as Critical, on the session's
// path or, with path, on that one. It does not block.
func (d *Dataplane) SendControl(s *Session, t wire.Type, body []byte, path *Path) {
	d.enqueueRaw(body, &controlDest{session: s, typ: t, path: path})
}

func (d *Dataplane) enqueueRaw(b []byte, dest any) {
	if len(b) > packet.MaxInner {
		d.stats.tx[TxTooBig].Add(1)
		return
	}
	buf := packet.Get()
	buf.N = copy(buf.Raw()[packet.Headroom:], b)
	buf.Lane, buf.Dest = packet.Critical, dest
	d.lanes.Enqueue([]*packet.Buf{buf})
}

// Flush waits until what is in the Critical lane now was handed to the kernel,
// or for limit.
func (d *Dataplane) Flush(limit time.Duration) {
	f := &flushDest{done: make(chan struct{})}
	d.enqueueRaw(nil, f)
	select {
	case <-f.done:
	case <-d.done:
	case <-time.After(limit):
	}
}

// controlDest and rawDest are destinations of packets that no application sent.
type (
	controlDest struct {
		session *Session
		typ     wire.Type
		path    *Path
	}
	rawDest struct{ path Path }
	// flushDest is closed when everything before it was sent.
	flushDest struct{ done chan struct{} }
)

// monotonic stamps of sessions use Now; 0 means never.
type stamp = atomic.Int64
