// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/repo/repotest"
)

// forbidden is, for each depguard rule, imports it must complain about and
// imports it must let pass. Ours are short for the workspace's prefix.
var forbidden = map[string]struct{ bad, fine map[string][]string }{
	"conduit-core": {
		bad: map[string][]string{
			"conduit":              {"connectrpc.com/connect", "google.golang.org/protobuf/proto", "ours/proto/gen/x"},
			"conduit/internal/ice": {"connectrpc.com/connect"},
		},
		fine: map[string][]string{"conduit/hub": {"connectrpc.com/connect", "google.golang.org/protobuf/proto", "ours/proto/gen/x"}},
	},
	"conduit-below": {
		bad: map[string][]string{
			"conduit":     {"ours/dispatch/x", "ours/edge/x"},
			"conduit/hub": {"ours/dispatch/x", "ours/citadel", "ours/forge/manifest"},
		},
		fine: map[string][]string{"conduit": {"ours/conduit/identity"}},
	},
	"pure-machines": {
		bad: map[string][]string{
			"conduit/internal/session": {"net", "os", "log/slog"},
			"conduit/internal/path":    {"net/http"},
			"conduit/internal/wire":    {"net"},
			"conduit/policy":           {"os"},
			"conduit/congestion":       {"net"},
		},
		fine: map[string][]string{"conduit/internal/session": {"net/netip", "golang.org/x/crypto/chacha20poly1305"}},
	},
	"std-only": {
		bad: map[string][]string{
			"conduit/policy":          {"golang.org/x/sys/unix"},
			"conduit/congestion":      {"go.uber.org/goleak"},
			"conduit/internal/packet": {"github.com/pion/ice/v3"},
			"conduit/internal/path":   {"golang.org/x/sys/unix"},
		},
		fine: map[string][]string{"conduit/internal/path": {"net/netip", "ours/conduit/internal/packet"}},
	},
	"leaves": {
		bad: map[string][]string{
			"citadel":        {"ours/proto/gen/x", "ours/conduit", "ours/dispatch/x", "ours/edge/x"},
			"forge/manifest": {"ours/proto/gen/x", "ours/conduit", "ours/dispatch/x", "ours/edge/x"},
		},
		fine: map[string][]string{"citadel": {"net"}, "forge": {"ours/forge/manifest"}},
	},
	"citadel-forge": {bad: map[string][]string{"citadel/internal/x": {"ours/forge/manifest"}}},
	"forge-citadel": {bad: map[string][]string{"forge": {"ours/citadel"}}},
	"hub": {
		bad: map[string][]string{
			"dispatch":              {"ours/conduit", "ours/conduit/hub", "ours/edge/x", "ours/citadel"},
			"dispatch/internal/rpc": {"ours/forge"},
		},
		fine: map[string][]string{
			"dispatch":                           {"ours/conduit/fips", "ours/conduit/identity", "ours/conduit/policy", "ours/forge/manifest", "ours/proto/gen/x"},
			"proto/gen/bauxite/dispatch/v1/hand": {"ours/conduit"},
		},
	},
	"node": {
		bad:  map[string][]string{"edge/internal/daemon": {"ours/dispatch/x"}},
		fine: map[string][]string{"edge/internal/daemon": {"ours/conduit", "ours/citadel", "ours/forge", "ours/proto/gen/x"}},
	},
	"lab": {
		bad: map[string][]string{
			"lab":     {"ours/conduit"},
			"lab/e2e": {"ours/dispatch/dispatchtest", "ours/edge/x"},
		},
		fine: map[string][]string{"lab/e2e": {"ours/lab/netns"}},
	},
	"libraries-log-slog": {
		bad: map[string][]string{
			"conduit":         {"github.com/rs/zerolog", "github.com/urfave/cli/v2"},
			"citadel":         {"github.com/rs/zerolog"},
			"forge":           {"github.com/rs/zerolog"},
			"forge/manifest2": {"github.com/urfave/cli/v2"},
		},
		fine: map[string][]string{"edge/internal/cli": {"github.com/rs/zerolog", "github.com/urfave/cli/v2"}},
	},
	"everywhere": {
		bad: map[string][]string{
			"edge":    {"math/rand", "github.com/stretchr/testify/require"},
			"lab":     {"io/ioutil"},
			"forge/x": {"github.com/pkg/errors"},
		},
		fine: map[string][]string{"edge": {"math/rand/v2"}},
	},
}

