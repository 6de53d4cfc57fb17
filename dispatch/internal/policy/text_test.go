// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

const sample = `// The fleet's policy.
{
	"version": 1,
	/* who may talk */
	"allow": [
		{"id": "ssh", "src": ["role:ops"], "dst": ["*"], "proto": "tcp", "ports": ["22"]}, // only they
	],
	"roles": [
		{"name": "ops", "members": ["tag:ops",]},
		{"name": "cam", "members": ["tag:cam"], "publish": ["bulk"], "budgets": {"bulk": {"bits_per_second": 1000000}}},
	],
	"tests": [{"src": "role:ops", "dst": "*", "proto": "tcp", "port": 22, "want": "allow"}],
}
`

func TestParse(t *testing.T) {
	got, err := Parse(sample)
	if err != nil {
		t.Fatal(err)
	}
	want := &policy.Document{
		Version: 1,
		Allow:   []policy.Rule{{ID: "ssh", Src: []string{"role:ops"}, Dst: []string{"*"}, Proto: "tcp", Ports: []string{"22"}}},
		Roles: []policy.Role{
			{Name: "ops", Members: []string{"tag:ops"}},
			{
				Name: "cam", Members: []string{"tag:cam"}, Publish: []policy.Lane{policy.Bulk},
				Budgets: map[policy.Lane]policy.Limit{policy.Bulk: {BitsPerSecond: 1_000_000}},
			},
		},
		Tests: []policy.Test{{Src: "role:ops", Dst: "*", Proto: "tcp", Port: 22, Want: "allow"}},
	}
	if diff := cmp.Diff(want, got.Document); diff != "" {
		t.Error(diff)
	}
	if got.Source != sample {
		t.Error("the source changed")
	}
	for pointer, want := range map[string][2]int{
		"": {2, 1}, "/tests/0": {12, 12}, "/tests/0/lane": {12, 12}, "/allow/0/ports/0": {6, 78}, "/nowhere/3": {2, 1},
	} {
		if line, column := got.Place(pointer); line != want[0] || column != want[1] {
			t.Errorf("Place(%q) = %d:%d, want %v", pointer, line, column, want)
		}
	}
	// The text of the node's own form is a text too.
	if _, err := Parse(string(got.Document.Marshal())); err != nil {
		t.Error(err)
	}
}

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{``, "1:1: parsing value: unexpected EOF\n\t\n\t^"},
		{"{\n\t\"version\": 1\n\t\"allow\": []}", "3:2: invalid character '\"' after object value (expecting ',' or '}')\n\t\t\"allow\": []}\n\t\t^"},
		{`{"version": 1} x`, "1:16: invalid character 'x' after top-level value\n\t{\"version\": 1} x\n\t               ^"},
		{`{"version": 2}`, "1:13: version 2, want 1\n\t{\"version\": 2}\n\t            ^"},
		{`{}`, "1:1: version 0, want 1\n\t{}\n\t^"},
		{`[]`, "1:1: want an object in { }\n\t[]\n\t^"},
		{`{"version": "1"}`, "1:13: want a whole number that is not negative and not too large\n\t{\"version\": \"1\"}\n\t            ^"},
		{`{"version": 1, "deny": []}`, "1:16: unknown key \"deny\": want allow, guards, roles, tests, version\n\t{\"version\": 1, \"deny\": []}\n\t               ^"},
		{`{"version": 1, "Allow": []}`, "1:16: unknown key \"Allow\": want allow, guards, roles, tests, version\n\t{\"version\": 1, \"Allow\": []}\n\t               ^"},
		{`{"version": 1, "version": 1}`, "1:16: key \"version\" is there twice\n\t{\"version\": 1, \"version\": 1}\n\t               ^"},
		{`{"version": 1, "allow": null}`, "1:25: null: leave the key out instead\n\t{\"version\": 1, \"allow\": null}\n\t                        ^"},
		{`{"version": 1, "allow": {}}`, "1:25: want a list in [ ]\n\t{\"version\": 1, \"allow\": {}}\n\t                        ^"},
		{"{\"version\": 1,\r\n \"allow\": [\r\n  // é\r\n  {\"id\": \"é\", \"src\": [\"robot\"], \"dst\": [\"*\"]}]}", "4:10: allow rule \"é\": id: want at most 64 of A-Z a-z 0-9 . _ -, not digits alone\n\t  {\"id\": \"é\", \"src\": [\"robot\"], \"dst\": [\"*\"]}]}\n\t         ^"},
		{"{\"version\": 1, \"allow\": [\n  /* é */ {\"src\": [\"*\", \"robot\"], \"dst\": [\"*\"]}]}", "2:25: allow rule \"1\": selector \"robot\": want *, name:NAME, tag:TAG, role:ROLE or node:PEERID\n\t  /* é */ {\"src\": [\"*\", \"robot\"], \"dst\": [\"*\"]}]}\n\t                        ^"},
		{`{"version": 1, "allow": [{"src": ["*"], "dst": ["*"], "lanes": ["fast"]}]}`, "1:65: unknown lane \"fast\": want critical, telemetry or bulk\n\t{\"version\": 1, \"allow\": [{\"src\": [\"*\"], \"dst\": [\"*\"], \"lanes\": [\"fast\"]}]}\n\t                                                                ^"},
		{`{"version": 1, "tests": [{"src": "*", "dst": "*", "port": 70000, "want": "deny"}]}`, "1:59: want a whole number that is not negative and not too large\n\t{\"version\": 1, \"tests\": [{\"src\": \"*\", \"dst\": \"*\", \"port\": 70000, \"want\": \"deny\"}]}\n\t                                                          ^"},
		{`{"version": 1, "roles": [{"name": "a", "members": ["*"], "publish": ["bulk"], "budgets": {"fast": {}}}]}`, "1:91: unknown lane \"fast\": want critical, telemetry or bulk\n\t{\"version\": 1, \"roles\": [{\"name\": \"a\", \"members\": [\"*\"], \"publish\": [\"bulk\"], \"budgets\": {\"fast\": {}}}]}\n\t" + strings.Repeat(" ", 90) + "^"},
		{"{\"version\": 1, \"note\": \"\xff\"}", "1:25: not UTF-8\n\t{\"version\": 1, \"note\": \"?\"}\n\t                        ^"},
		{strings.Repeat("[", 40), "1:33: nested deeper than 32\n\t" + strings.Repeat("[", 40) + "\n\t" + strings.Repeat(" ", 32) + "^"},
		{strings.Repeat(" ", 300) + "x" + strings.Repeat(" ", 300), "1:301: invalid literal: x\n\t" + strings.Repeat(" ", 79) + "x" + strings.Repeat(" ", 80) + "\n\t" + strings.Repeat(" ", 79) + "^"},
		{strings.Repeat(" ", MaxText) + "{}", "larger than 1044480 bytes"},
	} {
		got, err := Parse(tc.text)
		e, ok := errors.AsType[*Error](err)
		if got != nil || !ok || !errors.Is(err, policy.ErrDocument) {
			t.Errorf("%.80s: %v, %v", tc.text, got, err)
			continue
		}
		if diff := cmp.Diff(tc.want, e.Error()); diff != "" {
			t.Errorf("%.80s: -want +got\n%s", tc.text, diff)
		}
	}
}

