// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func subject(n byte, tags ...string) Subject {
	return Subject{ID: identity.PeerID{n}, Name: fmt.Sprintf("robot%d", n), Tags: tags}
}

// rule returns the JSON of a document with one allow rule of the given fields.
func rule(fields string) string {
	if fields != "" {
		fields = "," + fields
	}
	return `{"version":1,"allow":[{"src":["*"],"dst":["*"]` + fields + `}]}`
}

func test(fields string) string {
	return `{"version":1,"tests":[{"src":"*","dst":"*",` + fields + `}]}`
}

func TestParseAccepts(t *testing.T) {
	for name, text := range map[string]string{
		"empty":          `{"version":1}`,
		"space around":   " \n" + rule("") + "\n\t",
		"ports":          rule(`"proto":"tcp","ports":["0","22","7400-7500","65535"]`),
		"lanes":          rule(`"lanes":["critical","telemetry","bulk"]`),
		"id":             rule(`"id":"Tele-op_1.x"`),
		"selectors":      `{"version":1,"allow":[{"src":["name:a","tag:b","node:` + subject(1).ID.String() + `"],"dst":["*"]}]}`,
		"node upper":     `{"version":1,"allow":[{"src":["*"],"dst":["node:` + strings.ToUpper(subject(1).ID.String()) + `"]}]}`,
		"guard":          `{"version":1,"guards":[{"src":["*"],"dst":["*"],"proto":"icmp"}]}`,
		"test":           test(`"proto":"udp","port":1,"lane":"bulk","want":"deny"`),
		"test any proto": test(`"want":"allow"`),
	} {
		if _, err := Parse([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	many := func(one string, n int) string { return strings.TrimSuffix(strings.Repeat(one+",", n), ",") }
	all := `{"src":["*"],"dst":["*"]}`
	for name, text := range map[string]string{
		"nothing":            ``,
		"null":               `null`,
		"array":              `[]`,
		"no version":         `{}`,
		"version 2":          `{"version":2}`,
		"version text":       `{"version":"1"}`,
		"unknown field":      `{"version":1,"deny":[]}`,
		"unknown rule field": rule(`"action":"deny"`),
		"misspelt case":      `{"version":1,"Guards":[]}`,
		"key twice":          `{"version":1,"guards":[` + all + `],"guards":[]}`,
		"rule key twice":     rule(`"src":["name:a"]`),
		"trailing brace":     rule("") + "}",
		"trailing document":  rule("") + rule(""),
		"trailing text":      rule("") + "x",
		"cut off":            rule("")[:20],
		"too large":          rule("") + strings.Repeat(" ", MaxBytes),
		"too many rules":     `{"version":1,"allow":[` + many(all, MaxRules) + `],"guards":[` + all + `]}`,
		"too many tests":     `{"version":1,"tests":[` + many(`{"src":"*","dst":"*","want":"deny"}`, MaxTests+1) + `]}`,
		"too many selectors": `{"version":1,"allow":[{"dst":["*"],"src":[` + many(`"*"`, MaxSelectors+1) + `]}]}`,
		"too many ports":     rule(`"proto":"tcp","ports":[` + many(`"1"`, MaxSelectors+1) + `]`),
		"rule null":          `{"version":1,"allow":[null]}`,
		"no src":             `{"version":1,"allow":[{"dst":["*"]}]}`,
		"empty dst":          `{"version":1,"guards":[{"src":["*"],"dst":[]}]}`,
		"id twice":           `{"version":1,"allow":[{"id":"a","src":["*"],"dst":["*"]},{"id":"a","src":["*"],"dst":["*"]}]}`,
		"id twice, kinds":    `{"version":1,"allow":[{"id":"a","src":["*"],"dst":["*"]}],"guards":[{"id":"a","src":["*"],"dst":["*"]}]}`,
		"id of a place":      rule(`"id":"2"`),
		"id of a guard":      rule(`"id":"guard:a"`),
		"id no rule":         rule(`"id":"no rule"`),
		"id long":            rule(`"id":"` + strings.Repeat("a", 65) + `"`),
		"proto":              rule(`"proto":"sctp"`),
		"proto case":         rule(`"proto":"TCP"`),
		"ports of any":       rule(`"ports":["22"]`),
		"ports of icmp":      rule(`"proto":"icmp","ports":["22"]`),
		"port 65536":         rule(`"proto":"tcp","ports":["65536"]`),
		"port backwards":     rule(`"proto":"tcp","ports":["9-8"]`),
		"port open":          rule(`"proto":"tcp","ports":["9-"]`),
		"port negative":      rule(`"proto":"tcp","ports":["-9"]`),
		"port signed":        rule(`"proto":"tcp","ports":["+9"]`),
		"port spaces":        rule(`"proto":"tcp","ports":["8 - 9"]`),
		"port thrice":        rule(`"proto":"tcp","ports":["7-8-9"]`),
		"port empty":         rule(`"proto":"tcp","ports":[""]`),
		"port name":          rule(`"proto":"tcp","ports":["ssh"]`),
		"port number":        rule(`"proto":"tcp","ports":[22]`),
		"lane":               rule(`"lanes":["express"]`),
		"lane number":        rule(`"lanes":[0]`),
		"test want":          test(`"want":"maybe"`),
		"test no want":       test(`"lane":"bulk"`),
		"test proto":         test(`"proto":"sctp","want":"deny"`),
		"test tcp no port":   test(`"proto":"tcp","want":"deny"`),
		"test icmp port":     test(`"proto":"icmp","port":1,"want":"deny"`),
		"test port big":      test(`"proto":"tcp","port":65536,"want":"deny"`),
		"test selector":      `{"version":1,"tests":[{"src":"robot","dst":"*","want":"deny"}]}`,
	} {
		d, err := Parse([]byte(text))
		if !errors.Is(err, ErrDocument) || d != nil {
			t.Errorf("%s: Parse = %v, %v, want nil, ErrDocument", name, d, err)
		}
	}
	for _, sel := range []string{
		"", "**", "* ", "a", "name:", "name:A", "name:a.b", "name:-a", "tag:", "tag:a_b", "tag:*", "user:a", "10.66.0.1",
		"node:", "node:aaaa", "node:" + identity.PeerID{}.String(), "node:" + strings.Repeat("7", 52), "Name:a", "name: a",
	} {
		b, _ := json.Marshal(map[string]any{"version": 1, "allow": []any{map[string]any{"src": []string{sel}, "dst": []string{"*"}}}})
		if _, err := Parse(b); !errors.Is(err, ErrDocument) {
			t.Errorf("selector %q: %v, want ErrDocument", sel, err)
		}
	}
}

func TestValidateGoValues(t *testing.T) {
	d := Default()
	d.Allow[0].Lanes = []Lane{7}
	if err := d.Validate(); !errors.Is(err, ErrDocument) {
		t.Errorf("rule lane 7: %v", err)
	}
	d = Default()
	d.Tests = []Test{{Src: "*", Dst: "*", Lane: 7, Want: "deny"}}
	if err := d.Validate(); !errors.Is(err, ErrDocument) {
		t.Errorf("test lane 7: %v", err)
	}
}

// The first error is always the same one, whatever the order of maps.
func TestValidateIsDeterministic(t *testing.T) {
	text := []byte(`{"version":1,"allow":[{"src":["x"],"dst":["*"]}],"guards":[{"src":["y"],"dst":["*"]}]}`)
	_, first := Parse(text)
	for range 20 {
		if _, err := Parse(text); err.Error() != first.Error() {
			t.Fatalf("%v, before %v", err, first)
		}
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	full := &Document{
		Version: 1,
		Allow: []Rule{
			{ID: "ssh", Src: []string{"tag:ops"}, Dst: []string{"*"}, Proto: "tcp", Ports: []string{"22", "8000-8010"}, Lanes: []Lane{Bulk}},
			{Src: []string{"name:a", "node:" + subject(3).ID.String()}, Dst: []string{"tag:b"}},
		},
		Guards: []Rule{{Src: []string{"*"}, Dst: []string{"*"}, Lanes: []Lane{Critical}}},
		Tests:  []Test{{Src: "name:a", Dst: "*", Proto: "udp", Port: 9, Lane: Critical, Want: "deny"}},
	}
	for name, d := range map[string]*Document{"default": Default(), "full": full} {
		got, err := Parse(d.Marshal())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(d, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
}

func TestDefault(t *testing.T) {
	a, b := subject(1), subject(2, "x")
	for _, proto := range []string{"", "icmp", "tcp", "udp"} {
		for lane := Critical; lane <= Bulk; lane++ {
			if got := Default().Explain(a, b, proto, 1, lane); !got.Allow || got.Rule != "enrolled" {
				t.Errorf("%q %s: %+v", proto, lane, got)
			}
		}
	}
}

func TestExplain(t *testing.T) {
	d := &Document{
		Version: 1,
		Allow: []Rule{
			{ID: "web", Src: []string{"tag:ops"}, Dst: []string{"name:robot2"}, Proto: "tcp", Ports: []string{"80-90"}},
			{Src: []string{"tag:ops"}, Dst: []string{"*"}, Proto: "icmp", Lanes: []Lane{Bulk}},
			{ID: "free", Src: []string{"node:" + subject(3).ID.String()}, Dst: []string{"*"}},
		},
		Guards: []Rule{
			{ID: "safety", Src: []string{"tag:guest"}, Dst: []string{"*"}, Lanes: []Lane{Critical}},
			{Src: []string{"*"}, Dst: []string{"*"}, Proto: "udp", Ports: []string{"53"}},
		},
	}
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	ops, two, three, guest := subject(1, "ops"), subject(2), subject(3), subject(4, "ops", "guest")
	for _, tc := range []struct {
		src, dst Subject
		proto    string
		port     uint16
		lane     Lane
		allow    bool
		rule     string
	}{
		{ops, two, "tcp", 80, Bulk, true, "web"},
		{ops, two, "tcp", 90, Bulk, true, "web"},
		{ops, two, "tcp", 79, Bulk, false, NoRule},
		{ops, two, "udp", 80, Bulk, false, NoRule},
		{two, ops, "tcp", 80, Bulk, false, NoRule}, // who initiates
		{ops, three, "tcp", 80, Bulk, false, NoRule},
		{ops, three, "icmp", 0, Bulk, true, "2"},
		{ops, three, "icmp", 0, Critical, false, NoRule},
		{three, two, "", 0, Critical, true, "free"},
		{three, two, "udp", 53, Critical, false, "guard:2"},
		{guest, two, "tcp", 80, Critical, false, "guard:safety"},
		{guest, two, "tcp", 80, Bulk, true, "web"},
		{ops, two, "", 0, Bulk, false, NoRule},
		{three, two, "sctp", 0, Bulk, false, NoRule},
	} {
		got := d.Explain(tc.src, tc.dst, tc.proto, tc.port, tc.lane)
		if got.Allow != tc.allow || got.Rule != tc.rule || got.Why == "" {
			t.Errorf("%s to %s %s/%d %s = %+v, want %v by %q", tc.src.Name, tc.dst.Name, tc.proto, tc.port, tc.lane, got, tc.allow, tc.rule)
		}
	}
	if got, want := d.Explain(ops, two, "tcp", 80, Bulk).Why, "allowed by rule web: robot1 to robot2, tcp port 80, lane bulk"; got != want {
		t.Errorf("Why = %q, want %q", got, want)
	}
	if got, want := d.Explain(ops, two, "", 0, Bulk).Why, "denied, since no rule allows it: robot1 to robot2, lane bulk"; got != want {
		t.Errorf("Why = %q, want %q", got, want)
	}
}

// A guard that cannot be understood must not be left out.
func TestExplainInvalidDenies(t *testing.T) {
	d := Default()
	d.Guards = []Rule{{Src: []string{"nonsense"}, Dst: []string{"*"}}}
	if got := d.Explain(subject(1), subject(2), "", 0, Bulk); got.Allow {
		t.Errorf("%+v", got)
	}
}

func TestCheck(t *testing.T) {
	nodes := []Subject{subject(1, "ops"), subject(2), subject(3)}
	doc := func(tests ...Test) *Document {
		return &Document{
			Version: 1, Tests: tests,
			Allow: []Rule{{Src: []string{"tag:ops"}, Dst: []string{"*"}, Proto: "tcp", Ports: []string{"22"}}},
		}
	}
	for name, tc := range map[string]struct {
		test Test
		want string // in the error; "" holds
	}{
		"holds":         {Test{Src: "tag:ops", Dst: "*", Proto: "tcp", Port: 22, Want: "allow"}, ""},
		"deny holds":    {Test{Src: "name:robot2", Dst: "*", Proto: "tcp", Port: 22, Want: "deny"}, ""},
		"fails":         {Test{Src: "tag:ops", Dst: "name:robot3", Proto: "tcp", Port: 23, Want: "allow"}, "robot1 to robot3"},
		"one of many":   {Test{Src: "*", Dst: "name:robot2", Proto: "tcp", Port: 22, Want: "allow"}, "robot3 to robot2"},
		"no src":        {Test{Src: "tag:nobody", Dst: "*", Want: "deny"}, "matches no two nodes"},
		"no dst":        {Test{Src: "*", Dst: "name:nobody", Want: "deny"}, "matches no two nodes"},
		"self only":     {Test{Src: "name:robot1", Dst: "name:robot1", Want: "deny"}, "matches no two nodes"},
		"both problems": {Test{Src: "tag:ops", Dst: "*", Want: "allow"}, "robot1 to robot2"},
	} {
		d := doc(tc.test)
		if err := d.Validate(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err := d.Check(nodes)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if err := doc(Test{Src: "*", Dst: "*", Want: "deny"}).Check(nil); err == nil {
		t.Error("tests hold on no inventory")
	}
}

func FuzzParseDocument(f *testing.F) {
	f.Add(Default().Marshal())
	f.Add([]byte(rule(`"proto":"tcp","ports":["1-2"],"lanes":["bulk"],"id":"x"`)))
	f.Add([]byte(test(`"proto":"udp","port":1,"want":"deny"`)))
	f.Add([]byte(`{"version":1,"guards":[{"src":["tag:a"],"dst":["name:b"]}]} x`))
	f.Add([]byte(role(`,"publish":["bulk"],"budgets":{"bulk":{"packets_per_second":1,"burst_packets":1,"bits_per_second":1,"burst_bits":16000}}`)))
	f.Add([]byte(role(`,"publish":[]`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse(b)
		if err != nil {
			if d != nil || !errors.Is(err, ErrDocument) {
				t.Fatalf("Parse = %v, %v", d, err)
			}
			return
		}
		m := d.Marshal()
		again, err := Parse(m)
		if err != nil {
			if len(m) > MaxBytes { // indentation may pass the limit
				return
			}
			t.Fatalf("own text: %v\n%s", err, m)
		}
		if !bytes.Equal(again.Marshal(), m) {
			t.Fatalf("differs after a round trip:\n%s", m)
		}
		nodes := []Subject{subject(1, "a"), subject(2)}
		_ = d.Check(nodes)
		d.Explain(nodes[0], nodes[1], "tcp", 22, Bulk)
		e := NewEngine(nodes[0])
		e.Apply(d, nodes[1:])
		e.SpendOutbound(Bulk, 100, 1)
		if _, _, err := d.Reach(nodes); err != nil {
			t.Fatal(err)
		}
		if same, err := Diff(d, again, nodes); err != nil || len(same.Rules)+len(same.Reach) > 0 {
			t.Fatalf("differs from itself: %+v, %v", same, err)
		}
		if _, err := Diff(d, Default(), nodes); err != nil {
			t.Fatal(err)
		}
		if _, err := d.BudgetFor(nodes[0], Bulk); err != nil {
			t.Fatal(err)
		}
	})
}
