// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"sync"
	"sync/atomic"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Engine holds the policy in force on one node (PolicyEngine). All methods are
// safe for concurrent use; a packet sees either the old policy or the new one.
// Before the first Apply everything is denied.
type Engine struct {
	self  Subject // set once in NewEngine
	flows flowTable

	mu    sync.Mutex // guards the rest
	doc   *Document
	nodes []Subject
	peers map[identity.PeerID]*PeerRules
	names []string // of rules, by number; grows, never reordered
	index map[string]int32
	// denied counts by rule number.
	denied atomic.Pointer[[]*atomic.Uint64]
	epoch  uint32
}

// PeerRules is what the policy says of one peer. It stays the same pointer while
// the policy changes, so the packet path looks it up once per peer.
type PeerRules struct {
	table atomic.Pointer[peerTable]
}

// peerTable is compiled for one peer and one direction each. It is immutable.
type peerTable struct {
	epoch    uint32
	out, in  ruleSet
	outAllow bool // everything is allowed, no flow needs remembering
	inAllow  bool
}

type ruleSet struct {
	guards, allow []numbered
}

type numbered struct {
	body body
	num  int32
}

// ruleNone is the number of the default denial, ruleFlow of what an allowed flow
// lets back in.
const (
	ruleNone int32 = 0
	ruleFlow int32 = -1
)

// Verdict is the decision about a packet. Rule is the deciding rule's number.
type Verdict struct {
	Allow bool
	Rule  int32
}

// NewEngine returns the engine of the node self.
func NewEngine(self Subject) *Engine {
	e := &Engine{
		self: self, peers: map[identity.PeerID]*PeerRules{},
		names: []string{NoRule}, index: map[string]int32{NoRule: ruleNone},
	}
	e.denied.Store(&[]*atomic.Uint64{new(atomic.Uint64)})
	return e
}

// Apply puts doc into force for the given peers. doc must be valid and must not
// be changed afterwards. Flows of the old policy are judged anew.
func (e *Engine) Apply(doc *Document, peers []Subject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doc = doc
	e.compileLocked(peers)
}

// SetPeers changes who is in the mesh; names and tags are expanded anew. A peer
// that is no longer there is denied at once.
func (e *Engine) SetPeers(peers []Subject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.compileLocked(peers)
}

// Peer returns the handle of a peer, known or not.
func (e *Engine) Peer(id identity.PeerID) *PeerRules {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.peers[id]
	if p == nil {
		p = new(PeerRules)
		e.peers[id] = p
		for i := range e.nodes {
			if e.nodes[i].ID == id {
				p.table.Store(e.tableLocked(&e.nodes[i]))
			}
		}
	}
	return p
}

func (e *Engine) compileLocked(peers []Subject) {
	e.epoch++
	e.nodes = peers
	for i := range peers {
		if peers[i].ID == e.self.ID {
			e.self = peers[i] // the hub may have given us tags
		}
	}
	there := make(map[identity.PeerID]bool, len(peers))
	for i := range peers {
		there[peers[i].ID] = true
		p := e.peers[peers[i].ID]
		if p == nil {
			p = new(PeerRules)
			e.peers[peers[i].ID] = p
		}
		p.table.Store(e.tableLocked(&peers[i]))
	}
	for id, p := range e.peers {
		if !there[id] {
			p.table.Store(nil)
		}
	}
}

func (e *Engine) tableLocked(peer *Subject) *peerTable {
	if e.doc == nil {
		return nil
	}
	t := &peerTable{epoch: e.epoch}
	for _, kind := range []string{"guard", "allow"} {
		rules := e.doc.Allow
		if kind == "guard" {
			rules = e.doc.Guards
		}
		for i := range rules {
			c, err := rules[i].compile()
			if err != nil {
				continue // Validate has refused such a document
			}
			n := numbered{c.body, e.numberLocked(rules[i].name(kind, i))}
			for _, dir := range []struct {
				set      *ruleSet
				src, dst *Subject
			}{{&t.out, &e.self, peer}, {&t.in, peer, &e.self}} {
				if !c.src.matches(dir.src) || !c.dst.matches(dir.dst) {
					continue
				}
				if kind == "guard" {
					dir.set.guards = append(dir.set.guards, n)
				} else {
					dir.set.allow = append(dir.set.allow, n)
				}
			}
		}
	}
	t.outAllow, t.inAllow = t.out.everything(), t.in.everything()
	return t
}

func (s *ruleSet) everything() bool {
	if len(s.guards) > 0 {
		return false
	}
	for i := range s.allow {
		if s.allow[i].body.everything() {
			return true
		}
	}
	return false
}

func (e *Engine) numberLocked(name string) int32 {
	n, ok := e.index[name]
	if !ok {
		n = int32(len(e.names))
		e.names = append(e.names, name)
		e.index[name] = n
		grown := append(append([]*atomic.Uint64(nil), *e.denied.Load()...), new(atomic.Uint64))
		e.denied.Store(&grown)
	}
	return n
}

// Outbound decides about a packet to the peer, Inbound about one from it. lane
// is the packet's, now a monotonic clock in nanoseconds. Neither allocates.
func (e *Engine) Outbound(p *PeerRules, info *packet.Info, lane Lane, now int64) Verdict {
	return e.decide(p, info, lane, now, true)
}

// Inbound decides about a packet from the peer.
func (e *Engine) Inbound(p *PeerRules, info *packet.Info, lane Lane, now int64) Verdict {
	return e.decide(p, info, lane, now, false)
}

func (e *Engine) decide(p *PeerRules, info *packet.Info, lane Lane, now int64, outbound bool) Verdict {
	t := p.table.Load()
	if t == nil {
		return e.deny(ruleNone)
	}
	set, free := &t.out, t.outAllow && t.inAllow
	if !outbound {
		set = &t.in
	}
	if free {
		return Verdict{Allow: true}
	}
	kind := protoOf(info)
	hasPort := (kind == protoTCP || kind == protoUDP) && info.Fragment != packet.LaterFragment
	for i := range set.guards {
		// What cannot be read might be what the guard is for.
		g := &set.guards[i]
		if g.body.matches(kind, info.DstPort, hasPort, lane) || info.Fragment == packet.LaterFragment && g.body.lanes>>lane&1 == 1 && (g.body.proto == kind || g.body.proto == protoAny) {
			return e.deny(g.num)
		}
	}
	for i := range set.allow {
		a := &set.allow[i]
		if a.body.matches(kind, info.DstPort, hasPort, lane) {
			if hasPort || kind == protoICMP {
				e.flows.note(p, info, t.epoch, now, outbound)
			}
			return Verdict{Allow: true, Rule: a.num}
		}
	}
	// Not allowed by itself: is it the answer to what was?
	if (hasPort || kind == protoICMP) && e.flows.known(p, info, t.epoch, now, outbound) {
		return Verdict{Allow: true, Rule: ruleFlow}
	}
	return e.deny(ruleNone)
}

func protoOf(info *packet.Info) proto {
	switch info.Proto {
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return protoICMP
	case packet.ProtoTCP:
		return protoTCP
	case packet.ProtoUDP:
		return protoUDP
	}
	return protoOther
}

func (e *Engine) deny(rule int32) Verdict {
	(*e.denied.Load())[rule].Add(1)
	return Verdict{Rule: rule}
}

// Counters returns how many packets each rule denied; rules that denied none are
// left out.
func (e *Engine) Counters() map[string]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string]uint64{}
	for i, c := range *e.denied.Load() {
		if n := c.Load(); n > 0 {
			out[e.names[i]] = n
		}
	}
	return out
}
