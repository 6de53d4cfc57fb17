// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Limits of summaries and differences.
const (
	// MaxFlows is how many lines a summary or a difference has at most.
	MaxFlows = 500
	// maxReachPairs bounds the pairs of kinds of nodes that are looked at.
	maxReachPairs = 1 << 20
	// maxReachWork bounds what is worked out for them; it takes some seconds.
	maxReachWork = 1 << 28
)

// Flow says that nodes of one group may begin flows to nodes of another.
type Flow struct {
	// Src and Dst name some of the nodes of the groups, SrcNodes and DstNodes count
	// them all. A node is in both groups where it has peers of its own kind.
	Src, Dst           string
	SrcNodes, DstNodes int
	// Proto is any, icmp, tcp, udp or other, which stands for all the rest.
	Proto string
	// Ports are like those of a rule, "22,7400-7500"; empty means all.
	Ports string
	Lanes []Lane
}

// String is one line.
func (f *Flow) String() string {
	out := f.Src + " to " + f.Dst + ": " + f.Proto
	if f.Ports != "" {
		out += " " + f.Ports
	}
	if len(f.Lanes) == packet.NumLanes {
		return out + ", every lane"
	}
	names := make([]string, 0, len(f.Lanes))
	for _, l := range f.Lanes {
		names = append(names, l.String())
	}
	return out + ", " + strings.Join(names, " and ")
}

// Reach sums up who can reach what, guards and roles considered, at most MaxFlows
// lines in the order of the nodes; truncated tells that there are more.
func (d *Document) Reach(nodes []Subject) (flows []Flow, truncated bool, err error) {
	b, err := d.compile()
	if err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	t := newTerms()
	t.addBook(b)
	all := t.classes(nodes)
	all = collapse(all, newReacher(b, all).sets)
	m := newReacher(b, all)
	truncated = groups(all, m.key, func(key string, src, dst *class) bool {
		for _, g := range m.known[key].lines() {
			if len(flows) == MaxFlows {
				return false
			}
			flows = append(flows, g.flow(src, dst))
		}
		return true
	})
	return flows, truncated, nil
}

// groups calls f for each kind of source with all destinations that share a key,
// until f returns false, key gives up or there were too many pairs.
func groups(all []class, key func(i, j int) (string, bool), f func(key string, src, dst *class) bool) (truncated bool) {
	left := maxReachPairs
	for i := range all {
		var order []string
		dsts := map[string]*class{}
		for j := range all {
			if i == j && len(all[i].nodes) == 1 {
				continue // nobody against itself
			}
			if left--; left < 0 {
				return true
			}
			k, ok := key(i, j)
			if !ok {
				return true
			}
			g := dsts[k]
			if g == nil {
				g = new(class)
				dsts[k] = g
				order = append(order, k)
			}
			g.nodes = append(g.nodes, all[j].nodes...)
		}
		for _, k := range order {
			if !f(k, &all[i], dsts[k]) {
				return true
			}
		}
	}
	return false
}

// span is a range of ports and the lanes on which it is open.
type span struct {
	lo, hi uint16
	lanes  uint8
}

// reach are the open spans by protocol, in order and merged; protocols without
// ports have one from 0 to 65535.
type reach [protoAny][]span

// reacher works out what each kind of node may reach. Pairs for which the same
// rules count share the answer.
type reacher struct {
	m        *matrix
	src, dst []bitset
	lanes    []uint8
	known    map[string]*reach
	buf      []byte
	left     int // work, in rules times ranges of ports
}

func newReacher(b *book, all []class) *reacher {
	r := &reacher{m: newMatrix(b), known: map[string]*reach{}, left: maxReachWork}
	for i := range all {
		n := all[i].nodes[0]
		r.src = append(r.src, r.m.src.match(n, r.m.newSet()))
		r.dst = append(r.dst, r.m.dst.match(n, r.m.newSet()))
		box := b.sandbox(n)
		r.lanes = append(r.lanes, box.lanes)
	}
	return r
}

// sets names all rules that are about kind i; where they are the same, so is what
// two kinds may reach and who may reach them.
func (r *reacher) sets(i int) string {
	r.buf = append(r.buf[:0], r.lanes[i])
	for w := range r.src[i] {
		r.buf = binary.NativeEndian.AppendUint64(r.buf, r.src[i][w])
		r.buf = binary.NativeEndian.AppendUint64(r.buf, r.dst[i][w])
	}
	return string(r.buf)
}

// key returns the name under which known has what kind i may reach at kind j, or
// false where that is too much work.
func (r *reacher) key(i, j int) (string, bool) {
	r.buf = append(r.buf[:0], r.lanes[i])
	for w := range r.src[i] {
		r.buf = binary.NativeEndian.AppendUint64(r.buf, r.src[i][w]&r.dst[j][w])
	}
	if _, ok := r.known[string(r.buf)]; !ok {
		if r.left < 0 {
			return "", false
		}
		r.known[string(r.buf)] = r.compute(i, j)
	}
	return string(r.buf), true
}

