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
	e.own.Store(e.bucketsLocked(e.own.Load(), p.self.limited()))
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
	p.fill(&t.out, p.selfSrc, p.dst, &p.self)
	p.fill(&t.in, p.src, p.selfDst, box)
	t.free = t.out.everything() && t.in.everything()
	return t
}

func (p *plan) fill(out *ruleSet, src, dst bitset, from *sandbox) {
	src.each(dst, func(n int) {
		if n < p.matrix.guards {
			out.guards = append(out.guards, &p.rules[n])
		} else {
			out.allow = append(out.allow, &p.rules[n])
		}
	})
	if from.lanes != allLanes {
		// A sandbox is one more guard, over the lanes that no role opens.
		closed := body{proto: protoAny, lanes: allLanes &^ from.lanes}
		out.guards = append(out.guards, &numbered{closed, p.roles[from.roles[0]]})
	}
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

// buckets enforce the budgets of one sender.
type buckets [packet.NumLanes]bucketOf

type bucketOf struct {
	*Bucket             // nil where the lane has no limit
	packets, bits int32 // numbers of the rules that denials are counted under
}

// bucketsLocked returns buckets for the budgets; those whose limit stays as it is
// keep what was spent.
func (e *Engine) bucketsLocked(old *buckets, budgets *[packet.NumLanes]Budget) *buckets {
	if budgets == nil {
		return nil
	}
	out := new(buckets)
	for lane := range budgets {
		b := &budgets[lane]
		if b.IsZero() {
			continue
		}
		if old != nil && old[lane].Bucket != nil && old[lane].Limit() == b.Limit {
			out[lane].Bucket = old[lane].Bucket
		} else {
			out[lane].Bucket = NewBucket(b.Limit)
		}
		out[lane].packets = e.index[budgetRule(b.PacketsRole)]
		out[lane].bits = e.index[budgetRule(b.BitsRole)]
	}
	return out
}

// SpendOutbound takes a packet that this node is about to send on the lane, to
// whomever, from its budget. size is that of the inner packet in bytes, now a
// monotonic clock in nanoseconds. It asks the budget only: whether the packet may
// go at all is for Outbound, which comes first. It does not allocate.
func (e *Engine) SpendOutbound(lane Lane, size int, now int64) Verdict {
	return e.spend(e.own.Load(), lane, size, now)
}

// SpendInbound takes a packet that came from the peer from the peer's budget, of
// which this node sees its own part only. A peer that left has none.
func (e *Engine) SpendInbound(p *PeerRules, lane Lane, size int, now int64) Verdict {
	if p.table.Load() == nil {
		return e.deny(ruleNone)
	}
	return e.spend(p.in.Load(), lane, size, now)
}

func (e *Engine) spend(b *buckets, lane Lane, size int, now int64) Verdict {
	if b == nil || lane >= packet.NumLanes || b[lane].Bucket == nil {
		return Verdict{Allow: true}
	}
	switch b[lane].Take(size, now) {
	case TooManyPackets:
		return e.deny(b[lane].packets)
	case TooManyBits:
		return e.deny(b[lane].bits)
	case Within:
	}
	return Verdict{Allow: true}
}
