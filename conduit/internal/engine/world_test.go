// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"crypto/fips140"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// world is a hub and an underlay in memory, and the nodes on them: all that a node
// has below conduit.Node, in fake time.
type world struct {
	t     *testing.T
	ca    *testCA
	delay time.Duration // of each datagram, one way

	mu        sync.Mutex // guards the rest
	binds     map[netip.AddrPort]*memBind
	udp       func(from, to netip.AddrPort, b []byte) bool // what goes through; nil: all
	signal    func(from, to identity.PeerID, body []byte) bool
	hubDown   bool
	noStreams bool
	peers     []registry.Peer
	online    map[identity.PeerID]*node
	streams   map[identity.PeerID]*memStream
	document  *policy.Document
	version   uint64
	instance  uint64
	signals   int
	lists     []Denial
	nodes     []*node
}

// inWorld runs f with n running nodes that know each other, in fake time.
func inWorld(t *testing.T, n int, f func(t *testing.T, w *world)) {
	t.Helper()
	if fips140.Enabled() {
		// The DRBG seeds itself from the jitter of the clock, which stands still in a
		// bubble, and panics. The tests of package conduit cover FIPS mode.
		t.Skip("FIPS mode has no entropy in fake time")
	}
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, ca: newTestCA(t), delay: 2 * time.Millisecond, binds: map[netip.AddrPort]*memBind{},
			online: map[identity.PeerID]*node{}, streams: map[identity.PeerID]*memStream{}, document: policy.Default(), version: 1,
		}
		for i := range n {
			w.nodes = append(w.nodes, newNode(w, i))
		}
		for _, n := range w.nodes {
			n.start()
		}
		synctest.Wait()
		defer func() {
			for _, n := range w.nodes {
				n.stop()
			}
		}()
		f(t, w)
	})
}

// pass lets d go by, and what comes of it happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// until waits until f holds, for at most limit, and returns how long it took.
func (w *world) until(limit time.Duration, what string, f func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for synctest.Wait(); !f(); pass(5 * time.Millisecond) {
		if time.Since(start) > limit {
			for _, n := range w.nodes {
				if n.running() {
					w.t.Logf("%s: %+v", n.name, n.status())
				}
			}
			w.t.Fatalf("not within %v: %s", limit, what)
		}
	}
	return time.Since(start)
}

// setUDP changes which datagrams get through.
func (w *world) setUDP(f func(from, to netip.AddrPort, b []byte) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.udp = f
}

func noUDP(netip.AddrPort, netip.AddrPort, []byte) bool { return false }

// cutUDP lets no datagram pass between two nodes.
func (w *world) cutUDP(i, j int) {
	a, b := w.nodes[i].underlay(), w.nodes[j].underlay()
	w.setUDP(func(from, to netip.AddrPort, _ []byte) bool {
		x, y := from.Addr(), to.Addr()
		return (x != a || y != b) && (x != b || y != a)
	})
}

// setHub takes the hub down, relay streams with it, or lets it come back.
func (w *world) setHub(up bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hubDown = !up
	for _, n := range w.online {
		if up {
			w.welcomeLocked(n)
		} else {
			n.engine.HubState(false)
		}
	}
	if !up {
		w.breakLocked()
	}
}

// setStreams lets the hub relay packets, or not.
func (w *world) setStreams(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noStreams = !on
	if !on {
		w.breakLocked()
	}
}

func (w *world) breakLocked() {
	for id, s := range w.streams {
		delete(w.streams, id)
		close(s.lost)
	}
}

func (w *world) welcomeLocked(n *node) {
	w.instance++
	n.engine.Denied(w.lists, true)
	n.engine.PeersSynced(slices.Clone(w.peers))
	n.engine.Policy(w.version, w.document.Marshal())
	n.engine.HubState(true)
	for id, o := range w.online {
		if o != n {
			n.engine.Presence(id, true, o.instance)
			o.engine.Presence(n.id(), true, n.instance)
		}
	}
}

// join makes a node that just started known to the hub.
func (w *world) join(n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.instance++
	n.instance = w.instance
	w.online[n.id()] = n
	if !w.hubDown {
		w.welcomeLocked(n)
	}
}

func (w *world) leave(n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.online, n.id())
	for _, o := range w.online {
		if !w.hubDown {
			o.engine.Presence(n.id(), false, 0)
		}
	}
}

var errHubDown = errors.New("hub is down")

