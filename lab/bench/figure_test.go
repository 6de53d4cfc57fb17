// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/lab/world"
)

func TestFigure(t *testing.T) {
	s := &Sheet{Scenario: "x", Case: "y", System: "bauxite"}
	for _, tt := range []struct {
		name  string
		f     *Figure
		value float64
		ok    bool
		show  string
	}{
		{"median", s.MS("a", Median, time.Second, 2*time.Second, 4*time.Second), 2000, true, "2000 (1000–4000)"},
		{"never", s.MS("b", Median, world.Never), math.Inf(1), true, "never"},
		{"sum", s.Count("c", 0, 2, 1), 3, true, "3"},
		{"p95", s.MS("d", P95, 10*time.Millisecond, 20*time.Millisecond), 20, true, "20 (10–20)"},
	} {
		if got := tt.f.Value(); got != tt.value || tt.f.OK() != tt.ok || tt.f.Show() != tt.show || tt.f.Judged() {
			t.Errorf("%s: value %v, ok %v, show %q, want %v, %v, %q", tt.name, got, tt.f.OK(), tt.f.Show(), tt.value, tt.ok, tt.show)
		}
	}
	f := s.Count("lost", 0, 1)
	f.AtMost(0)
	if f.OK() {
		t.Error("one lost packet is within a goal of 0")
	}
	g := s.Add("rate", "Mbit/s", Worst, 5, 1)
	g.AtMost(2)
	g.AtLeast = true
	if g.OK() || g.Value() != 1 {
		t.Errorf("worst of 5 and 1 = %v, ok %v, want 1, which is under the goal of 2", g.Value(), g.OK())
	}
	rival := (&Sheet{System: "other"}).Count("lost", 9)
	rival.AtMost(0)
	if !rival.OK() || rival.Judged() {
		t.Error("a rival is judged")
	}
}

func TestReport(t *testing.T) {
	var r Report
	for run := range 2 {
		s := &Sheet{Scenario: "roam", Case: "new address", System: "bauxite"}
		s.MS("traffic again", Median, time.Duration(run+1)*100*time.Millisecond).AtMost(500)
		s.Word("path", "direct", true)
		r.Add(s.figures...)
		o := &Sheet{Scenario: "roam", Case: "new address", System: "other"}
		o.MS("traffic again", Median, world.Never)
		r.Add(o.figures...)
	}
	if len(r.Figures) != 3 || len(r.Figures[0].Samples) != 2 || len(r.Missed()) != 0 {
		t.Fatalf("figures = %+v, want 3 of two runs that hold", r.Figures)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("after JSON (-want +got):\n%s", diff)
	}
	var md strings.Builder
	if err := r.Markdown(&md, About{Command: "x", Runs: 2}, Page{Title: "T", Intro: "I"}, []Scenario{{Name: "roam", Title: "The only uplink changes"}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## The only uplink", "| new address | traffic again, ms | ≤ 500 | 150 (100–200) | never | holds |", "2 of 2 goals hold"} {
		if !strings.Contains(md.String(), want) {
			t.Errorf("page lacks %q:\n%s", want, md.String())
		}
	}
}
