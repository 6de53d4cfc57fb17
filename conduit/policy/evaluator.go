// SPDX-License-Identifier: Apache-2.0

package policy

import "fmt"

// Evaluator answers questions about a document that is compiled once. It is
// immutable and safe for concurrent use.
type Evaluator struct {
	b *book
	m *matrix
}

// NewEvaluator compiles a document. Errors: ErrDocument.
func NewEvaluator(d *Document) (*Evaluator, error) {
	b, err := d.compile()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	return &Evaluator{b, newMatrix(b)}, nil
}

// Explain is Document.Explain.
func (e *Evaluator) Explain(src, dst Subject, proto string, port uint16, lane Lane) Decision {
	return e.b.explain(src, dst, proto, port, lane)
}

// MayBegin reports whether src may begin anything with dst: some protocol, some
// port, some lane.
func (e *Evaluator) MayBegin(src, dst *Subject) bool {
	box := e.b.sandbox(src)
	if box.lanes == 0 {
		return false
	}
	guards, allow := e.m.between(e.m.src.match(src, e.m.newSet()), e.m.dst.match(dst, e.m.newSet()))
	switch {
	case len(allow) == 0:
		return false
	case len(guards) == 0:
		for _, b := range allow {
			if b.lanes&box.lanes != 0 {
				return true
			}
		}
		return false
	}
	out, _ := openings(guards, allow, box.lanes)
	for _, spans := range out {
		if len(spans) > 0 {
			return true
		}
	}
	return false
}
