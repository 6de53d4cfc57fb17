// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Lane is a priority class; lanes are resources that rules allow.
type Lane = packet.Lane

// The lanes.
const (
	Critical  = packet.Critical
	Telemetry = packet.Telemetry
	Bulk      = packet.Bulk
)

// Limits of a document.
const (
	MaxBytes     = 1 << 20
	MaxRules     = 4096
	MaxSelectors = 256
	MaxTests     = 4096
)

// ErrDocument is returned for a document that cannot be put into force.
var ErrDocument = errors.New("bad policy")

// Document is a policy as people write it and the hub stores it.
type Document struct {
	// Version is that of the language: 1.
	Version int    `json:"version"`
	Allow   []Rule `json:"allow,omitempty"`
	// Guards deny what they match; nothing overrides them.
	Guards []Rule `json:"guards,omitempty"`
	// Tests must hold for the document to be activated.
	Tests []Test `json:"tests,omitempty"`
}

// Rule matches flows from Src to Dst.
type Rule struct {
	// ID names the rule in counters and explanations; empty means its place.
	ID string `json:"id,omitempty"`
	// Src and Dst are selectors: "*", "name:NAME", "tag:TAG" or "node:PEERID".
	// Any one that matches is enough.
	Src []string `json:"src"`
	Dst []string `json:"dst"`
	// Proto is any (also empty), icmp (of either IP version), tcp or udp.
	Proto string `json:"proto,omitempty"`
	// Ports are destination ports or ranges, "22" or "7400-7500"; none means all.
	// Only with tcp and udp.
	Ports []string `json:"ports,omitempty"`
	// Lanes none means all.
	Lanes []Lane `json:"lanes,omitempty"`
}

// Test states what the policy must decide.
type Test struct {
	// Src and Dst are selectors that match at least one node each; the test must
	// hold for every pair.
	Src   string `json:"src"`
	Dst   string `json:"dst"`
	Proto string `json:"proto,omitempty"`
	Port  uint16 `json:"port,omitempty"`
	Lane  Lane   `json:"lane"`
	// Want is allow or deny.
	Want string `json:"want"`
}

// Subject is a node to which rules apply.
type Subject struct {
	ID   identity.PeerID
	Name string
	Tags []string
}

// Default returns the policy of a new mesh: all enrolled nodes may ping and talk
// on all lanes.
func Default() *Document {
	return &Document{Version: 1, Allow: []Rule{{ID: "enrolled", Src: []string{"*"}, Dst: []string{"*"}}}}
}

// Parse reads a document strictly: unknown fields, trailing data and anything
// that Validate refuses are errors.
func Parse(b []byte) (*Document, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrDocument, MaxBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	d := new(Document)
	if err := dec.Decode(d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: data after the document", ErrDocument)
	}
	return d, d.Validate()
}

// Marshal returns the document as JSON.
func (d *Document) Marshal() []byte {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		panic("policy: marshal: " + err.Error()) // no field can fail
	}
	return append(b, '\n')
}

// Validate checks all that can be checked without knowing the nodes.
func (d *Document) Validate() error {
	if d.Version != 1 {
		return fmt.Errorf("%w: version %d, want 1", ErrDocument, d.Version)
	}
	if len(d.Allow)+len(d.Guards) > MaxRules || len(d.Tests) > MaxTests {
		return fmt.Errorf("%w: more than %d rules or %d tests", ErrDocument, MaxRules, MaxTests)
	}
	seen := map[string]bool{}
	for kind, rules := range map[string][]Rule{"allow": d.Allow, "guard": d.Guards} {
		for i := range rules {
			r := &rules[i]
			if _, err := r.compile(); err != nil {
				return fmt.Errorf("%w: %s: %w", ErrDocument, r.name(kind, i), err)
			}
			if r.ID != "" && seen[r.ID] {
				return fmt.Errorf("%w: rule id %q is used twice", ErrDocument, r.ID)
			}
			seen[r.ID] = true
		}
	}
	for i, t := range d.Tests {
		_, errP := parseProto(t.Proto)
		_, errS := parseSelector(t.Src)
		_, errD := parseSelector(t.Dst)
		if err := errors.Join(errP, errS, errD); err != nil {
			return fmt.Errorf("%w: test %d: %w", ErrDocument, i+1, err)
		}
		if t.Want != "allow" && t.Want != "deny" {
			return fmt.Errorf("%w: test %d: want %q: must be allow or deny", ErrDocument, i+1, t.Want)
		}
	}
	return nil
}

// name is what counters and explanations call the rule.
func (r *Rule) name(kind string, i int) string {
	n := r.ID
	if n == "" {
		n = strconv.Itoa(i + 1)
	}
	if kind == "guard" {
		return "guard:" + n
	}
	return n
}

