// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// readTree reads a file of the source tree that is no part of the module.
func readTree(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../../" + name)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("CI") != "true" {
		t.Skipf("the module is here without the source tree: no %s", name)
	}
	must(t, err)
	return b
}

// known returns the labels of each metric that exists. Those that a scraper adds
// are among them.
func known(t *testing.T) map[string][]string {
	t.Helper()
	e, _, _ := fullExporter(t)
	families, err := e.reg.Gather()
	must(t, err)
	out := make(map[string][]string)
	for _, f := range families {
		labels := []string{"job", "instance"}
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		out[f.GetName()] = labels
		if f.GetType() == dto.MetricType_HISTOGRAM {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				out[f.GetName()+suffix] = append(slices.Clone(labels), "le")
			}
		}
	}
	return out
}

var (
	metricName = regexp.MustCompile(`\b((?:bauxite|go|process)_[a-z0-9_]+)\b(\{[^}]*\})?`)
	matcher    = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"`)
	grouping   = regexp.MustCompile(`by \(([^)]*)\)`)
	legendName = regexp.MustCompile(`\{\{(\w+)\}\}`)
)

// TestDashboard compares the dashboard with the metrics that exist.
func TestDashboard(t *testing.T) {
	type target struct{ Expr, LegendFormat string }
	var d struct {
		Title  string
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []target
		}
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	must(t, json.Unmarshal(readTree(t, "packaging/grafana/bauxite.json"), &d))
	exist := known(t)
	used := make(map[string]bool)
	check := func(where, expr string) {
		t.Helper()
		found := metricName.FindAllStringSubmatch(expr, -1)
		if len(found) == 0 {
			t.Errorf("%s: no metric in %q", where, expr)
		}
		for _, m := range found {
			labels, ok := exist[m[1]]
			if !ok {
				if !slices.Contains(strings.FieldsFunc(strings.Join(grouping.FindAllString(expr, -1), " "), notWord), m[1]) {
					t.Errorf("%s: there is no metric %s", where, m[1])
				}
				continue
			}
			used[m[1]] = true
			want := matcher.FindAllStringSubmatch(m[2], -1)
			for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
				for _, l := range strings.FieldsFunc(g[1], notWord) {
					want = append(want, []string{"", l})
				}
			}
			for _, l := range want {
				if !slices.Contains(labels, l[1]) {
					t.Errorf("%s: metric %s has no label %s", where, m[1], l[1])
				}
			}
		}
	}
	ids := make(map[int]bool)
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 {
			t.Errorf("panel %q: id %d is used twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 || p.GridPos.H == 0 {
			t.Errorf("panel %q is outside of the grid", p.Title)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			check(p.Title, q.Expr)
			for _, l := range legendName.FindAllStringSubmatch(q.LegendFormat, -1) {
				if !strings.Contains(q.Expr, l[1]) {
					t.Errorf("panel %q: the legend names %s, which %q does not keep", p.Title, l[1], q.Expr)
				}
			}
		}
	}
	for _, v := range d.Templating.List {
		if v.Definition != "" {
			check("variable "+v.Name, v.Definition)
		}
	}
	// And the other way round: what nobody can see helps nobody.
	for name := range exist {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
		if strings.HasPrefix(name, "bauxite_") && !used[name] && !used[base+"_bucket"] && !used[base+"_sum"] {
			t.Errorf("%s is on no panel", name)
		}
	}
}

func notWord(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') }

// TestHandbook compares the names in the handbook with the metrics that exist.
func TestHandbook(t *testing.T) {
	exist := known(t)
	names := regexp.MustCompile("`(bauxite_[a-z_]+)").FindAllStringSubmatch(string(readTree(t, "docs/operations.md")), -1)
	if len(names) == 0 {
		t.Error("no metric in the handbook")
	}
	// The golden of the nodes' metrics has all that they write.
	nodes := string(readTree(t, "edge/internal/metrics/testdata/robot.txt"))
	for _, n := range names {
		if exist[n[1]] == nil && !strings.Contains(nodes, "# TYPE "+n[1]+" ") {
			t.Errorf("docs/operations.md: there is no metric %s", n[1])
		}
	}
}