func (r *reacher) compute(i, j int) *reach {
	guards, allow := r.m.between(r.src[i], r.dst[j])
	out, work := openings(guards, allow, r.lanes[i])
	r.left -= work
	return out
}

// between returns what the rules about both a source and a destination say.
func (m *matrix) between(src, dst bitset) (guards, allow []*body) {
	src.each(dst, func(n int) {
		if n < m.guards {
			guards = append(guards, &m.rules[n].body)
		} else {
			allow = append(allow, &m.rules[n].body)
		}
	})
	return guards, allow
}

// openings works out what rules leave open on the lanes that the source may use.
func openings(guards, allow []*body, lanes uint8) (out *reach, work int) {
	out = new(reach)
	for p := range protoAny {
		var cuts []int
		for _, b := range slices.Concat(guards, allow) {
			if b.proto == p {
				for _, ports := range b.ports {
					cuts = append(cuts, int(ports.lo), int(ports.hi)+1)
				}
			}
		}
		work += (len(guards) + len(allow)) * (len(cuts) + 1)
		for _, c := range intervals(cuts) {
			c.lanes = openLanes(allow, p, c.lo) &^ openLanes(guards, p, c.lo) & lanes
			out[p] = appendSpan(out[p], c)
		}
	}
	return out, work
}

// intervals cuts all ports at the given places.
func intervals(cuts []int) (out []span) {
	cuts = append(cuts, 0, 1<<16)
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i := range len(cuts) - 1 {
		out = append(out, span{lo: uint16(cuts[i]), hi: uint16(cuts[i+1] - 1)})
	}
	return out
}

func openLanes(rules []*body, p proto, port uint16) (lanes uint8) {
	for _, b := range rules {
		if b.lanes&^lanes == 0 {
			continue
		}
		for lane := range Lane(packet.NumLanes) {
			if b.matches(p, port, lane) {
				lanes |= 1 << lane
			}
		}
	}
	return lanes
}

// appendSpan joins neighbours that are alike and leaves out what is closed.
func appendSpan(out []span, s span) []span {
	if s.lanes == 0 {
		return out
	}
	if n := len(out); n > 0 && out[n-1].lanes == s.lanes && int(out[n-1].hi)+1 == int(s.lo) {
		out[n-1].hi = s.hi
		return out
	}
	return append(out, s)
}

// at returns the lanes that are open on a port.
func (r *reach) at(p proto, port uint16) uint8 {
	for _, s := range r[p] {
		if s.lo <= port && port <= s.hi {
			return s.lanes
		}
	}
	return 0
}

// minus returns what is open in r and not in o.
func (r *reach) minus(o *reach) *reach {
	out := new(reach)
	for p := range protoAny {
		var cuts []int
		for _, s := range slices.Concat(r[p], o[p]) {
			cuts = append(cuts, int(s.lo), int(s.hi)+1)
		}
		for _, c := range intervals(cuts) {
			c.lanes = r.at(p, c.lo) &^ o.at(p, c.lo)
			out[p] = appendSpan(out[p], c)
		}
	}
	return out
}

// line is one protocol with all ports that are open on the same lanes.
type line struct {
	proto, ports string
	lanes        uint8
}

var protoNames = [protoAny + 1]string{protoOther: "other", protoICMP: "icmp", protoTCP: "tcp", protoUDP: "udp", protoAny: "any"}

func (r *reach) lines() (out []line) {
	if r == nil {
		return nil
	}
	if one := r[protoOther]; len(one) == 1 && !slices.ContainsFunc(r[:], func(s []span) bool { return !slices.Equal(s, one) }) {
		return []line{{proto: protoNames[protoAny], lanes: one[0].lanes}}
	}
	for _, p := range []proto{protoICMP, protoTCP, protoUDP, protoOther} {
		byLanes := map[uint8][]string{}
		var order []uint8
		for _, s := range r[p] {
			if byLanes[s.lanes] == nil {
				order = append(order, s.lanes)
			}
			byLanes[s.lanes] = append(byLanes[s.lanes], s.ports())
		}
		for _, lanes := range order {
			out = append(out, line{protoNames[p], joinPorts(byLanes[lanes]), lanes})
		}
	}
	return out
}

// joinPorts keeps a line readable where the ports are many.
func joinPorts(ports []string) string {
	const most = 16
	if len(ports) > most {
		return strings.Join(ports[:most], ",") + fmt.Sprintf(" and %d more ranges", len(ports)-most)
	}
	return strings.Join(ports, ",")
}

func (s span) ports() string {
	switch {
	case s.lo == 0 && s.hi == 1<<16-1:
		return ""
	case s.lo == s.hi:
		return fmt.Sprint(s.lo)
	}
	return fmt.Sprintf("%d-%d", s.lo, s.hi)
}

func (l *line) flow(src, dst *class) Flow {
	f := Flow{
		Src: src.label(), Dst: dst.label(), SrcNodes: len(src.nodes), DstNodes: len(dst.nodes),
		Proto: l.proto, Ports: l.ports,
	}
	for lane := range Lane(packet.NumLanes) {
		if l.lanes>>lane&1 == 1 {
			f.Lanes = append(f.Lanes, lane)
		}
	}
	return f
}