// Whatever policy.Parse refuses for its shape has a place in the text.
func TestShapeIsAsStrict(t *testing.T) {
	for _, text := range []string{
		`{"version":1,"allow":[{"src":"*","dst":["*"]}]}`,
		`{"version":1,"allow":[{"src":["*"],"dst":[1]}]}`,
		`{"version":1,"allow":[{"src":["*"],"dst":["*"],"x":1}]}`,
		`{"version":1,"allow":["*"]}`,
		`{"version":1,"roles":[{"name":1}]}`,
		`{"version":1,"roles":[{"name":"a","members":["*"],"publish":["bulk"],"budgets":{"bulk":[]}}]}`,
		`{"version":1,"roles":[{"name":"a","members":["*"],"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":1.5}}}]}`,
		`{"version":1,"roles":[{"name":"a","members":["*"],"publish":["bulk"],"budgets":{"bulk":{"bits_per_second":"1"}}}]}`,
		`{"version":1,"tests":[{"src":"*","dst":"*","lane":0,"want":"deny"}]}`,
		`{"version":1e99}`, `{"version":true}`, `"x"`, `1`,
	} {
		_, err := Parse(text)
		if e, ok := errors.AsType[*Error](err); !ok || e.Line == 0 {
			t.Errorf("%s: %v has no place", text, err)
		}
		if _, err := policy.Parse([]byte(text)); err == nil {
			t.Errorf("%s: policy.Parse accepts it", text)
		}
	}
}

