// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"math"
	"sort"
	"strconv"
	"strings"
)

// writer collects samples by metric and writes them as text (Prometheus text format,
// version 0.0.4), in which all samples of a metric stand together.
type writer struct {
	families []*family
	byName   map[string]*family
}

type family struct {
	name, kind, help string
	lines            []string
	seen             map[string]bool // by labels
}

// label is a label of a sample.
type label struct{ name, value string }

func (w *writer) gauge(name, help string, v float64, labels ...label) {
	w.add("gauge", name, help, v, labels)
}

func (w *writer) counter(name, help string, v uint64, labels ...label) {
	w.add("counter", name, help, float64(v), labels)
}

// add adds a sample. Of two with the same labels the first one counts, since the text
// with both would be refused as a whole.
func (w *writer) add(kind, name, help string, v float64, labels []label) {
	f := w.byName[name]
	if f == nil {
		f = &family{name: name, kind: kind, help: help, seen: make(map[string]bool)}
		if w.byName == nil {
			w.byName = make(map[string]*family)
		}
		w.byName[name] = f
		w.families = append(w.families, f)
	}
	var b strings.Builder
	for _, l := range labels {
		if l.value == "" {
			continue // which is the same as none
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.name + `="` + escape.Replace(strings.ToValidUTF8(l.value, "?")) + `"`)
	}
	set := b.String()
	if f.seen[set] {
		return
	}
	f.seen[set] = true
	if set != "" {
		set = "{" + set + "}"
	}
	f.lines = append(f.lines, name+set+" "+number(v)+"\n")
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func number(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

func (w *writer) bytes() []byte {
	var b strings.Builder
	for _, f := range w.families {
		b.WriteString("# HELP " + f.name + " " + f.help + "\n# TYPE " + f.name + " " + f.kind + "\n")
		for _, l := range f.lines {
			b.WriteString(l)
		}
	}
	return []byte(b.String())
}

// each calls f for a map's entries in the order of their keys.
func each[V any](m map[string]V, f func(string, V)) {
	names := make([]string, 0, len(m))
	for k := range m {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		f(k, m[k])
	}
}
