// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"

	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// MaxFindings bounds what a Review says.
const MaxFindings = 200

// Finding is something wrong with a text. Line and Column are 1-based; 0 where it
// is about no place.
type Finding struct {
	Line, Column int
	Message      string
}

// String is the finding with its place in front.
func (f Finding) String() string {
	if f.Line == 0 {
		return f.Message
	}
	return fmt.Sprintf("%d:%d: %s", f.Line, f.Column, f.Message)
}

// Review is what is to be said of a text. It is good where Findings is empty.
type Review struct {
	Text     *Text // nil where it cannot be understood
	Findings []Finding
	// Tests is how many tests it has, Failed how many of them do not hold.
	Tests, Failed int
}

// Examine reads a text and runs its tests against nodes.
func Examine(source string, nodes []policy.Subject) Review {
	t, err := Parse(source)
	if e, ok := errors.AsType[*Error](err); ok {
		return Review{Findings: []Finding{{e.Line, e.Column, e.Message}}}
	}
	r := Review{Text: t, Tests: len(t.Document.Tests)}
	results, err := t.Document.RunTests(nodes)
	if err != nil { // too much work
		r.Findings, r.Failed = []Finding{{Message: err.Error()}}, r.Tests
		return r
	}
	for i := range results {
		if results[i].OK() {
			continue
		}
		r.Failed++
		line, column := t.Place(fmt.Sprintf("/tests/%d", results[i].Test))
		for _, why := range t.Document.Failures(&results[i]) {
			if len(r.Findings) < MaxFindings {
				r.Findings = append(r.Findings, Finding{line, column, why.Error()})
			}
		}
	}
	return r
}
