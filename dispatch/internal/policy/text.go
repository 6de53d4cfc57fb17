// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"

	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// Limits of a text. Comments count.
const (
	// MaxText leaves room for a message around the text or the document.
	MaxText = policy.MaxBytes - 4<<10
	// maxDepth is far above that of a policy; it keeps the parser's stack small.
	maxDepth = 32
)

// Text is a policy as a person wrote it, and what it means.
type Text struct {
	Source   string
	Document *policy.Document

	root hujson.Value
}

// Error is what is wrong with a text, and where. Line and Column are 1-based, the
// column in characters; both are 0 where the error is about no place.
type Error struct {
	Line, Column int
	// Message is one sentence, Text the line, or a part of a long one.
	Message, Text string

	mark int // column in Text
	err  error
}

// Error shows the place as compilers do: line:column: message, the line and a
// mark under the character.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Message
	}
	return fmt.Sprintf("%d:%d: %s\n\t%s\n\t%s^", e.Line, e.Column, e.Message, e.Text, indent(e.Text, e.mark))
}

// Unwrap returns policy.ErrDocument or what wraps it.
func (e *Error) Unwrap() error { return e.err }

// indent is blank under the text before the column; tabs stay tabs.
func indent(text string, column int) string {
	var out strings.Builder
	for i, r := range []rune(text) {
		if i == column-1 {
			break
		}
		if r != '\t' {
			r = ' '
		}
		out.WriteRune(r)
	}
	return out.String()
}

// Parse reads a policy in HuJSON. The error is always an *Error that is
// policy.ErrDocument.
func Parse(source string) (*Text, error) {
	t := &Text{Source: source}
	if len(source) > MaxText {
		return nil, t.error(-1, fmt.Errorf("%w: larger than %d bytes", policy.ErrDocument, MaxText))
	}
	if !utf8.ValidString(source) {
		n := strings.IndexRune(source, utf8.RuneError)
		return nil, t.error(n, fmt.Errorf("%w: not UTF-8", policy.ErrDocument))
	}
	if n := tooDeep(source); n >= 0 {
		return nil, t.error(n, fmt.Errorf("%w: nested deeper than %d", policy.ErrDocument, maxDepth))
	}
	var err error
	// Literals alias the input, which Standardize would change.
	if t.root, err = hujson.Parse([]byte(source)); err != nil {
		return nil, t.syntaxError(err)
	}
	if err := checkShape(&t.root); err != nil {
		return nil, t.error(err.offset, fmt.Errorf("%w: %w", policy.ErrDocument, err.err))
	}
	plain, err := hujson.Standardize([]byte(source))
	if err != nil {
		return nil, t.syntaxError(err)
	}
	if t.Document, err = policy.Parse(plain); err != nil {
		offset := -1
		if p, ok := errors.AsType[*policy.Problem](err); ok {
			offset = t.find(p.Pointer)
		}
		return nil, t.error(offset, err)
	}
	return t, nil
}

// Format lays a text out; comments stay. It does not check what the text says.
// The error is an *Error.
func Format(source string) (string, error) {
	t := &Text{Source: source}
	if n := tooDeep(source); n >= 0 || len(source) > MaxText {
		return "", t.error(n, fmt.Errorf("%w: nested deeper than %d or larger than %d bytes", policy.ErrDocument, maxDepth, MaxText))
	}
	out, err := hujson.Format([]byte(source))
	if err != nil {
		return "", t.syntaxError(err)
	}
	return string(out), nil
}

// Place returns the line and column of a JSON pointer like "/tests/2"; where the
// text has no such value those of the nearest one around it.
func (t *Text) Place(pointer string) (line, column int) {
	return place(t.Source, t.find(pointer))
}

func (t *Text) find(pointer string) int {
	for {
		if v := t.root.Find(pointer); v != nil {
			return v.StartOffset
		}
		i := strings.LastIndexByte(pointer, '/')
		if i < 0 {
			return 0
		}
		pointer = pointer[:i]
	}
}

// error places err; a negative offset is no place.
func (t *Text) error(offset int, err error) *Error {
	message := strings.TrimPrefix(err.Error(), policy.ErrDocument.Error()+": ")
	e := &Error{Message: message, err: err}
	if offset < 0 {
		return e
	}
	e.Line, e.Column = place(t.Source, offset)
	start := strings.LastIndexByte(t.Source[:min(offset, len(t.Source))], '\n') + 1
	line, _, _ := strings.Cut(t.Source[start:], "\n")
	e.show(strings.TrimSuffix(line, "\r"))
	return e
}

// show keeps two screen's widths of a long line around the column.
func (e *Error) show(line string) {
	const most = 160
	r := []rune(strings.ToValidUTF8(line, "?"))
	from := max(0, min(e.Column-most/2, len(r)-most))
	e.Text = string(r[from:min(from+most, len(r))])
	e.mark = e.Column - from
}

func place(source string, offset int) (line, column int) {
	if offset < 0 {
		return 0, 0
	}
	before := source[:min(offset, len(source))]
	start := strings.LastIndexByte(before, '\n') + 1
	return 1 + strings.Count(before, "\n"), 1 + utf8.RuneCountInString(before[start:])
}

// syntaxError takes the place out of hujson's words.
func (t *Text) syntaxError(err error) *Error {
	var line, column int
	message := err.Error()
	if n, scanErr := fmt.Sscanf(message, "hujson: line %d, column %d:", &line, &column); scanErr != nil || n != 2 {
		return t.error(-1, fmt.Errorf("%w: %w", policy.ErrDocument, err))
	}
	_, rest, _ := strings.Cut(message, "column ")
	_, rest, _ = strings.Cut(rest, ": ")
	offset := 0
	for range line - 1 {
		offset += strings.IndexByte(t.Source[offset:], '\n') + 1
	}
	return t.error(offset+column-1, fmt.Errorf("%w: %s", policy.ErrDocument, rest))
}

// tooDeep returns the offset of the first bracket that is nested too deep, or -1.
func tooDeep(source string) int {
	depth := 0
	for i := 0; i < len(source); i++ {
		switch source[i] {
		case '"':
			for i++; i < len(source) && source[i] != '"'; i++ {
				if source[i] == '\\' {
					i++
				}
			}
		case '/':
			end := ""
			switch {
			case strings.HasPrefix(source[i:], "//"):
				end = "\n"
			case strings.HasPrefix(source[i:], "/*"):
				end = "*/"
				i += 2
			default:
				continue
			}
			n := strings.Index(source[i:], end)
			if n < 0 {
				return -1
			}
			i += n + len(end) - 1
		case '{', '[':
			if depth++; depth > maxDepth {
				return i
			}
		case '}', ']':
			depth--
		}
	}
	return -1
}
