// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// valueError is about the value of a key.
type valueError struct {
	key   string
	index int // of the table in its array, from 0
	err   error
}

func (e *valueError) Error() string {
	key := e.key
	for _, table := range []string{"uplink", "lane"} {
		if rest, ok := strings.CutPrefix(key, table+"."); ok {
			key = fmt.Sprintf("%s %d: %s", table, e.index+1, rest)
		}
	}
	return fmt.Sprintf("%v: %s: %v", ErrConfig, key, e.err)
}
func (e *valueError) Unwrap() []error { return []error{ErrConfig, e.err} }

// at returns e with the line in text that it is about.
func (e *valueError) at(text []byte) error {
	if line := locate(text, e.key, e.index); line > 0 {
		return fmt.Errorf("%w: line %d: %s: %w", ErrConfig, line, e.key, e.err)
	}
	return e
}

// locate returns the line of a key, or else of its table, in a text that parses;
// 0 where neither is written. index counts tables of one name.
func locate(text []byte, key string, index int) (line int) {
	table, _, _ := strings.Cut(key, ".")
	var p unstable.Parser
	p.Reset(text)
	current, n := "", -1
	for p.NextExpression() {
		e := p.Expression()
		var parts []string
		at := 0
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
			if at == 0 {
				at = p.Shape(it.Node().Raw).Start.Line
			}
		}
		name := strings.Join(parts, ".")
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			if current = name; current == table {
				n++
			}
		case unstable.KeyValue:
			if current != "" {
				name = current + "." + name
			} else if name == table { // an inline table
				n = index
			}
		default:
			continue
		}
		switch {
		case name == key && (current != table || n == index):
			return at
		case name == table && n == index:
			line = at
		}
	}
	return line
}
