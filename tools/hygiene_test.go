// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"testing"

	"github.com/bauxite-mesh/bauxite/tools/internal/hygiene"
	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
)

// TestHygiene holds this tree to the rules. That the rules bite is shown in
// internal/hygiene.
func TestHygiene(t *testing.T) {
	root, err := repo.Root(".")
	if err != nil {
		t.Fatal(err)
	}
	for name, rule := range hygiene.Rules {
		bad, err := rule(t.Context(), root)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, b := range bad {
			t.Errorf("%s: %s", name, b)
		}
	}
}
