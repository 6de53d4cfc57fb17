// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestNewPlan(t *testing.T) {
	root := t.TempDir()
	yaml := "# c\nlibrary:\n  version: v0.2.0\n  modules: [proto, conduit]\nfleet:\n  version: v0.3.1\n  modules: [forge, dispatch, edge]\n"
	if err := os.WriteFile(filepath.Join(root, "versions.yaml"), []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(root)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Tag{{"proto", "v0.2.0"}, {"conduit", "v0.2.0"}, {"forge", "v0.3.1"}}; !slices.Equal(p.Required, want) {
		t.Errorf("Required = %v, want %v", p.Required, want)
	}
	if want := []Tag{{"dispatch", "v0.3.1"}, {"edge", "v0.3.1"}}; !slices.Equal(p.Installed, want) {
		t.Errorf("Installed = %v, want %v", p.Installed, want)
	}
	if got := p.Installed[1].String(); got != "edge/v0.3.1" {
		t.Errorf("String() = %q", got)
	}
}

func TestDiffModules(t *testing.T) {
	added, gone := diffModules("# comment\na\nb\n\n", []string{"b", "c"})
	if !slices.Equal(added, []string{"c"}) || !slices.Equal(gone, []string{"a"}) {
		t.Errorf("diffModules = %v, %v, want [c], [a]", added, gone)
	}
}
