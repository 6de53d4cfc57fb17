// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// plan is a document compiled for one node: what it says of a peer is worked out
// once for each kind of peer. Guarded by the Engine's mutex.
type plan struct {
	book   *book
	matrix *matrix
	terms  *terms
	rules  []numbered // by the matrix's numbers
	roles  map[string]int32
	self   sandbox

	selfSrc, selfDst bitset
	src, dst         bitset // scratch
	key, sets        []byte // scratch
	painter          painter

	byClass map[string]*peerTable
	// bySets joins kinds for which the same rules and roles count, so that nodes
	// that are named one by one do not each cost a table.
	bySets map[string]*peerTable
	// compiled counts the tables that were made; a test looks at it.
	compiled int
}

// planLocked puts b into force for this node and gives numbers to the names that
// have none. It does not touch the peers.
func (e *Engine) planLocked(b *book) {
	names := make([]string, 0, len(b.guards)+len(b.allow)+2*len(b.roles))
	for _, rules := range [][]bookRule{b.guards, b.allow} {
		for i := range rules {
			names = append(names, rules[i].name)
		}
	}
	for i := range b.roles {
		if b.roles[i].confines {
			names = append(names, roleRule(b.roles[i].name), budgetRule(b.roles[i].name))
		}
	}
	e.numberLocked(names)

	p := &plan{book: b, matrix: newMatrix(b), terms: newTerms(), roles: map[string]int32{}}
	p.terms.addBook(b)
	p.rules = make([]numbered, len(p.matrix.rules))
	for i, r := range p.matrix.rules {
		p.rules[i] = numbered{r.body, e.index[r.name]}
	}
	for i := range b.roles {
		if b.roles[i].confines {
			p.roles[b.roles[i].name] = e.index[roleRule(b.roles[i].name)]
		}
	}
	p.selfSrc = p.matrix.src.match(&e.self, p.matrix.newSet())
	p.selfDst = p.matrix.dst.match(&e.self, p.matrix.newSet())
	p.src, p.dst = p.matrix.newSet(), p.matrix.newSet()
	p.self = b.sandbox(&e.self)
	p.forget()
	e.plan = p
	e.own = e.metersLocked(e.own, p.self.limited(), e.self.ID, false)
}

func (p *plan) forget() {
	p.byClass, p.bySets = map[string]*peerTable{}, map[string]*peerTable{}
}

// maxKinds bounds what is kept of kinds that may be gone.
const maxKinds = 1 << 14

func (p *plan) table(peer *Subject) *peerTable {
	p.key = p.terms.classOf(p.key[:0], peer)
	if t := p.byClass[string(p.key)]; t != nil {
		return t
	}
	if len(p.byClass) >= maxKinds {
		p.forget()
	}
	t := p.compile(peer)
	p.byClass[string(p.key)] = t
	return t
}

// compile works out what the policy says of peers like this one.
func (p *plan) compile(peer *Subject) *peerTable {
	p.matrix.src.match(peer, p.src)
	p.matrix.dst.match(peer, p.dst)
	box := p.book.sandbox(peer)
	p.sets = p.sets[:0]
	for w := range p.src {
		p.sets = binary.NativeEndian.AppendUint64(p.sets, p.selfSrc[w]&p.dst[w])
		p.sets = binary.NativeEndian.AppendUint64(p.sets, p.selfDst[w]&p.src[w])
	}
	for _, role := range box.roles { // they make lanes and budgets what they are
		p.sets = append(append(p.sets, role...), ',')
	}
	if t := p.bySets[string(p.sets)]; t != nil {
		return t
	}
	t := p.build(&box)
	p.bySets[string(p.sets)] = t
	return t
}

func (p *plan) build(box *sandbox) *peerTable {
	p.compiled++
	t := &peerTable{budgets: box.limited()}
	out := p.fill(&t.out, p.selfSrc, p.dst, &p.self)
	in := p.fill(&t.in, p.src, p.selfDst, box)
	t.free = out && in
	return t
}

// fill works out the rules for what from begins. It reports whether they allow
// everything.
func (p *plan) fill(out *ruleSet, src, dst bitset, from *sandbox) (all bool) {
	var guards, allow []*numbered
	src.each(dst, func(n int) {
		if n < p.matrix.guards {
			guards = append(guards, &p.rules[n])
		} else {
			allow = append(allow, &p.rules[n])
		}
	})
	if from.lanes != allLanes {
		// A sandbox is one more guard, over the lanes that no role opens.
		closed := body{proto: protoAny, lanes: allLanes &^ from.lanes}
		guards = append(guards, &numbered{closed, p.roles[from.roles[0]]})
	}
	p.painter.compile(out, guards, allow)
	return everything(guards, allow)
}

// limited returns the budgets if there are any.
func (s *sandbox) limited() *[packet.NumLanes]Budget {
	for lane := range s.budgets {
		if !s.budgets[lane].IsZero() {
			return &s.budgets
		}
	}
	return nil
}
