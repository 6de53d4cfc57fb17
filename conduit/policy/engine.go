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

	// own limits what this node sends, nil where nothing does.
	own atomic.Pointer[buckets]

	mu    sync.Mutex // guards the rest
	self  Subject
	plan  *plan // nil before the first Apply
	nodes map[identity.PeerID]Subject
	peers handles
	names []string // of rules, by number; grows, never reordered
	index map[string]int32
	// denied counts by rule number.
	denied atomic.Pointer[[]*atomic.Uint64]
}

// PeerRules is what the policy says of one peer. It stays the same pointer while
// the policy changes, so the packet path looks it up once per peer. Whoever holds
// one of a peer that left is denied, and allowed again if the peer comes back.
type PeerRules struct {
	table atomic.Pointer[peerTable]
	in    atomic.Pointer[buckets] // for what the peer sends; nil where nothing limits it
}

// peerTable is compiled for one kind of peers, both directions. It is immutable.
type peerTable struct {
	out, in ruleSet
	free    bool // everything is allowed both ways, no flow needs remembering
	// budgets limit what the peer sends; nil where nothing does.
	budgets *[packet.NumLanes]Budget
}

type ruleSet struct {
	guards, allow []*numbered
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
		self: self, peers: newHandles(),
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
	e.planLocked(b)
	e.peersLocked(peers, true)
}

// SetPeers changes who is in the mesh. Only peers that are new or whose name or
// tags changed are looked at, and rules are expanded only for a kind of peer that
// was not there before. A peer that is no longer there is denied at once.
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
			e.setLocked(e.peers.present[id], &peer)
		}
	}
}

// Peer returns the handle of a peer, known or not.
func (e *Engine) Peer(id identity.PeerID) *PeerRules {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.peers.get(id)
}

func (e *Engine) setSelfLocked(self Subject) (changed bool) {
	if self.ID != e.self.ID || self.equal(&e.self) {
		return false
	}
	self.Tags = slices.Clone(self.Tags)
	e.self = self
	if e.plan != nil {
		e.planLocked(e.plan.book)
	}
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
			e.setLocked(e.peers.arrive(id), &peer)
		}
	}
	for id := range old {
		if _, ok := e.nodes[id]; !ok {
			e.peers.leave(id)
		}
	}
}

// setLocked puts the rules for peer into its handle.
func (e *Engine) setLocked(p *PeerRules, peer *Subject) {
	var t *peerTable
	var budgets *[packet.NumLanes]Budget
	if e.plan != nil {
		t = e.plan.table(peer)
		budgets = t.budgets
	}
	p.in.Store(e.bucketsLocked(p.in.Load(), budgets))
	p.table.Store(t)
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
		g := s.guards[i]
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
