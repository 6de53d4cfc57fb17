// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"strconv"
	"strings"
)

// Problem is an error about one place in a document. It reads like the error that
// it wraps; editors use Pointer to show the place.
type Problem struct {
	// Pointer is a JSON pointer (RFC 6901) like "/allow/3/src/0". The value may be
	// missing from the text; then its parent is meant.
	Pointer string
	err     error
}

func (p *Problem) Error() string { return p.err.Error() }

// Unwrap returns what is wrong.
func (p *Problem) Unwrap() error { return p.err }

// at puts a place before those that err may name already; nil stays nil.
func at(err error, path ...any) error {
	if err == nil {
		return nil
	}
	var pointer strings.Builder
	for _, p := range path {
		switch p := p.(type) {
		case string:
			pointer.WriteString("/" + p)
		case int:
			pointer.WriteString("/" + strconv.Itoa(p))
		}
	}
	if inner, ok := errors.AsType[*Problem](err); ok {
		pointer.WriteString(inner.Pointer)
	}
	return &Problem{pointer.String(), err}
}
