// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

func TestCommented(t *testing.T) {
	text, err := Parse(Commented(policy.Default().Marshal()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(policy.Default(), text.Document); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(text.Source, guide) {
		t.Errorf("the guide is laid out anew:\n%s", text.Source)
	}
}

// What the guide shows as examples is good.
func TestGuide(t *testing.T) {
	var examples []string
	for line := range strings.Lines(guide) {
		if e, ok := strings.CutPrefix(line, "//   "); ok && strings.HasPrefix(e, "{") {
			examples = append(examples, strings.TrimSpace(e))
		}
	}
	if len(examples) != 4 {
		t.Fatalf("%d examples", len(examples))
	}
	_, err := Parse(`{"version": 1, "allow": [` + examples[0] + `], "roles": [` + examples[1] + "," + examples[2] + `], "tests": [` + examples[3] + `]}`)
	if err != nil {
		t.Error(err)
	}
}
