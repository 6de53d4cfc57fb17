// SPDX-License-Identifier: Apache-2.0

package path

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// The simulation: two nodes, each with a Set, whose sockets are connected by
// links. Time is virtual, chance comes from a seed.

const (
	pktProbe = iota
	pktAck
	pktChallenge
	pktResponse
	pktData
)

type pkt struct {
	kind      int
	probe     wire.Probe
	ack       wire.ProbeAck
	challenge wire.PathChallenge
	size      int
	serial    int // of data
}

// sock is a socket of a node: what it sends comes from addr, as others see it.
type sock struct {
	addr   netip.AddrPort
	uplink uint8
	relay  bool // peers are reached by their virtual address
	// restrict: only who was written to gets through. symmetric: another port for
	// each destination.
	restrict, symmetric bool
	wrote               map[netip.AddrPort]time.Time
}

type link struct {
	delay time.Duration
	jit   time.Duration
	loss  float64
	mtu   int // 0: any
	down  bool
	block bool // silent
}

type node struct {
	w     *world
	name  string
	set   *Set
	socks map[int]*sock
	ways  *Ways
	// waysAt are the times at which ways changed.
	changes []change
	probes  map[ID][]time.Time
	sent    map[ID]int // data
	got     map[int]time.Time
	wild    []ID // challenged
	peer    *node
	last    map[ID]time.Time // what the packet path heard
	known   map[ID]bool
	backlog []kept
}

type kept struct {
	at     time.Time
	serial int
}

type change struct {
	at   time.Time
	ways *Ways
}

type event struct {
	at time.Time
	n  int
	do func()
}

type world struct {
	t      *testing.T
	now    time.Time
	events []event
	n      int
	rnd    *rand.Rand
	nodes  []*node
	// links are directed: from address to address; the default is def.
	links  map[string]*link
	def    link
	logs   bool
	serial int
}

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, now: start, rnd: rand.New(rand.NewPCG(seed, 7)), links: map[string]*link{}, def: link{delay: 10 * time.Millisecond}}
	for _, name := range []string{"a", "b"} {
		w.nodes = append(w.nodes, &node{
			w: w, name: name, set: New(Config{}), socks: map[int]*sock{}, probes: map[ID][]time.Time{},
			sent: map[ID]int{}, got: map[int]time.Time{}, last: map[ID]time.Time{}, known: map[ID]bool{},
		})
	}
	w.nodes[0].peer, w.nodes[1].peer = w.nodes[1], w.nodes[0]
	return w
}

func (w *world) a() *node { return w.nodes[0] }
func (w *world) b() *node { return w.nodes[1] }

func (w *world) at(d time.Duration, do func()) {
	w.n++
	e := event{w.now.Add(d), w.n, do}
	// The next one is the last.
	i, _ := slices.BinarySearchFunc(w.events, e, func(a, b event) int { return cmp.Or(b.at.Compare(a.at), cmp.Compare(b.n, a.n)) })
	w.events = slices.Insert(w.events, i, e)
}

// link returns the link between two sockets, one way; made of the default.
func (w *world) link(from, to netip.AddrPort) *link {
	k := from.String() + ">" + to.String()
	if w.links[k] == nil {
		l := w.def
		w.links[k] = &l
	}
	return w.links[k]
}

