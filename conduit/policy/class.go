// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"strconv"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// Nodes that no selector of the policy tells apart are one class: what is worked
// out for one of them holds for all. A fleet of thousands has a handful.

// index finds what selectors match: the numbers of the rules under each word.
type index struct {
	all   bitset
	tags  map[string][]int32
	names map[string][]int32
	ids   map[identity.PeerID][]int32
}

// newIndex makes an index of n rules.
func newIndex(n int) *index {
	return &index{all: newBitset(n), tags: map[string][]int32{}, names: map[string][]int32{}, ids: map[identity.PeerID][]int32{}}
}

func (x *index) add(num int, words selectors) {
	n := int32(num)
	for i := range words {
		switch w := &words[i]; {
		case w.all:
			x.all[n/64] |= 1 << (n % 64)
		case w.name != "":
			x.names[w.name] = append(x.names[w.name], n)
		case w.tag != "":
			x.tags[w.tag] = append(x.tags[w.tag], n)
		default:
			x.ids[w.id] = append(x.ids[w.id], n)
		}
	}
}

// bitset is a set of rule numbers.
type bitset []uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

func (b bitset) set(nums []int32) {
	for _, n := range nums {
		b[n/64] |= 1 << (n % 64)
	}
}

func (b bitset) union(o bitset) {
	for w := range b {
		b[w] |= o[w]
	}
}

// each calls f with the numbers in both sets, in order.
func (b bitset) each(o bitset, f func(n int)) {
	for w := range b {
		for v := b[w] & o[w]; v != 0; v &= v - 1 {
			f(w*64 + bits.TrailingZeros64(v))
		}
	}
}

// match fills out with the rules that s matches.
func (x *index) match(s *Subject, out bitset) bitset {
	copy(out, x.all)
	out.set(x.names[s.Name])
	for _, t := range s.Tags {
		out.set(x.tags[t])
	}
	out.set(x.ids[s.ID])
	return out
}

// matrix numbers the rules of a book, guards first, and finds those that are
// about a node as source and as destination.
type matrix struct {
	rules    []*bookRule
	guards   int
	src, dst *index
}

func newMatrix(b *book) *matrix {
	n := len(b.guards) + len(b.allow)
	m := &matrix{guards: len(b.guards), src: newIndex(n), dst: newIndex(n)}
	for _, rules := range [][]bookRule{b.guards, b.allow} {
		for i := range rules {
			r := &rules[i]
			m.src.add(len(m.rules), r.src)
			m.dst.add(len(m.rules), r.dst)
			m.rules = append(m.rules, r)
		}
	}
	return m
}

func (m *matrix) newSet() bitset { return newBitset(len(m.rules)) }

// terms are the words by which a policy can tell nodes apart.
type terms struct {
	tags, names map[string]uint32
	ids         map[identity.PeerID]uint32
}

func newTerms() *terms {
	return &terms{tags: map[string]uint32{}, names: map[string]uint32{}, ids: map[identity.PeerID]uint32{}}
}

func (t *terms) add(words selectors) {
	for i := range words {
		switch w := &words[i]; {
		case w.all:
		case w.name != "":
			if _, ok := t.names[w.name]; !ok {
				t.names[w.name] = uint32(len(t.names))
			}
		case w.tag != "":
			if _, ok := t.tags[w.tag]; !ok {
				t.tags[w.tag] = uint32(len(t.tags))
			}
		default:
			if _, ok := t.ids[w.id]; !ok {
				t.ids[w.id] = uint32(len(t.ids))
			}
		}
	}
}

func (t *terms) addBook(b *book) {
	for _, rules := range [][]bookRule{b.guards, b.allow} {
		for i := range rules {
			t.add(rules[i].src)
			t.add(rules[i].dst)
		}
	}
	for i := range b.roles {
		t.add(b.roles[i].members)
	}
}

// classOf appends the key of the node's class to key. It is the same for two
// nodes exactly if no word tells them apart.
func (t *terms) classOf(key []byte, s *Subject) []byte {
	var room [16]uint32
	nums := room[:0]
	for _, tag := range s.Tags {
		if n, ok := t.tags[tag]; ok {
			nums = append(nums, n)
		}
	}
	slices.Sort(nums)
	for _, n := range slices.Compact(nums) {
		key = binary.BigEndian.AppendUint32(key, n)
	}
	// The lengths keep the parts apart.
	name, id := uint32(0), uint32(0)
	if n, ok := t.names[s.Name]; ok {
		name = n + 1
	}
	if n, ok := t.ids[s.ID]; ok {
		id = n + 1
	}
	key = binary.BigEndian.AppendUint32(key, name)
	return binary.BigEndian.AppendUint32(key, id)
}

// class is nodes of one kind; the first stands for all.
type class struct {
	nodes []*Subject
}

// classes sorts nodes by class, in the order of their first members.
func (t *terms) classes(nodes []Subject) []class {
	at := map[string]int{}
	var out []class
	var key []byte
	for i := range nodes {
		key = t.classOf(key[:0], &nodes[i])
		n, ok := at[string(key)]
		if !ok {
			n = len(out)
			at[string(key)] = n
			out = append(out, class{})
		}
		out[n].nodes = append(out[n].nodes, &nodes[i])
	}
	return out
}

// collapse joins classes with the same key.
func collapse(all []class, key func(i int) string) (out []class) {
	at := map[string]int{}
	for i := range all {
		k := key(i)
		n, ok := at[k]
		if !ok {
			n = len(out)
			at[k] = n
			out = append(out, class{})
		}
		out[n].nodes = append(out[n].nodes, all[i].nodes...)
	}
	return out
}

// pair returns a node of each class that are not the same one. The ids of nodes
// are unique.
func pair(src, dst *class) (s, d *Subject) {
	s, d = src.nodes[0], dst.nodes[0]
	switch {
	case s.ID != d.ID:
	case len(dst.nodes) > 1:
		d = dst.nodes[1]
	case len(src.nodes) > 1:
		s = src.nodes[1]
	}
	return s, d
}

// label names the members of a class: a few names and how many more there are.
func (c *class) label() string {
	const most = 3
	out := ""
	for i, n := range c.nodes {
		if i == most {
			return out + " and " + strconv.Itoa(len(c.nodes)-most) + " more"
		}
		if i > 0 {
			out += ", "
		}
		out += n.label()
	}
	return out
}

func (s *Subject) label() string {
	if s.Name != "" {
		return s.Name
	}
	return s.ID.String()
}
