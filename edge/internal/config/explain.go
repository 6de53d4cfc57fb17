// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// explain turns an error of the TOML decoder into one line: where, what, and the
// known key that is meant, if one is near.
func explain(err error) string {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		e := &strict.Errors[0]
		key := strings.Join(e.Key(), ".")
		line, col := e.Position()
		s := fmt.Sprintf("line %d, column %d: unknown key %s", line, col, key)
		if near := nearest(key); near != "" {
			s += "; did you mean " + near + "?"
		}
		return s
	}
	if de, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, col := de.Position()
		what := strings.TrimPrefix(de.Error(), "toml: ")
		if key := strings.Join(de.Key(), "."); key != "" {
			what = key + ": " + what
		}
		return fmt.Sprintf("line %d, column %d: %s", line, col, what)
	}
	return err.Error()
}

// nearest returns the known key with the fewest edits, at most a third of it.
func nearest(key string) string { return nearestOf(key, keys(reflect.TypeFor[Config](), "")) }

func nearestOf(word string, known []string) string {
	best, cost := "", len(word)/3+1
	for _, k := range known {
		if d := distance(word, k); d < cost {
			best, cost = k, d
		}
	}
	return best
}

// keys lists the keys of tables and of arrays of tables.
func keys(t reflect.Type, prefix string) []string {
	var out []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		out = append(out, prefix+name)
		if typ := f.Type; prefix == "" {
			if typ.Kind() == reflect.Slice {
				typ = typ.Elem()
			}
			out = append(out, keys(typ, name+".")...)
		}
	}
	return out
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			c := diag
			if a[i] != b[j] {
				c++
			}
			diag = row[j+1]
			row[j+1] = min(c, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
