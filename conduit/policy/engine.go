// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"cmp"
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
	frags fragTable
	alarm atomic.Pointer[func(Alarm)]

	mu    sync.Mutex // guards the rest
	own   *meters    // what this node may send; nil where nothing limits it
	doc   *Document  // nil before the first Apply
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
	// table is all that a packet needs, so that it sees one policy only; nil denies.
	table atomic.Pointer[peerView]
}

// peerView is the policy in force between this node and one peer. It is immutable.
type peerView struct {
	*peerTable
	own, theirs *meters // what this node, the peer sends; nil where nothing limits it
}

// peerTable is compiled for one kind of peers, both directions. It is immutable.
type peerTable struct {
	out, in ruleSet
	free    bool // everything is allowed both ways, no flow needs remembering
	// budgets limit what the peer sends; nil where nothing does.
	budgets *[packet.NumLanes]Budget
}

type numbered struct {
	body body
	num  int32
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
	e.doc = doc
	e.planLocked(b)
	e.peersLocked(peers, true)
}

// InForce returns the document of the last Apply, nil before, and the nodes as the
// rules know them now, in the order of their names. The caller must not change
// what it gets.
func (e *Engine) InForce() (doc *Document, self Subject, peers []Subject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.nodes {
		if s.ID != e.self.ID {
			peers = append(peers, s)
		}
	}
	slices.SortFunc(peers, func(a, b Subject) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return e.doc, e.self, peers
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
	if e.plan == nil {
		p.table.Store(nil)
		return
	}
	v := &peerView{peerTable: e.plan.table(peer), own: e.own}
	var old *meters
	if was := p.table.Load(); was != nil {
		old = was.theirs
	}
	v.theirs = e.metersLocked(old, v.budgets, peer.ID, true)
	p.table.Store(v)
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

// Counters returns how often each rule was the reason for a denial, by its name
// in Decision; rules that denied nothing are left out. "budget:ROLE" counts the
// packets over that budget: those that were demoted and those that were denied.
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
