// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Stat is how the samples of several runs become one figure.
type Stat string

// The statistics.
const (
	Median Stat = "median"
	P95    Stat = "p95"
	Worst  Stat = "worst"
	Sum    Stat = "sum" // of all runs
)

// Figure is one measured quantity. Figures of several runs with the same names
// are merged.
type Figure struct {
	Scenario string `json:"scenario"`
	Case     string `json:"case"`
	System   string `json:"system"`
	What     string `json:"what"`
	Unit     string `json:"unit"`
	Stat     Stat   `json:"stat"`
	// Samples are the values of the runs; a time of never is +Inf.
	Samples Samples `json:"samples,omitempty"`
	// Words stand in the place of Samples where the figure is no number, Wrong of
	// them not as they should be.
	Words []string `json:"words,omitempty"`
	Wrong int      `json:"wrong,omitempty"`
	// Goal is the most that Value may be (AtLeast: the least).
	Goal    *float64 `json:"goal,omitempty"`
	AtLeast bool     `json:"at_least,omitempty"`
}

// Samples encode +Inf as "never".
type Samples []float64

// MarshalJSON implements json.Marshaler.
func (s Samples) MarshalJSON() ([]byte, error) {
	out := make([]any, len(s))
	for i, v := range s {
		out[i] = v
		if math.IsInf(v, 1) {
			out[i] = "never"
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Samples) UnmarshalJSON(b []byte) error {
	var in []any
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	for _, v := range in {
		switch v := v.(type) {
		case float64:
			*s = append(*s, v)
		case string:
			*s = append(*s, math.Inf(1))
		default:
			return fmt.Errorf("sample %v: want a number", v)
		}
	}
	return nil
}

// Value is the figure by its statistic.
func (f *Figure) Value() float64 {
	if len(f.Samples) == 0 {
		return math.NaN()
	}
	v := slices.Clone(f.Samples)
	slices.Sort(v)
	switch f.Stat {
	case P95: // nearest rank
		return v[max(int(math.Ceil(0.95*float64(len(v))))-1, 0)]
	case Worst:
		if f.AtLeast {
			return v[0]
		}
		return v[len(v)-1]
	case Sum:
		var sum float64
		for _, x := range v {
			sum += x
		}
		return sum
	default:
		n := len(v)
		return (v[(n-1)/2] + v[n/2]) / 2
	}
}

// Judged tells whether the figure has something to fulfil, OK whether it does.
func (f *Figure) Judged() bool { return f.Goal != nil || f.Words != nil }

// OK is true for a figure without a goal.
func (f *Figure) OK() bool {
	switch {
	case f.Words != nil:
		return f.Wrong == 0
	case f.Goal == nil:
		return true
	case f.AtLeast:
		return f.Value() >= *f.Goal
	}
	return f.Value() <= *f.Goal
}

// Show is the value as text, with the range of the samples where it matters.
func (f *Figure) Show() string {
	if f.Words != nil {
		seen := slices.Clone(f.Words)
		slices.Sort(seen)
		return strings.Join(slices.Compact(seen), ", ")
	}
	text := Number(f.Value())
	if f.Stat == Sum || len(f.Samples) < 2 {
		return text
	}
	least, most := slices.Min(f.Samples), slices.Max(f.Samples)
	if least == most {
		return text
	}
	return fmt.Sprintf("%s (%s–%s)", text, Number(least), Number(most))
}

// ShowGoal is what the figure must hold, "" for nothing.
func (f *Figure) ShowGoal() string {
	switch {
	case f.Goal == nil:
		return ""
	case f.AtLeast:
		return "≥ " + Number(*f.Goal)
	case *f.Goal == 0:
		return "0"
	}
	return "≤ " + Number(*f.Goal)
}

// Number is a value with the digits that matter.
func Number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case math.IsInf(v, 1):
		return "never"
	case v == math.Trunc(v) || math.Abs(v) >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// key tells figures apart.
func (f *Figure) key() [4]string { return [4]string{f.Scenario, f.Case, f.System, f.What} }

// Report gathers the figures of all runs, in the order of their first coming.
type Report struct {
	Figures []*Figure `json:"figures"`
}

// Add merges figures into the report.
func (r *Report) Add(figs ...Figure) {
	for _, f := range figs {
		i := slices.IndexFunc(r.Figures, func(g *Figure) bool { return g.key() == f.key() })
		if i < 0 {
			r.Figures = append(r.Figures, &f)
			continue
		}
		g := r.Figures[i]
		g.Samples = append(g.Samples, f.Samples...)
		g.Words = append(g.Words, f.Words...)
		g.Wrong += f.Wrong
	}
}

// Missed lists the figures that do not hold.
func (r *Report) Missed() []*Figure {
	var out []*Figure
	for _, f := range r.Figures {
		if !f.OK() {
			out = append(out, f)
		}
	}
	return out
}

// Sheet makes the figures of one case of one system.
type Sheet struct {
	Scenario, Case, System string

	figures []Figure
}

// Add adds a figure with the samples of this run.
func (s *Sheet) Add(what, unit string, stat Stat, v ...float64) *Figure {
	s.figures = append(s.figures, Figure{
		Scenario: s.Scenario, Case: s.Case, System: s.System, What: what, Unit: unit, Stat: stat, Samples: v,
	})
	return &s.figures[len(s.figures)-1]
}

// MS adds times in milliseconds; never becomes +Inf.
func (s *Sheet) MS(what string, stat Stat, d ...time.Duration) *Figure {
	v := make([]float64, len(d))
	for i := range d {
		v[i] = float64(d[i]) / 1e6
		if d[i] >= world.Never {
			v[i] = math.Inf(1)
		}
	}
	return s.Add(what, "ms", stat, v...)
}

// Count adds a number of packets, of all runs together.
func (s *Sheet) Count(what string, n ...int) *Figure {
	v := make([]float64, len(n))
	for i := range n {
		v[i] = float64(n[i])
	}
	return s.Add(what, "packets", Sum, v...)
}

// Word adds a figure that is no number, and tells whether it is as it should be.
func (s *Sheet) Word(what, word string, ok bool) {
	f := s.Add(what, "", Worst)
	f.Samples, f.Words = nil, []string{word}
	if !ok {
		f.Wrong = 1
	}
}

// AtMost gives a figure of the system under test its goal. Rivals have none.
func (f *Figure) AtMost(goal float64) {
	if f.System == "bauxite" {
		f.Goal = &goal
	}
}

// Least is AtMost for what must not be less.
func (f *Figure) Least(goal float64) {
	f.AtMost(goal)
	f.AtLeast = true
}
