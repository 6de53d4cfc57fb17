// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printLine prints v as one line of JSON.
func printLine(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table prints rows under a head, in columns.
func table(w io.Writer, head []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range append([][]string{head}, rows...) {
		for i, cell := range r {
			if i > 0 {
				_, _ = io.WriteString(t, "\t")
			}
			_, _ = io.WriteString(t, dash(oneLine(cell)))
		}
		_, _ = io.WriteString(t, "\n")
	}
	return t.Flush()
}

// list prints names and values, one a line, without those that are empty.
func list(w io.Writer, pairs ...string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			_, _ = fmt.Fprintf(t, "%s\t%s\n", pairs[i], oneLine(pairs[i+1]))
		}
	}
	return t.Flush()
}

// oneLine makes text from elsewhere fit for one line of a terminal: a name must
// not be able to colour it, move the cursor or pretend to be another column.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return ' '
		}
		return r
	}, s)
}

func dash(s string) string {
	if strings.TrimSpace(s) == "" {
		return "-"
	}
	return s
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// when is a time for JSON: nil where there is none.
func when(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	v := t.AsTime().UTC()
	return &v
}

// local is a time for people.
func local(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.DateTime)
}

func number[T ~uint32 | ~uint64 | ~int64 | ~int](n T) string { return fmt.Sprint(n) }

// parseDuration reads a duration that may also be in days, as 90d.
func parseDuration(flag, s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, usagef("--%s %q is not a duration like 90m, 24h or 7d", flag, s)
	}
	return d, nil
}

// parseSince reads a time, or how long ago.
func parseSince(s string, now time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	d, err := parseDuration("since", s)
	if err != nil {
		return time.Time{}, usagef("--since %q is neither a time like 2026-01-31 or 2026-01-31T12:00:00Z nor a duration like 24h or 7d", s)
	}
	return now.Add(-d), nil
}

// describe is the description of a command: text, examples, and the shape of its
// JSON, of which v is a value.
func describe(text string, v any, examples ...string) string {
	var b strings.Builder
	if text != "" {
		b.WriteString(text + "\n\n")
	}
	b.WriteString("Examples:\n\n")
	for _, e := range examples {
		b.WriteString("  bauxite-dispatch " + e + "\n")
	}
	if v != nil {
		b.WriteString("\nJSON: " + shape(reflect.TypeOf(v)))
	}
	return b.String()
}

// shape writes the form of the JSON that a type makes.
func shape(t reflect.Type) string {
	if t == reflect.TypeFor[time.Time]() {
		return "time"
	}
	if t == reflect.TypeFor[json.RawMessage]() {
		return "any"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return shape(t.Elem()) + "|null"
	case reflect.Slice:
		return "[" + shape(t.Elem()) + "]"
	case reflect.Map:
		return "{<name>: " + shape(t.Elem()) + "}"
	case reflect.Struct:
		var f []string
		for field := range t.Fields() {
			name, opt, _ := strings.Cut(field.Tag.Get("json"), ",")
			if opt == "omitempty" || opt == "omitzero" {
				name += "?"
			}
			f = append(f, name+": "+shape(field.Type))
		}
		return "{" + strings.Join(f, ", ") + "}"
	case reflect.Bool:
		return "bool"
	case reflect.String:
		return "string"
	default:
		return "number"
	}
}

// note tells people something on standard error.
func note(c *cli.Context, format string, args ...any) {
	_, _ = fmt.Fprintf(c.App.ErrWriter, "bauxite-dispatch: "+format+"\n", args...)
}
