// SPDX-License-Identifier: Apache-2.0

package repo

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo/repotest"
)

func TestVersions(t *testing.T) {
	root := repotest.Write(t, map[string]string{
		"versions.yaml": "# c\nlibrary:\n  version: v0.1.0\n  modules: [proto, conduit]\n\nfleet:\n  version: v0.2.0\n  modules: [edge]\n",
	})
	got, err := ModuleVersions(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got["conduit"] != "v0.1.0" || got["edge"] != "v0.2.0" {
		t.Errorf("ModuleVersions = %v", got)
	}
}

func TestVersionsRefusesWhatItDoesNotKnow(t *testing.T) {
	for text, want := range map[string]string{
		"a\n":                         "not key: value",
		"a:\n  version: v1\n":         "lacks a version or modules",
		"a:\n  modules: [x]\n":        "lacks a version or modules",
		"a:\n  edition: v1\n":         "unknown entry",
		"  version: v1\n":             "unknown entry",
		"a: v1\n":                     "unknown entry",
		"a:\n  modules:\n    - x\n\n": "not key: value",
	} {
		root := repotest.Write(t, map[string]string{"versions.yaml": text})
		if _, err := Versions(root); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Versions(%q) = %v, want %q", text, err, want)
		}
	}
}

func TestRoot(t *testing.T) {
	root := repotest.Write(t, map[string]string{"go.work": "go 1.26.0\n", "a/b/c": ""})
	if got, err := Root(filepath.Join(root, "a", "b")); err != nil || got != root {
		t.Errorf("Root = %q, %v, want %q", got, err, root)
	}
	if _, err := Root(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Root outside = %v, want ErrNotExist", err)
	}
}

func TestModuleDirsLeavesOutWhatIsNotOurs(t *testing.T) {
	root := repotest.Write(t, map[string]string{
		"a/go.mod": "", "tools/vuln/go.mod": "", ".cache/go.mod": "",
		"a/testdata/go.mod": "", "ui/node_modules/x/go.mod": "",
	})
	got, err := ModuleDirs(root)
	if err != nil || !slices.Equal(got, []string{"a", "tools/vuln"}) {
		t.Errorf("ModuleDirs = %v, %v", got, err)
	}
}
