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
	MaxRules     = 10_000
	MaxSelectors = 256
	MaxTests     = 4096
	MaxRoles     = 256
)

// Errors of policies and their parts.
var (
	// ErrDocument is returned for a document that cannot be put into force.
	ErrDocument = errors.New("bad policy")
	// ErrSelector is returned for a word that names no nodes.
	ErrSelector = errors.New("selector")
)

// Document is a policy as people write it and the hub stores it.
type Document struct {
	// Version is that of the language: 1.
	Version int    `json:"version"`
	Allow   []Rule `json:"allow,omitempty"`
	// Guards deny what they match; nothing overrides them.
	Guards []Rule `json:"guards,omitempty"`
	// Roles name groups of nodes and confine what they may publish.
	Roles []Role `json:"roles,omitempty"`
	// Tests must hold for the document to be activated.
	Tests []Test `json:"tests,omitempty"`
}

// Rule matches flows from Src to Dst.
type Rule struct {
	// ID names the rule in counters and explanations; empty means its place. At
	// most 64 of A-Z a-z 0-9 . _ -, not digits alone, once in a document.
	ID string `json:"id,omitempty"`
	// Src and Dst are selectors: "*", "name:NAME", "tag:TAG", "role:ROLE" or
	// "node:PEERID". Any one that matches is enough.
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

// Role is a name for nodes, and a sandbox where Publish is there. Roles never
// allow anything: that is for the rules.
type Role struct {
	// Name is as a tag's, once in a document.
	Name string `json:"name"`
	// Members are selectors; "role:" is not among them.
	Members []string `json:"members"`
	// Publish are the lanes on which members may begin flows. Left out, the role
	// confines nobody; empty, its members may begin nothing.
	Publish []Lane `json:"publish,omitzero"`
	// Budgets limit what a member sends on lanes that Publish names.
	Budgets map[Lane]Limit `json:"budgets,omitempty"`
}

// Limit is a rate with its burst; zero fields mean no limit, for a burst: what
// the rate gives in 100 ms, at least one packet.
type Limit struct {
	PacketsPerSecond uint64 `json:"packets_per_second,omitempty"`
	BurstPackets     uint64 `json:"burst_packets,omitempty"`
	// Bits are those of the inner packets.
	BitsPerSecond uint64 `json:"bits_per_second,omitempty"`
	BurstBits     uint64 `json:"burst_bits,omitempty"`
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

// ParseLane reads "critical", "telemetry" or "bulk".
func ParseLane(s string) (Lane, error) { return packet.ParseLane(s) }

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
	if tok == nil {
		return errors.New("null: leave the key out instead")
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
	"version", "allow", "guards", "roles", "tests",
	"name", "members", "publish", "budgets", "critical", "telemetry", "bulk",
	"packets_per_second", "burst_packets", "bits_per_second", "burst_bits",
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

// Validate checks all that can be checked without knowing the nodes. Errors about
// one place in the document are a Problem.
func (d *Document) Validate() error {
	if err := d.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrDocument, err)
	}
	return nil
}

func (d *Document) validate() error {
	if d.Version != 1 {
		return at(fmt.Errorf("version %d, want 1", d.Version), "version")
	}
	if len(d.Allow)+len(d.Guards) > MaxRules || len(d.Tests) > MaxTests || len(d.Roles) > MaxRoles {
		return fmt.Errorf("more than %d rules, %d tests or %d roles", MaxRules, MaxTests, MaxRoles)
	}
	b, err := d.compile()
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, k := range []struct {
		key   string
		rules []Rule
	}{{"allow", d.Allow}, {"guards", d.Guards}} {
		for i := range k.rules {
			id := k.rules[i].ID
			if id != "" && seen[id] {
				return at(fmt.Errorf("rule id %q is used twice", id), k.key, i, "id")
			}
			seen[id] = true
		}
	}
	for i := range d.Tests {
		if err := d.Tests[i].validate(b); err != nil {
			return at(fmt.Errorf("test %d: %w", i+1, err), "tests", i)
		}
	}
	return nil
}

func (t *Test) validate(b *book) error {
	if _, err := b.selector(t.Src); err != nil {
		return at(err, "src")
	}
	if _, err := b.selector(t.Dst); err != nil {
		return at(err, "dst")
	}
	p, err := parseProto(t.Proto)
	switch {
	case err != nil:
		return at(err, "proto")
	case (p == protoTCP || p == protoUDP) != (t.Port != 0):
		return at(errors.New("tcp and udp need a port, others have none"), "port")
	case t.Lane >= packet.NumLanes:
		return at(fmt.Errorf("unknown %s", t.Lane), "lane")
	case t.Want != "allow" && t.Want != "deny":
		return at(fmt.Errorf("want %q: must be allow or deny", t.Want), "want")
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
