// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Engine holds the policy in force on one node (PolicyEngine). All methods are
// safe for concurrent use; a packet sees either the old policy or the new one.
// Before the first Apply everything is denied.
type Engine struct {
	flows flowTable

	mu    sync.Mutex // guards the rest
	self  Subject
	book  *book // nil before the first Apply
	nodes map[identity.PeerID]Subject
	peers map[identity.PeerID]*PeerRules
	names []string // of rules, by number; grows, never reordered
	index map[string]int32
	// denied counts by rule number.
	denied atomic.Pointer[[]*atomic.Uint64]
}

// PeerRules is what the policy says of one peer. It stays the same pointer while
// the policy changes, so the packet path looks it up once per peer.
type PeerRules struct {
	table atomic.Pointer[peerTable]
}

// peerTable is compiled for one peer and one direction each. It is immutable.
type peerTable struct {
	out, in ruleSet
	free    bool // everything is allowed both ways, no flow needs remembering
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

// Apply puts doc into force for the given peers. A document that Validate would
// refuse denies everything. Flows that began under the old policy are judged by
// the new one from the next packet on.
func (e *Engine) Apply(doc *Document, peers []Subject) {
	b, err := doc.compile()
	if err != nil {
		b = new(book)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.book = b
	names := make([]string, 0, len(b.guards))
	for i := range b.guards {
		names = append(names, b.guards[i].name)
	}
	for i := range b.allow {
		names = append(names, b.allow[i].name)
	}
	e.numberLocked(names)
	e.peersLocked(peers, true)
}

// SetPeers changes who is in the mesh; rules are expanded anew for peers that
// are new or whose name or tags changed, others keep what they have. A peer that
// is no longer there is denied at once.
func (e *Engine) SetPeers(peers []Subject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peersLocked(peers, false)
}

// SetSelf changes the name and tags of this node, to which rules apply as well.
// The PeerID must be that of NewEngine.
func (e *Engine) SetSelf(self Subject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.setSelfLocked(self) {
		for id, peer := range e.nodes {
			e.peers[id].table.Store(e.tableLocked(&peer))
		}
	}
}

// Peer returns the handle of a peer, known or not.
func (e *Engine) Peer(id identity.PeerID) *PeerRules {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.peerLocked(id)
}

func (e *Engine) peerLocked(id identity.PeerID) *PeerRules {
	p := e.peers[id]
	if p == nil {
		p = new(PeerRules)
		e.peers[id] = p
	}
	return p
}

func (e *Engine) setSelfLocked(self Subject) (changed bool) {
	if self.ID != e.self.ID || self.equal(&e.self) {
		return false
	}
	self.Tags = slices.Clone(self.Tags)
	e.self = self
	return true
}

func (s *Subject) equal(o *Subject) bool {
	return s.ID == o.ID && s.Name == o.Name && slices.Equal(s.Tags, o.Tags)
}

func (e *Engine) peersLocked(peers []Subject, all bool) {
	for i := range peers {
		// Where the hub lists ourselves it may have given us tags.
		all = e.setSelfLocked(peers[i]) || all
	}
	old := e.nodes
	e.nodes = make(map[identity.PeerID]Subject, len(peers))
	for _, peer := range peers {
		peer.Tags = slices.Clone(peer.Tags)
		e.nodes[peer.ID] = peer
	}
	for id, peer := range e.nodes {
		was, ok := old[id]
		if all || !ok || !was.equal(&peer) {
			e.peerLocked(id).table.Store(e.tableLocked(&peer))
		}
	}
	for id := range old {
		if _, ok := e.nodes[id]; !ok {
			e.peers[id].table.Store(nil)
		}
	}
}

func (e *Engine) tableLocked(peer *Subject) *peerTable {
	if e.book == nil {
		return nil
	}
	t := new(peerTable)
	for _, dir := range []struct {
		set      *ruleSet
		src, dst *Subject
	}{{&t.out, &e.self, peer}, {&t.in, peer, &e.self}} {
		dir.set.guards = e.expandLocked(e.book.guards, dir.src, dir.dst)
		dir.set.allow = e.expandLocked(e.book.allow, dir.src, dir.dst)
	}
	t.free = t.out.everything() && t.in.everything()
	return t
}

func (e *Engine) expandLocked(rules []bookRule, src, dst *Subject) (out []numbered) {
	for i := range rules {
		if r := &rules[i]; r.src.matches(src) && r.dst.matches(dst) {
			out = append(out, numbered{r.body, e.index[r.name]})
		}
	}
	return out
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

// numberLocked gives numbers to the names that have none.
func (e *Engine) numberLocked(names []string) {
	grown := slices.Clone(*e.denied.Load())
	for _, name := range names {
		if _, ok := e.index[name]; !ok {
			e.index[name] = int32(len(e.names))
			e.names = append(e.names, name)
			grown = append(grown, new(atomic.Uint64))
		}
	}
	e.denied.Store(&grown)
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
	if t.free {
		return Verdict{Allow: true}
	}
	began, answered := &t.out, &t.in // rules for what the sender, the other side begins
	if !outbound {
		began, answered = &t.in, &t.out
	}
	kind := protoOf(info)
	later := info.Fragment == packet.LaterFragment
	hasPort := (kind == protoTCP || kind == protoUDP) && !later
	isFlow := hasPort || kind == protoICMP
	rule, allow := began.judge(kind, info.DstPort, hasPort, later, lane)
	if allow {
		if isFlow {
			e.flows.note(p, info, now, outbound)
		}
		return Verdict{Allow: true, Rule: rule}
	}
	// Not allowed by itself: is it the answer to a flow that the other side began
	// and that the policy in force still allows, on this lane?
	if isFlow && mayAnswer(kind, info) {
		if _, allow := answered.judge(kind, info.SrcPort, hasPort, later, lane); allow && e.flows.known(p, info, now, outbound) {
			return Verdict{Allow: true, Rule: ruleFlow}
		}
	}
	return e.deny(rule)
}

// judge decides about a packet of a flow to port by the rules alone.
func (s *ruleSet) judge(kind proto, port uint16, hasPort, later bool, lane Lane) (rule int32, allow bool) {
	for i := range s.guards {
		g := &s.guards[i]
		// The ports of a later fragment are unknown and might be those that the
		// guard is for.
		if g.body.matches(kind, port, hasPort, lane) || later && g.body.matchesAnyPort(kind, lane) {
			return g.num, false
		}
	}
	for i := range s.allow {
		if s.allow[i].body.matches(kind, port, hasPort, lane) {
			return s.allow[i].num, true
		}
	}
	return ruleNone, false
}

// mayAnswer reports whether the packet can belong to a flow that its receiver
// began: a TCP SYN alone and ICMP requests begin something themselves.
func mayAnswer(kind proto, info *packet.Info) bool {
	const syn, ack = 0x02, 0x10
	switch {
	case kind == protoTCP:
		return info.TCPFlags&(syn|ack) != syn
	case info.Proto == packet.ProtoICMP:
		switch info.ICMPType {
		case 8, 13, 15, 17: // echo, timestamp, information, address mask
			return false
		}
	case info.Proto == packet.ProtoICMPv6:
		// Echo request, and all that is neither echo nor error.
		return info.ICMPType < 128 || info.ICMPType == 129
	}
	return true
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