// deliver is the hub's signalling.
func (w *world) deliver(from, to identity.PeerID, body []byte) error {
	body = bytes.Clone(body)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hubDown {
		return errHubDown
	}
	w.signals++
	if w.signal != nil && !w.signal(from, to, body) {
		return nil
	}
	if o := w.online[to]; o != nil {
		o.engine.Signaled(from, body)
	} else if s := w.online[from]; s != nil {
		s.engine.Undeliverable(to, "offline")
	}
	return nil
}

// memStream is a node's relay stream to the hub.
type memStream struct {
	in   chan relayed
	lost chan struct{}
}

type relayed struct {
	from   identity.PeerID
	packet []byte
}

// memHub is what relay.HubBind sees of the hub.
type memHub struct {
	w  *world
	id identity.PeerID
}

func (h memHub) RelayPackets(ctx context.Context, in func(identity.PeerID, []byte), _ func(identity.PeerID)) error {
	s := &memStream{in: make(chan relayed, 1024), lost: make(chan struct{})}
	h.w.mu.Lock()
	down := h.w.hubDown || h.w.noStreams
	if !down {
		h.w.streams[h.id] = s
	}
	h.w.mu.Unlock()
	if down {
		time.Sleep(100 * time.Millisecond)
		return errHubDown
	}
	defer func() {
		h.w.mu.Lock()
		defer h.w.mu.Unlock()
		if h.w.streams[h.id] == s {
			delete(h.w.streams, h.id)
		}
	}()
	in(identity.PeerID{}, nil)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.lost:
			return errHubDown
		case p := <-s.in:
			in(p.from, p.packet)
		}
	}
}

func (h memHub) SendPacket(to identity.PeerID, _ uint8, b []byte) bool {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.w.streams[h.id] == nil {
		return false
	}
	if s := h.w.streams[to]; s != nil {
		select {
		case s.in <- relayed{h.id, bytes.Clone(b)}:
		default:
		}
	}
	return true
}

// memBind is a socket on the world's underlay.
type memBind struct {
	w    *world
	addr netip.AddrPort
	in   chan datagram
	done chan struct{}
	once sync.Once
}

type datagram struct {
	b    []byte
	from netip.AddrPort
	due  time.Time
}

func (w *world) listen(a netip.AddrPort) *memBind {
	b := &memBind{w: w, addr: a, in: make(chan datagram, 4096), done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.binds[a] = b
	return b
}

func (b *memBind) LocalAddr() netip.AddrPort { return b.addr }
func (b *memBind) Sockets() int              { return 1 }
func (b *memBind) BatchSize() int            { return 8 }
func (b *memBind) RecvBufSize() int          { return 2048 }
func (b *memBind) SetSendWait(time.Duration) {}

func (b *memBind) Receive(_ int, msgs []transport.Message) (int, error) {
	select {
	case d := <-b.in:
		time.Sleep(time.Until(d.due))
		msgs[0].N, msgs[0].Segment, msgs[0].Addr = copy(msgs[0].Buf, d.b), 0, d.from
		return 1, nil
	case <-b.done:
		return 0, net.ErrClosed
	}
}

func (b *memBind) Send(_ int, msgs []transport.Message) (int, error) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	select {
	case <-b.done:
		return 0, net.ErrClosed
	default:
	}
	for _, m := range msgs {
		to := b.w.binds[m.Addr]
		if to == nil || b.w.binds[b.addr] != b || b.w.udp != nil && !b.w.udp(b.addr, m.Addr, m.Buf) {
			continue
		}
		select {
		case to.in <- datagram{bytes.Clone(m.Buf), b.addr, time.Now().Add(b.w.delay)}:
		default:
		}
	}
	return len(msgs), nil
}

func (b *memBind) Close() error {
	b.once.Do(func() { close(b.done) })
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	if b.w.binds[b.addr] == b {
		delete(b.w.binds, b.addr)
	}
	return nil
}

// reserved counts the receiver indexes that a node holds.
func (n *node) reserved() int {
	return reflect.ValueOf(n.plane).Elem().FieldByName("sessions").FieldByName("reserved").Len()
}

// carriersOf names the kinds of the paths that answer and carry Critical.
func carriersOf(st PeerStatus) (kinds []path.Kind) {
	for _, p := range st.Paths {
		if p.Lanes[packet.Critical] && p.State == path.StateValid {
			kinds = append(kinds, p.Kind)
		}
	}
	return kinds
}
