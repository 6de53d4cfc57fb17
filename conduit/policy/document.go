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
	// ID names the rule in counters and explanations; empty means its place. At
	// most 64 of A-Z a-z 0-9 . _ -, not digits alone, once in a document.
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
	// Lanes none means all. Replies too must come on a lane that is allowed.
	Lanes []Lane `json:"lanes,omitempty"`
}

// Test states what the policy must decide.
type Test struct {
	// Src and Dst are selectors that match at least one node each; the test must
	// hold for every pair.
	Src   string `json:"src"`
	Dst   string `json:"dst"`
	Proto string `json:"proto,omitempty"`
	// Port is needed with tcp and udp, else refused.
	Port uint16 `json:"port,omitempty"`
	// Lane is critical if left out.
	Lane Lane `json:"lane"`
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

// Parse reads a document strictly: unknown, repeated or differently spelt keys,
// unknown lanes, protocols and selectors, trailing data and anything else that
// Validate refuses are errors, never ignored.
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
	// encoding/json takes keys in any case and lets the last of two win: what a
	// person read might not be what is in force.
	if err := checkKeys(json.NewDecoder(bytes.NewReader(b))); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return d, nil
}

// checkKeys refuses keys that are not spelled as in the types above or that
// appear twice in an object. The text must have been decoded, which bounds its
// depth.
func checkKeys(dec *json.Decoder) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for dec.More() {
		if delim == '{' {
			tok, err := dec.Token()
			if err != nil {
				return err
			}
			key, _ := tok.(string)
			if seen[key] || !slices.Contains(keys, key) {
				return fmt.Errorf("key %q is misspelt or there twice", key)
			}
			seen[key] = true
		}
		if err := checkKeys(dec); err != nil {
			return err
		}
	}
	_, err = dec.Token() // the closing bracket
	return err
}

var keys = []string{
	"version", "allow", "guards", "tests",
	"id", "src", "dst", "proto", "ports", "lanes", "port", "lane", "want",
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
	if _, err := d.compile(); err != nil {
		return fmt.Errorf("%w: %w", ErrDocument, err)
	}
	seen := map[string]bool{}
	for _, r := range slices.Concat(d.Allow, d.Guards) {
		if r.ID != "" && seen[r.ID] {
			return fmt.Errorf("%w: rule id %q is used twice", ErrDocument, r.ID)
		}
		seen[r.ID] = true
	}
	for i, t := range d.Tests {
		p, errP := parseProto(t.Proto)
		_, errS := parseSelector(t.Src)
		_, errD := parseSelector(t.Dst)
		if err := errors.Join(errP, errS, errD); err != nil {
			return fmt.Errorf("%w: test %d: %w", ErrDocument, i+1, err)
		}
		if (p == protoTCP || p == protoUDP) != (t.Port != 0) {
			return fmt.Errorf("%w: test %d: tcp and udp need a port, others have none", ErrDocument, i+1)
		}
		if t.Lane >= packet.NumLanes {
			return fmt.Errorf("%w: test %d: %s", ErrDocument, i+1, t.Lane)
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
	b, err := d.compile()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDocument, err)
	}
	var errs []error
	for i, t := range d.Tests {
		ran := false
		for _, src := range match(nodes, t.Src) {
			for _, dst := range match(nodes, t.Dst) {
				if src.ID == dst.ID {
					continue
				}
				ran = true
				got := b.explain(src, dst, t.Proto, t.Port, t.Lane)
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
	b, err := d.compile()
	if err != nil {
		return Decision{Rule: NoRule, Why: err.Error()}
	}
	return b.explain(src, dst, proto, port, lane)
}

func (b *book) explain(src, dst Subject, proto string, port uint16, lane Lane) Decision {
	p, err := parseProto(proto)
	if err != nil {
		return Decision{Rule: NoRule, Why: err.Error()}
	}
	words := []string{src.Name + " to " + dst.Name}
	if proto != "" {
		words = append(words, proto)
	}
	if p == protoTCP || p == protoUDP {
		words[len(words)-1] += " port " + strconv.Itoa(int(port))
	}
	flow := strings.Join(append(words, "lane "+lane.String()), ", ")
	hit := func(rules []bookRule) (string, bool) {
		for i := range rules {
			c := &rules[i]
			if c.src.matches(&src) && c.dst.matches(&dst) && c.body.matches(p, port, true, lane) {
				return c.name, true
			}
		}
		return "", false
	}
	if name, ok := hit(b.guards); ok {
		return Decision{Rule: name, Why: fmt.Sprintf("denied by %s: %s", name, flow)}
	}
	if name, ok := hit(b.allow); ok {
		return Decision{Allow: true, Rule: name, Why: fmt.Sprintf("allowed by rule %s: %s", name, flow)}
	}
	return Decision{Rule: NoRule, Why: "denied, since no rule allows it: " + flow}
}