// Check runs the document's tests against nodes. The error names each test that
// does not hold, and each that matches no node.
func (d *Document) Check(nodes []Subject) error {
	var errs []error
	for i, t := range d.Tests {
		ran := false
		for _, src := range match(nodes, t.Src) {
			for _, dst := range match(nodes, t.Dst) {
				if src.ID == dst.ID {
					continue
				}
				ran = true
				got := d.Explain(src, dst, t.Proto, t.Port, t.Lane)
				if got.Allow != (t.Want == "allow") {
					errs = append(errs, fmt.Errorf("test %d: %s to %s: want %s, %s", i+1, src.Name, dst.Name, t.Want, got.Why))
				}
			}
		}
		if !ran {
			errs = append(errs, fmt.Errorf("test %d: %s to %s matches no two nodes", i+1, t.Src, t.Dst))
		}
	}
	return errors.Join(errs...)
}

func match(nodes []Subject, sel string) (out []Subject) {
	s, err := parseSelector(sel)
	if err != nil {
		return nil
	}
	for _, n := range nodes {
		if s.matches(&n) {
			out = append(out, n)
		}
	}
	return out
}

// Decision is the answer for one flow and its reason.
type Decision struct {
	Allow bool
	// Rule is what decided; "no rule" where none matched.
	Rule string
	// Why is one sentence.
	Why string
}

// NoRule is the name under which default denials are counted.
const NoRule = "no rule"

// Explain decides about a new flow from src to dst and says why. An empty proto
// stands for one that only rules with proto any match.
func (d *Document) Explain(src, dst Subject, proto string, port uint16, lane Lane) Decision {
	flow := fmt.Sprintf("%s to %s, %s port %d, lane %s", src.Name, dst.Name, proto, port, lane)
	p, err := parseProto(proto)
	if err != nil {
		return Decision{Rule: NoRule, Why: err.Error()}
	}
	hit := func(kind string, rules []Rule) (string, bool) {
		for i := range rules {
			c, err := rules[i].compile()
			if err == nil && c.src.matches(&src) && c.dst.matches(&dst) && c.body.matches(p, port, true, lane) {
				return rules[i].name(kind, i), true
			}
		}
		return "", false
	}
	if name, ok := hit("guard", d.Guards); ok {
		return Decision{Rule: name, Why: fmt.Sprintf("denied by %s: %s", name, flow)}
	}
	if name, ok := hit("allow", d.Allow); ok {
		return Decision{Allow: true, Rule: name, Why: fmt.Sprintf("allowed by rule %s: %s", name, flow)}
	}
	return Decision{Rule: NoRule, Why: "denied, since no rule allows it: " + flow}
}

// selector is one parsed src or dst word.
type selector struct {
	all       bool
	name, tag string
	id        identity.PeerID
}

type selectors []selector

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
		return selector{id: id}, err
	}
	return selector{}, fmt.Errorf("selector %q: want *, name:NAME, tag:TAG or node:PEERID", s)
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

func (b *body) matches(p proto, port uint16, hasPort bool, lane Lane) bool {
	if b.lanes>>lane&1 == 0 || b.proto != protoAny && b.proto != p {
		return false
	}
	if len(b.ports) == 0 {
		return true
	}
	if !hasPort {
		return false
	}
	for _, r := range b.ports {
		if port >= r.lo && port <= r.hi {
			return true
		}
	}
	return false
}

// everything reports whether the body matches every packet.
func (b *body) everything() bool {
	return b.proto == protoAny && len(b.ports) == 0 && b.lanes == 1<<packet.NumLanes-1
}

type compiled struct {
	src, dst selectors
	body     body
}

func (r *Rule) compile() (c compiled, err error) {
	for _, side := range []struct {
		words []string
		out   *selectors
		what  string
	}{{r.Src, &c.src, "src"}, {r.Dst, &c.dst, "dst"}} {
		if len(side.words) == 0 || len(side.words) > MaxSelectors {
			return c, fmt.Errorf("%s has %d selectors, want 1 to %d", side.what, len(side.words), MaxSelectors)
		}
		for _, w := range side.words {
			s, err := parseSelector(w)
			if err != nil {
				return c, err
			}
			*side.out = append(*side.out, s)
		}
	}
	if c.body.proto, err = parseProto(r.Proto); err != nil {
		return c, err
	}
	if len(r.Ports) > 0 && c.body.proto != protoTCP && c.body.proto != protoUDP {
		return c, errors.New("ports need proto tcp or udp")
	}
	if len(r.Ports) > MaxSelectors {
		return c, fmt.Errorf("more than %d port ranges", MaxSelectors)
	}
	for _, text := range r.Ports {
		lo, hi, isRange := strings.Cut(text, "-")
		if !isRange {
			hi = lo
		}
		l, errL := strconv.ParseUint(lo, 10, 16)
		h, errH := strconv.ParseUint(hi, 10, 16)
		if errL != nil || errH != nil || l > h {
			return c, fmt.Errorf("port %q: want a number or a range like 7400-7500", text)
		}
		c.body.ports = append(c.body.ports, portRange{uint16(l), uint16(h)})
	}
	for _, l := range r.Lanes {
		c.body.lanes |= 1 << l
	}
	if len(r.Lanes) == 0 {
		c.body.lanes = 1<<packet.NumLanes - 1
	}
	return c, nil
}
