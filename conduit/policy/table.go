// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// decision is what the rules say of a packet, and which rule says it.
type decision struct {
	rule  int32
	allow bool
}

// anyLane is the column of what is allowed on one lane at least.
const anyLane = Lane(packet.NumLanes)

// ruleSet is the rules for what one side begins with the other, worked out for
// each protocol and lane, so that a packet costs the same under ten rules as
// under ten thousand. It is immutable.
type ruleSet [protoAny][packet.NumLanes + 1]cell

type cell struct {
	// plain is for packets without ports: other protocols, later fragments.
	plain decision
	ports *portTable // nil where the protocol has none
}

// judge decides about a packet of a flow to port.
func (s *ruleSet) judge(kind proto, port uint16, hasPort bool, lane Lane) (rule int32, allow bool) {
	if kind >= protoAny || lane > anyLane {
		return ruleNone, false
	}
	c := &s[kind][lane]
	if !hasPort || c.ports == nil {
		return c.plain.rule, c.plain.allow
	}
	d := c.ports.at(port)
	return d.rule, d.allow
}

// portTable maps each port to its decision.
type portTable struct {
	spans []portSpan // by from; the first begins at 0
	pages []uint16   // the span of port 256·i, for all i to 256; nil where spans are few
}

// portSpan is the ports from its own to the next one's.
type portSpan struct {
	from  uint16
	allow bool
	rule  int32
}

// fewSpans are searched as they are.
const fewSpans = 16

// window returns the spans one of which has the port: at most 258, so that it is
// found in nine steps.
func (t *portTable) window(port uint16) (lo, hi int) {
	if t.pages == nil {
		return 0, len(t.spans)
	}
	return int(t.pages[port>>8]), int(t.pages[port>>8+1]) + 1
}

func (t *portTable) at(port uint16) decision {
	lo, hi := t.window(port)
	for n := hi - lo; n > 1; { // without a branch that could be guessed wrong
		half := n / 2
		if t.spans[lo+half].from <= port {
			lo += half
		}
		n -= half
	}
	s := &t.spans[lo]
	return decision{s.rule, s.allow}
}

// painter makes port tables; what it holds is scratch. Guarded by the Engine's
// mutex.
type painter struct {
	guards, allow, before []*numbered
	edges                 []int32
	next                  []int32
	verdicts              []decision
}

// compile works out s for the rules, in the order of their rank.
func (p *painter) compile(s *ruleSet, guards, allow []*numbered) {
	for kind := range protoAny {
		for lane := range Lane(packet.NumLanes) {
			about := func(b *numbered) bool { return b.body.matchesAnyPort(kind, lane) }
			p.guards = filter(p.guards[:0], guards, about)
			p.allow = filter(p.allow[:0], allow, about)
			c := &s[kind][lane]
			c.plain = p.plain()
			if kind != protoTCP && kind != protoUDP {
				continue
			}
			both := len(p.guards)
			p.guards = append(p.guards, p.allow...)
			if lane > 0 && slices.Equal(p.guards, p.before) {
				c.ports = s[kind][lane-1].ports // as most rules are about all lanes
			} else {
				c.ports = p.paint(p.guards, both)
			}
			p.before = append(p.before[:0], p.guards...)
		}
		p.join(&s[kind])
	}
}

func filter(out, in []*numbered, keep func(*numbered) bool) []*numbered {
	for _, r := range in {
		if keep(r) {
			out = append(out, r)
		}
	}
	return out
}

// plain is the decision about a packet without ports. Where it is a later
// fragment its ports are unknown, and might be those that a guard is for.
func (p *painter) plain() decision {
	if len(p.guards) > 0 {
		return decision{rule: p.guards[0].num}
	}
	for _, r := range p.allow {
		if len(r.body.ports) == 0 {
			return decision{r.num, true}
		}
	}
	return decision{rule: ruleNone}
}

var allPorts = []portRange{{0, 65535}}

// paint gives each port to the first of rules that is about it; the first guards
// of them deny.
func (p *painter) paint(rules []*numbered, guards int) *portTable {
	ranges := func(r *numbered) []portRange {
		if len(r.body.ports) == 0 {
			return allPorts
		}
		return r.body.ports
	}
	p.edges = append(p.edges[:0], 0, 1<<16)
	for _, r := range rules {
		for _, x := range ranges(r) {
			p.edges = append(p.edges, int32(x.lo), int32(x.hi)+1)
		}
	}
	slices.Sort(p.edges)
	p.edges = slices.Compact(p.edges)
	n := len(p.edges) - 1
	p.verdicts = append(p.verdicts[:0], make([]decision, n)...)
	p.next = p.next[:0] // of a piece: the next that has no rule yet
	for i := range n + 1 {
		p.next = append(p.next, int32(i))
	}
	free := func(i int32) int32 {
		for p.next[i] != i {
			p.next[i] = p.next[p.next[i]]
			i = p.next[i]
		}
		return i
	}
	for k, r := range rules {
		for _, x := range ranges(r) {
			first, _ := slices.BinarySearch(p.edges, int32(x.lo))
			for i := free(int32(first)); i < int32(n) && p.edges[i] <= int32(x.hi); i = free(i) {
				p.verdicts[i] = decision{r.num, k >= guards}
				p.next[i] = i + 1
			}
		}
		if free(0) == int32(n) {
			break
		}
	}
	return p.table(n)
}

// table makes a table of the verdicts about the n pieces between the edges.
func (p *painter) table(n int) *portTable {
	count := 0
	for i := range n {
		if i == 0 || p.verdicts[i] != p.verdicts[i-1] {
			count++
		}
	}
	t := &portTable{spans: make([]portSpan, 0, count)}
	for i := range n {
		if d := p.verdicts[i]; i == 0 || d != p.verdicts[i-1] {
			t.spans = append(t.spans, portSpan{uint16(p.edges[i]), d.allow, d.rule})
		}
	}
	if count <= fewSpans {
		return t
	}
	t.pages = make([]uint16, 257)
	for i, at := 0, 0; i < len(t.pages); i++ {
		for at+1 < count && int(t.spans[at+1].from) <= i*256 {
			at++
		}
		t.pages[i] = uint16(at)
	}
	return t
}

// join fills the column of any lane.
func (p *painter) join(row *[packet.NumLanes + 1]cell) {
	// Where no lane allows, the least urgent one's denial counts.
	either := func(of func(c *cell) decision) decision {
		for _, lane := range []Lane{Bulk, Telemetry, Critical} {
			if d := of(&row[lane]); d.allow {
				return d
			}
		}
		return of(&row[Bulk])
	}
	row[anyLane].plain = either(func(c *cell) decision { return c.plain })
	t := row[Bulk].ports
	if t == nil || row[Critical].ports == t && row[Telemetry].ports == t {
		row[anyLane].ports = t
		return
	}
	p.edges = p.edges[:0]
	for lane := range Lane(packet.NumLanes) {
		for _, s := range row[lane].ports.spans {
			p.edges = append(p.edges, int32(s.from))
		}
	}
	slices.Sort(p.edges)
	p.edges = slices.Compact(p.edges)
	p.verdicts = p.verdicts[:0]
	for _, from := range p.edges {
		p.verdicts = append(p.verdicts, either(func(c *cell) decision { return c.ports.at(uint16(from)) }))
	}
	row[anyLane].ports = p.table(len(p.edges))
}

// everything reports whether the rules allow every packet, under one rule.
func everything(guards, allow []*numbered) bool {
	return len(guards) == 0 && slices.ContainsFunc(allow, func(r *numbered) bool { return r.body.everything() })
}