// TestDepguard breaks each depguard rule once, in a copy of the tree's shape
// under the tree's own configuration, and wants the complaint.
func TestDepguard(t *testing.T) {
	root, err := repo.Root(".")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, ".bin", "golangci-lint")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("needs the pinned linter: run make lint")
	}
	config, err := os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range ruleNames(string(config)) {
		if _, ok := forbidden[name]; !ok {
			t.Errorf("depguard rule %s is not proven", name)
		}
	}

	// Folders above have names that some rule matches, to show that the
	// rules look at the place in the tree and not at the whole path.
	tree := filepath.Join(t.TempDir(), "conduit", "dispatch")
	repotest.Put(t, filepath.Join(tree, ".golangci.yml"), string(config))
	repotest.Put(t, filepath.Join(tree, "go.mod"), "module example.com/shape\n\ngo 1.26.0\n")
	for name, rule := range forbidden {
		if len(rule.bad) == 0 {
			t.Errorf("rule %s is not proven", name)
		}
		for dir, imports := range rule.bad {
			writeImports(t, tree, dir, imports)
		}
		for dir, imports := range rule.fine {
			writeImports(t, tree, dir, imports)
		}
	}
	complaints := lint(t, root, tree)
	for name, rule := range forbidden {
		for dir, imports := range rule.bad {
			for _, i := range imports {
				if !slices.Contains(complaints[name], dir+" "+expand(i)) {
					t.Errorf("%s: %s may import %s", name, dir, i)
				}
			}
		}
		for dir, imports := range rule.fine {
			for _, i := range imports {
				if slices.Contains(complaints[name], dir+" "+expand(i)) {
					t.Errorf("%s: %s may not import %s", name, dir, i)
				}
			}
		}
	}
}

// ruleNames finds the rules in the configuration by their indentation.
func ruleNames(config string) []string {
	_, rest, _ := strings.Cut(config, "\n    depguard:\n      rules:\n")
	rules, _, _ := regexp.MustCompile(`(?m)^    \w`).Split(rest, 2)[0], 0, 0
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^        ([\w-]+):$`).FindAllStringSubmatch(rules, -1) {
		names = append(names, m[1])
	}
	return names
}

func expand(i string) string {
	if rest, ok := strings.CutPrefix(i, "ours/"); ok {
		return repo.Prefix + "/" + rest
	}
	return i
}

// writeImports adds a file that imports each path; it parses, which is all
// that depguard asks for.
func writeImports(t *testing.T, tree, dir string, imports []string) {
	t.Helper()
	for _, i := range imports {
		name := regexp.MustCompile(`\W`).ReplaceAllString(i, "_") + ".go"
		repotest.Put(t, filepath.Join(tree, dir, name), "package "+path.Base(dir)+"\n\nimport _ \""+expand(i)+"\"\n")
	}
}

var complaint = regexp.MustCompile(`import '([^']+)' is not allowed from list '([^']+)'`)

// lint runs depguard alone and returns "folder import" by rule.
func lint(t *testing.T, root, tree string) map[string][]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, ".bin", "golangci-lint"), "run",
		"--enable-only", "depguard", "--output.json.path", "stdout", "--show-stats=false",
		"--max-issues-per-linter", "0", "--max-same-issues", "0", "--issues-exit-code", "0", "./...")
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "GOPROXY=off")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run golangci-lint: %v\n%s", err, out)
	}
	var report struct {
		Issues []struct {
			Text string
			Pos  struct{ Filename string }
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("read golangci-lint's report: %v\n%s", err, out)
	}
	found := map[string][]string{}
	for _, i := range report.Issues {
		m := complaint.FindStringSubmatch(i.Text)
		if m == nil {
			t.Errorf("complaint not understood: %s", i.Text)
			continue
		}
		found[m[2]] = append(found[m[2]], path.Dir(filepath.ToSlash(i.Pos.Filename))+" "+m[1])
	}
	return found
}
