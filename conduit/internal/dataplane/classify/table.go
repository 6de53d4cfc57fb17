// SPDX-License-Identifier: Apache-2.0

package classify

import (
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Ports are the ports from Lo to Hi; the zero value means any.
type Ports struct{ Lo, Hi uint16 }

func (p Ports) any() bool            { return p == Ports{} }
func (p Ports) has(port uint16) bool { return p.any() || p.Lo <= port && port <= p.Hi }

// Rule sends the packets that match all of its set fields to Lane.
type Rule struct {
	// Protos are IP protocol numbers; none means any.
	Protos []uint8
	// Below matches packets of fewer bytes; 0 means any length. A fragment is never
	// below: its datagram is longer than itself.
	Below int
	// DSCP are code points, 0 to 63; none means any.
	DSCP []uint8
	// Port matches the source or the destination, SrcPort and DstPort that one. Only
	// TCP and UDP have ports.
	Port, SrcPort, DstPort Ports
	Lane                   packet.Lane

	inspect bool // the Inspector decides instead
}

// DefaultRules returns the defaults: ICMP and packets under 100 bytes are
// Critical, port 5006 is Telemetry. What no rule matches is Bulk.
func DefaultRules() []Rule {
	return []Rule{
		{Protos: []uint8{packet.ProtoICMP, packet.ProtoICMPv6}, Lane: packet.Critical},
		{Below: 100, Lane: packet.Critical},
		{Protos: []uint8{packet.ProtoUDP}, inspect: true},
		{Port: Ports{5006, 5006}, Lane: packet.Telemetry},
	}
}

// set has one bit for each rule, in words.
type set []uint64

// table holds, for each value that a field of a packet can have, which rules take
// it: what all fields agree on matches, and the lowest of it counts. So the cost
// grows by one word of 64 rules at a time.
type table struct {
	lanes   []packet.Lane // of rules
	words   uint32
	inspect set // the rules that ask the Inspector
	// Each value leads to the words of its set in sets; values of one set share it.
	sets  []uint64
	proto [256]uint32
	dscp  [64]uint32
	// sizes are the lengths from which one rule less matches, in order; set i is for
	// packets below sizes[i], the last for all others.
	sizes   []int
	sizeSet []uint32
	// port gives the page of the upper half of a port, leaf what is there for the
	// lower half. Most pages are one.
	port [256]uint16
	leaf [][256]portSets
}

// portSets are the rules that take a port as source, as destination and as either.
type portSets struct{ src, dst, either uint32 }

func compile(rules []Rule) *table {
	t := &table{words: uint32(max(1, (len(rules)+63)/64))}
	t.inspect = make(set, t.words)
	for i, r := range rules {
		t.lanes = append(t.lanes, r.Lane)
		if r.inspect {
			t.inspect[i/64] |= 1 << (i % 64)
		}
	}
	index := make(map[string]uint32) // of sets that are the same
	where := func(match func(r *Rule) bool) uint32 {
		s := make(set, t.words)
		for i := range rules {
			if match(&rules[i]) {
				s[i/64] |= 1 << (i % 64)
			}
		}
		key := string(bytesOf(s))
		at, ok := index[key]
		if !ok {
			at = uint32(len(t.sets))
			t.sets = append(t.sets, s...)
			index[key] = at
		}
		return at
	}
	for p := range t.proto {
		p8 := uint8(p)
		ports := p8 == packet.ProtoTCP || p8 == packet.ProtoUDP
		t.proto[p] = where(func(r *Rule) bool {
			return (len(r.Protos) == 0 || slices.Contains(r.Protos, p8)) && (ports || r.Port.any() && r.SrcPort.any() && r.DstPort.any())
		})
	}
	for d := range t.dscp {
		t.dscp[d] = where(func(r *Rule) bool { return len(r.DSCP) == 0 || slices.Contains(r.DSCP, uint8(d)) })
	}
	for i := range rules {
		if b := rules[i].Below; b != 0 {
			t.sizes = append(t.sizes, b)
		}
	}
	slices.Sort(t.sizes)
	t.sizes = slices.Compact(t.sizes)
	for _, size := range t.sizes {
		t.sizeSet = append(t.sizeSet, where(func(r *Rule) bool { return r.Below == 0 || size <= r.Below }))
	}
	t.sizeSet = append(t.sizeSet, where(func(r *Rule) bool { return r.Below == 0 }))
	t.compilePorts(rules, where)
	return t
}

func (t *table) compilePorts(rules []Rule, where func(func(*Rule) bool) uint32) {
	edges := map[int]bool{0: true} // where the sets may change
	for i := range rules {
		for _, p := range []Ports{rules[i].Port, rules[i].SrcPort, rules[i].DstPort} {
			if !p.any() {
				edges[int(p.Lo)], edges[int(p.Hi)+1] = true, true
			}
		}
	}
	uniform := make(map[portSets]uint16)
	var now portSets
	for upper := range 256 {
		first := now
		var page [256]portSets
		same := true
		for lower := range page {
			if port := uint16(upper<<8 | lower); edges[int(port)] {
				now = portSets{
					src:    where(func(r *Rule) bool { return r.SrcPort.has(port) }),
					dst:    where(func(r *Rule) bool { return r.DstPort.has(port) }),
					either: where(func(r *Rule) bool { return r.Port.has(port) }),
				}
				if lower == 0 {
					first = now
				}
				same = same && now == first
			}
			page[lower] = now
		}
		at, ok := uniform[first]
		if !same || !ok {
			at = uint16(len(t.leaf))
			t.leaf = append(t.leaf, page)
			if same {
				uniform[first] = at
			}
		}
		t.port[upper] = at
	}
}

func bytesOf(s set) []byte {
	var b []byte
	for _, w := range s {
		for i := range 8 {
			b = append(b, byte(w>>(8*i)))
		}
	}
	return b
}

// place is where the sets of a packet are.
type place struct{ proto, dscp, size, src, dst, either, other uint32 }

// find returns the place of a packet, which must not be a later fragment.
func (t *table) find(info *packet.Info) (p place) {
	size := len(t.sizes)
	if info.Fragment == packet.NotFragment {
		size = 0
		if len(t.sizes) > 8 {
			size, _ = slices.BinarySearch(t.sizes, info.Len+1)
		} else {
			for size < len(t.sizes) && info.Len >= t.sizes[size] {
				size++
			}
		}
	}
	src := &t.leaf[t.port[info.SrcPort>>8]][info.SrcPort&255]
	dst := &t.leaf[t.port[info.DstPort>>8]][info.DstPort&255]
	return place{
		proto: t.proto[info.Proto], dscp: t.dscp[info.TOS>>2], size: t.sizeSet[size],
		src: src.src, dst: dst.dst, either: src.either, other: dst.either,
	}
}

// matching returns those of 64 rules that match, n being their word.
func (t *table) matching(p *place, n uint32) uint64 {
	s := t.sets
	return s[p.proto+n] & s[p.dscp+n] & s[p.size+n] & s[p.src+n] & s[p.dst+n] & (s[p.either+n] | s[p.other+n])
}