func TestFormat(t *testing.T) {
	got, err := Format(`{"version":1,"allow":[{"src":["*"],"dst":["*"]},],/* x */}`)
	if err != nil || !strings.Contains(got, "/* x */") || !strings.Contains(got, `"version": 1`) {
		t.Errorf("Format = %q, %v", got, err)
	}
	if again, err := Format(got); err != nil || again != got {
		t.Errorf("formatting twice differs: %q, %v", again, err)
	}
	for _, bad := range []string{"{", strings.Repeat("[", 10_000)} {
		if got, err := Format(bad); err == nil || got != "" {
			t.Errorf("Format(%.10s) = %q, %v", bad, got, err)
		}
	}
}

func TestTooDeep(t *testing.T) {
	for text, want := range map[string]int{
		strings.Repeat("[", maxDepth):                        -1,
		strings.Repeat("[", maxDepth) + "{":                  maxDepth,
		`"` + strings.Repeat("[", 99) + `"`:                  -1,
		`"\"` + strings.Repeat("[", 99):                      -1,
		"//" + strings.Repeat("[", 99):                       -1,
		"//\n" + strings.Repeat("[", 99):                     3 + maxDepth,
		"/*" + strings.Repeat("[", 99) + "*/":                -1,
		"/*/" + strings.Repeat("[", 99):                      -1,
		"/**/" + strings.Repeat("[", 99):                     4 + maxDepth,
		"/" + strings.Repeat("[", 99):                        1 + maxDepth,
		strings.Repeat("[]", 99):                             -1,
		`"\\"` + strings.Repeat("{", 99):                     4 + maxDepth,
		"// \"\n" + strings.Repeat("[", 99):                  5 + maxDepth,
		`"/*"` + strings.Repeat("[", 99):                     4 + maxDepth,
		"/* \" */" + strings.Repeat("[", 99) + "/* \" */":    7 + maxDepth,
		`"` + "\n" + `"` + strings.Repeat("[", 99) + `"\"]"`: 3 + maxDepth,
	} {
		if got := tooDeep(text); got != want {
			t.Errorf("tooDeep(%.20q) = %d, want %d", text, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add(`{"version":1,"allow":[{"src":["*"],"dst":["*"]},],}`)
	f.Add("{\"version\":1,//\n/* */}")
	f.Add(strings.Repeat("[", 40))
	f.Fuzz(func(t *testing.T, source string) {
		got, err := Parse(source)
		if err != nil {
			e, ok := errors.AsType[*Error](err)
			if !ok || got != nil || !errors.Is(err, policy.ErrDocument) {
				t.Fatalf("Parse = %v, %v", got, err)
			}
			if e.Line < 0 || e.Line > 1+strings.Count(source, "\n") || e.Column < 0 || e.Column > len(source)+1 || (e.Line == 0) != (e.Column == 0) {
				t.Fatalf("place %d:%d", e.Line, e.Column)
			}
			_ = e.Error()
			return
		}
		nice, err := Format(source)
		if err != nil {
			t.Fatal(err)
		}
		if len(nice) > MaxText {
			return
		}
		again, err := Parse(nice)
		if err != nil {
			t.Fatalf("own format: %v\n%s", err, nice)
		}
		if diff := cmp.Diff(got.Document, again.Document); diff != "" {
			t.Fatalf("Format changed the meaning:\n%s", diff)
		}
	})
}