// both applies f to both directions.
func (w *world) both(a, b netip.AddrPort, f func(l *link)) {
	f(w.link(a, b))
	f(w.link(b, a))
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for steps := 0; ; steps++ {
		if steps > 2_000_000 {
			w.t.Fatal("the simulation does not come to an end")
		}
		var next time.Time
		for _, n := range w.nodes {
			if at := n.set.NextTick(); !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		ev := len(w.events) - 1
		if ev >= 0 && (next.IsZero() || !w.events[ev].at.After(next)) {
			e := w.events[ev]
			if e.at.After(end) {
				break
			}
			w.events = w.events[:ev]
			w.now = maxTime(w.now, e.at)
			e.do()
		} else {
			if next.IsZero() || next.After(end) {
				break
			}
			w.now = maxTime(w.now, next)
		}
		for _, n := range w.nodes {
			n.pump()
		}
	}
	w.now = end
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pump does what the Set wants.
func (n *node) pump() {
	n.set.Tick(n.w.now)
	for out := n.set.Ready(); len(out) > 0; out = n.set.Ready() {
		for _, o := range out {
			switch o.Kind {
			case SendProbe:
				n.probes[o.ID] = append(n.probes[o.ID], n.w.now)
				n.send(o.ID, pkt{kind: pktProbe, probe: o.Probe, size: max(o.Size, 48)})
			case SendChallenge:
				n.wild = append(n.wild, o.ID)
				n.send(o.ID, pkt{kind: pktChallenge, challenge: o.Challenge, size: 40})
			case UseWays:
				n.ways = o.Ways
				n.changes = append(n.changes, change{n.w.now, o.Ways})
				if n.w.logs {
					n.w.t.Logf("%8s %s: %s", n.w.now.Sub(start), n.name, waysString(o.Ways))
				}
				if !o.Ways.Since.IsZero() {
					for _, k := range n.backlog {
						if !k.at.Before(o.Ways.Since) {
							n.critical(k.serial)
						}
					}
				}
			}
		}
	}
	if at := n.set.NextTick(); !at.IsZero() && !at.After(n.w.now) {
		n.w.t.Fatalf("%s: busy loop at %s", n.name, n.w.now.Sub(start))
	}
}

func waysString(w *Ways) string {
	return fmt.Sprintf("critical %v telemetry %v bulk %v since %s mtu %d", w.Critical, w.Telemetry, w.Bulk, w.Since.Format("05.000"), w.MTU)
}

func (n *node) critical(serial int) {
	for _, id := range n.ways.Critical {
		n.sent[id]++
		n.send(id, pkt{kind: pktData, size: 200, serial: serial})
	}
}

// data sends one Critical packet.
func (n *node) data() {
	n.w.serial++
	n.backlog = append(n.backlog, kept{n.w.now, n.w.serial})
	if n.ways != nil {
		n.critical(n.w.serial)
	}
}

// stream sends Critical packets for d, one in gap.
func (n *node) stream(d, gap time.Duration) {
	for t := time.Duration(0); t < d; t += gap {
		n.w.at(t, n.data)
	}
}

// outside is the address from which a socket's packets to a destination come.
func (s *sock) outside(to netip.AddrPort) netip.AddrPort {
	if !s.symmetric {
		return s.addr
	}
	if _, ok := s.wrote[to]; !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(s.addr.Addr(), 5000+uint16(to.Addr().As4()[3])+to.Port())
}

// send carries a packet over the link, if there is one.
func (n *node) send(id ID, p pkt) {
	s := n.socks[id.Bind]
	if s == nil {
		return
	}
	if s.wrote == nil {
		s.wrote = map[netip.AddrPort]time.Time{}
	}
	s.wrote[id.Remote] = n.w.now
	for bind, o := range n.peer.socks {
		if o.relay != s.relay || o.outside(s.outside(id.Remote)) != id.Remote && !s.relay {
			continue
		}
		if at, ok := o.wrote[s.outside(id.Remote)]; o.restrict && (!ok || n.w.now.Sub(at) > 30*time.Second) {
			return
		}
		l := n.w.link(s.addr, o.addr)
		if l.down {
			n.set.Lost(id, n.w.now)
			return
		}
		if l.block || n.w.rnd.Float64() < l.loss || l.mtu != 0 && p.size > l.mtu {
			return
		}
		from := ID{bind, s.outside(id.Remote)}
		d := l.delay
		if l.jit > 0 {
			d += time.Duration(n.w.rnd.Int64N(int64(l.jit)))
		}
		n.w.at(d, func() {
			if n.peer.socks[bind] == o {
				n.peer.receive(from, p)
			}
		})
		return
	}
}

// receive is the packet path and the engine.
func (n *node) receive(from ID, p pkt) {
	now := n.w.now
	switch p.kind {
	case pktProbe:
		n.send(from, pkt{kind: pktAck, ack: wire.ProbeAck{Probe: p.probe, Size: uint16(p.size)}, size: 56})
		n.set.Heard(from, now, now)
		n.set.Probed(from, p.probe, now)
	case pktAck:
		n.set.Heard(from, now, now)
		n.set.Acked(from, p.ack, now, now)
	case pktChallenge:
		n.send(from, pkt{kind: pktResponse, challenge: p.challenge, size: 40})
		n.set.Heard(from, now, now)
	case pktResponse:
		n.set.Heard(from, now, now)
		n.set.Responded(from, p.challenge, now)
	case pktData:
		if _, dup := n.got[p.serial]; !dup {
			n.got[p.serial] = now
		}
		n.set.Heard(from, now, now)
	}
}

// missing returns the data packets of the peer that did not come.
func (n *node) missing() (out []int) {
	for _, k := range n.peer.backlog {
		if _, ok := n.got[k.serial]; !ok {
			out = append(out, k.serial)
		}
	}
	return out
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// open gives a node sockets; the addresses of its sockets become candidates of
// the peer when exchange is called.
func (n *node) open(l Local, addr string) {
	n.socks[l.Bind] = &sock{addr: ap(addr), uplink: l.Uplink, relay: l.Kind == Hub}
	n.set.SetLocals(append(slices.Clone(n.set.locals), l), n.w.now)
}

func (n *node) close(bind int) {
	delete(n.socks, bind)
	n.set.SetLocals(slices.DeleteFunc(slices.Clone(n.set.locals), func(l Local) bool { return l.Bind == bind }), n.w.now)
}

func udp(bind int, uplink uint8) Local { return Local{Bind: bind, Uplink: uplink, V4: true, V6: true} }

// exchange tells each node of the other's sockets.
func (w *world) exchange() {
	for _, n := range w.nodes {
		for _, bind := range slices.Sorted(mapKeys(n.peer.socks)) {
			o := n.peer.socks[bind]
			if o.relay {
				for b, s := range n.socks {
					if s.relay {
						n.set.AddPath(ID{b, o.addr}, w.now)
					}
				}
				continue
			}
			n.set.AddRemote(o.addr, "host", w.now)
		}
	}
}

func mapKeys(m map[int]*sock) func(func(int) bool) {
	return func(yield func(int) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (w *world) demand(d Demand) {
	for _, n := range w.nodes {
		n.set.Demand(d, w.now)
	}
}

// firstChange is the first time from since on at which the ways satisfy ok.
func (n *node) firstChange(since time.Time, ok func(w *Ways) bool) (time.Duration, bool) {
	for _, c := range n.changes {
		if !c.at.Before(since) && ok(c.ways) {
			return c.at.Sub(since), true
		}
	}
	return 0, false
}

func (n *node) status(id ID) Status {
	for _, st := range n.set.Status(n.w.now) {
		if st.ID == id {
			return st
		}
	}
	return Status{ID: id, Why: "not there"}
}
