// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"os/exec"
	"strings"
	"testing"
)

// forbidden maps an import path's prefix to the reason why the core must not
// come to it by any way.
var forbidden = map[string]string{
	"connectrpc.com/connect":                      "RPC lives in conduit/hub; embedders may bring their own hub",
	"google.golang.org/protobuf":                  "the wire of the data plane is hand-written",
	"github.com/bauxite-mesh/bauxite/proto":       "only conduit/hub speaks to the hub",
	"github.com/bauxite-mesh/bauxite/conduit/hub": "the core asks for the HubConnector interface",
	"github.com/bauxite-mesh/bauxite/dispatch":    "a peer must not ship the server",
	"github.com/bauxite-mesh/bauxite/edge":        "edge composes conduit",
	"github.com/rs/zerolog":                       "libraries log through slog",
	"github.com/stretchr/testify":                 "tests use testing and go-cmp",
}

// TestDeps walks everything that conduit links, less hub: RPC and the server
// must not be in a program that embeds it with a hub of its own.
func TestDeps(t *testing.T) {
	packages := strings.Fields(goList(t, "./..."))
	var core []string
	for _, p := range packages {
		if !strings.HasSuffix(p, "/conduit/hub") && !strings.Contains(p, "/conduit/hub/") {
			core = append(core, p)
		}
	}
	deps := strings.Fields(goList(t, append([]string{"-deps"}, core...)...))
	if bad := findForbidden(deps); len(bad) > 0 {
		t.Errorf("the core reaches:\n%s", strings.Join(bad, "\n"))
	}
}

// TestDepsBite shows that the rule finds each of its names.
func TestDepsBite(t *testing.T) {
	for prefix := range forbidden {
		for _, p := range []string{prefix, prefix + "/sub"} {
			if len(findForbidden([]string{"net", p})) != 1 {
				t.Errorf("%s passes", p)
			}
		}
	}
	if bad := findForbidden([]string{"github.com/bauxite-mesh/bauxite/conduit/hubconnector"}); len(bad) > 0 {
		t.Errorf("found %q, want nothing", bad)
	}
}

func findForbidden(deps []string) []string {
	var bad []string
	for _, d := range deps {
		for prefix, reason := range forbidden {
			if d == prefix || strings.HasPrefix(d, prefix+"/") {
				bad = append(bad, d+": "+reason)
			}
		}
	}
	return bad
}

func goList(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	return string(out)
}
