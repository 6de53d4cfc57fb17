// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// selector is one parsed src or dst word.
type selector struct {
	all       bool
	name, tag string
	id        identity.PeerID
}

type selectors []selector

// selector reads one word; a role stands for its members.
func (b *book) selector(word string) (selectors, error) {
	if name, ok := strings.CutPrefix(word, "role:"); ok {
		for i := range b.roles {
			if b.roles[i].name == name {
				return b.roles[i].members, nil
			}
		}
		return nil, fmt.Errorf("%w %q: no such role", ErrSelector, word)
	}
	s, err := parseSelector(word)
	return selectors{s}, err
}

func parseSelector(s string) (selector, error) {
	kind, val, _ := strings.Cut(s, ":")
	switch {
	case s == "*":
		return selector{all: true}, nil
	case kind == "name" && identity.ValidName(val):
		return selector{name: val}, nil
	case kind == "tag" && identity.ValidName(val):
		return selector{tag: val}, nil
	case kind == "node":
		id, err := identity.ParsePeerID(val)
		if err == nil && id.IsZero() {
			err = errors.New("the zero peer id names nobody")
		}
		if err != nil {
			return selector{}, fmt.Errorf("%w %q: %w", ErrSelector, s, err)
		}
		return selector{id: id}, nil
	}
	return selector{}, fmt.Errorf("%w %q: want *, name:NAME, tag:TAG, role:ROLE or node:PEERID", ErrSelector, s)
}

func (s *selector) matches(n *Subject) bool {
	switch {
	case s.all:
		return true
	case s.name != "":
		return s.name == n.Name
	case s.tag != "":
		return slices.Contains(n.Tags, s.tag)
	}
	return s.id == n.ID
}

func (ss selectors) matches(n *Subject) bool {
	for i := range ss {
		if ss[i].matches(n) {
			return true
		}
	}
	return false
}

// proto is what rules distinguish of the protocol number.
type proto uint8

const (
	protoOther proto = iota // only "any" rules match
	protoICMP
	protoTCP
	protoUDP
	protoAny
)

func parseProto(s string) (proto, error) {
	switch s {
	case "", "any":
		return protoAny, nil
	case "icmp":
		return protoICMP, nil
	case "tcp":
		return protoTCP, nil
	case "udp":
		return protoUDP, nil
	}
	return 0, fmt.Errorf("protocol %q: want any, icmp, tcp or udp", s)
}

type portRange struct{ lo, hi uint16 }

// body is the part of a rule that depends on the packet only.
type body struct {
	proto proto
	ports []portRange
	lanes uint8 // bit per lane
}

// matches reports whether the rule is about a packet to port; the port counts only
// where the protocol has any.
func (b *body) matches(p proto, port uint16, lane Lane) bool {
	return b.matchesAnyPort(p, lane) && (len(b.ports) == 0 ||
		slices.ContainsFunc(b.ports, func(r portRange) bool { return port >= r.lo && port <= r.hi }))
}

func (b *body) matchesAnyPort(p proto, lane Lane) bool {
	return b.lanes>>lane&1 == 1 && (b.proto == protoAny || b.proto == p)
}

// everything reports whether the body matches every packet.
func (b *body) everything() bool {
	return b.proto == protoAny && len(b.ports) == 0 && b.lanes == allLanes
}

type compiled struct {
	src, dst selectors
	body     body
}

// book is a document's rules, compiled once for all nodes.
type book struct {
	guards, allow []bookRule
	roles         []bookRole
}

type bookRole struct {
	name    string
	members selectors
	// confines tells whether the role is a sandbox; lanes are what it may publish.
	confines bool
	lanes    uint8
	limits   [packet.NumLanes]Limit
}

type bookRule struct {
	compiled
	name string
}

// compile returns an error for any rule that cannot be understood: to leave out
// a guard would allow.
func (d *Document) compile() (*book, error) {
	b := new(book)
	for i := range d.Roles {
		r, err := d.Roles[i].compile()
		if err != nil {
			return nil, at(fmt.Errorf("role %q: %w", d.Roles[i].Name, err), "roles", i)
		}
		for j := range b.roles {
			if b.roles[j].name == r.name {
				return nil, at(fmt.Errorf("role %q is there twice", r.name), "roles", i, "name")
			}
		}
		b.roles = append(b.roles, r)
	}
	for _, k := range []struct {
		kind, key string
		rules     []Rule
		out       *[]bookRule
	}{{"guard", "guards", d.Guards, &b.guards}, {"allow", "allow", d.Allow, &b.allow}} {
		for i := range k.rules {
			name := k.rules[i].name(k.kind, i)
			c, err := k.rules[i].compile(b)
			if err != nil {
				return nil, at(fmt.Errorf("%s rule %q: %w", k.kind, name, err), k.key, i)
			}
			*k.out = append(*k.out, bookRule{c, name})
		}
	}
	return b, nil
}

// validID keeps ids apart from places, from guards and from NoRule.
func validID(s string) bool {
	const digits = "0123456789"
	return len(s) <= 64 && strings.Trim(s, digits) != "" &&
		strings.Trim(s, digits+"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-") == ""
}

func (r *Rule) compile(b *book) (c compiled, err error) {
	if r.ID != "" && !validID(r.ID) {
		return c, at(errors.New("id: want at most 64 of A-Z a-z 0-9 . _ -, not digits alone"), "id")
	}
	for _, side := range []struct {
		words []string
		out   *selectors
		what  string
	}{{r.Src, &c.src, "src"}, {r.Dst, &c.dst, "dst"}} {
		if len(side.words) == 0 || len(side.words) > MaxSelectors {
			return c, at(fmt.Errorf("%s has %d selectors, want 1 to %d", side.what, len(side.words), MaxSelectors), side.what)
		}
		for i, w := range side.words {
			s, err := b.selector(w)
			if err != nil {
				return c, at(err, side.what, i)
			}
			*side.out = append(*side.out, s...)
		}
	}
	if c.body.proto, err = parseProto(r.Proto); err != nil {
		return c, at(err, "proto")
	}
	if len(r.Ports) > 0 && c.body.proto != protoTCP && c.body.proto != protoUDP {
		return c, at(errors.New("ports need proto tcp or udp"), "ports")
	}
	if len(r.Ports) > MaxSelectors {
		return c, at(fmt.Errorf("more than %d port ranges", MaxSelectors), "ports")
	}
	for i, text := range r.Ports {
		lo, hi, isRange := strings.Cut(text, "-")
		if !isRange {
			hi = lo
		}
		l, errL := strconv.ParseUint(lo, 10, 16)
		h, errH := strconv.ParseUint(hi, 10, 16)
		if errL != nil || errH != nil || l > h {
			return c, at(fmt.Errorf("port %q: want a number or a range like 7400-7500", text), "ports", i)
		}
		c.body.ports = append(c.body.ports, portRange{uint16(l), uint16(h)})
	}
	c.body.lanes, err = laneMask(r.Lanes)
	if len(r.Lanes) == 0 {
		c.body.lanes = allLanes
	}
	return c, at(err, "lanes")
}

const allLanes = 1<<packet.NumLanes - 1

func laneMask(lanes []Lane) (mask uint8, err error) {
	for _, l := range lanes {
		if l >= packet.NumLanes {
			return 0, fmt.Errorf("unknown %s", l)
		}
		mask |= 1 << l
	}
	return mask, nil
}
