// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// maxFailures bounds what Check says about one test.
const maxFailures = 8

// TestResult is what Run found out about one test.
type TestResult struct {
	// Test is its place in the document, from 0.
	Test int
	// Pairs is how many pairs of nodes it spoke of, Failed how many of them were
	// decided otherwise.
	Pairs, Failed int
	// Failures name some of the pairs and the reasons.
	Failures []string
}

// OK reports whether the test holds: it spoke of someone, and no pair failed.
func (r *TestResult) OK() bool { return r.Pairs > 0 && r.Failed == 0 }

// maxTestPairs bounds the work of RunTests: pairs of groups of nodes, all tests
// together. It takes a second or two.
const maxTestPairs = 1 << 25

// RunTests runs the document's tests against nodes, one result for each. For a
// test, nodes are alike if the same rules about its kind of packet are about
// them; the work grows with the square of how many are not alike, and too much of
// it is an error.
func (d *Document) RunTests(nodes []Subject) ([]TestResult, error) {
	b, err := d.compile()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	ends := make([][2]selectors, len(d.Tests))
	t := newTerms()
	t.addBook(b)
	for i := range d.Tests {
		for side, word := range []string{d.Tests[i].Src, d.Tests[i].Dst} {
			if ends[i][side], err = b.selector(word); err != nil {
				return nil, fmt.Errorf("%w: test %d: %w", ErrDocument, i+1, err)
			}
			t.add(ends[i][side])
		}
	}
	run := newTestRun(b, t.classes(nodes))
	out := make([]TestResult, len(d.Tests))
	for i := range d.Tests {
		if out[i], err = run.test(&d.Tests[i], ends[i]); err != nil {
			return nil, fmt.Errorf("test %d: %w", i+1, err)
		}
		out[i].Test = i
	}
	return out, nil
}

// testRun holds what all tests share.
type testRun struct {
	b        *book
	m        *matrix
	classes  []class
	src, dst []bitset // rules by class
	lanes    []uint8  // that the class may publish on
	left     int
}

func newTestRun(b *book, classes []class) *testRun {
	r := &testRun{b: b, m: newMatrix(b), classes: classes, left: maxTestPairs}
	for i := range classes {
		n := classes[i].nodes[0]
		r.src = append(r.src, r.m.src.match(n, r.m.newSet()))
		r.dst = append(r.dst, r.m.dst.match(n, r.m.newSet()))
		box := b.sandbox(n)
		r.lanes = append(r.lanes, box.lanes)
	}
	return r
}

func (r *testRun) test(t *Test, ends [2]selectors) (out TestResult, err error) {
	p, err := parseProto(t.Proto)
	if err != nil {
		return out, err
	}
	// Only rules that are about this kind of packet count.
	guards, allow := r.m.newSet(), r.m.newSet()
	for n, rule := range r.m.rules {
		if !rule.body.matches(p, t.Port, t.Lane) {
			continue
		}
		if n < r.m.guards {
			guards.set([]int32{int32(n)})
		} else {
			allow.set([]int32{int32(n)})
		}
	}
	rules := slices.Clone(guards)
	rules.union(allow)
	may := func(i int) bool { return r.lanes[i]>>t.Lane&1 == 1 }
	srcs := r.group(ends[0], func(key []byte, i int) []byte {
		if may(i) {
			return appendMasked(append(key, 1), r.src[i], rules)
		}
		return append(key, 0)
	})
	dsts := r.group(ends[1], func(key []byte, i int) []byte { return appendMasked(key, r.dst[i], rules) })
	if r.left -= len(srcs.reps) * len(dsts.reps); r.left < 0 {
		return out, errors.New("too many kinds of nodes to check every pair: name fewer nodes one by one")
	}
	both := map[[2]int]int{} // nodes in a group of either side: nobody against itself
	for i, s := range srcs.of {
		if d, ok := dsts.of[i]; ok {
			both[[2]int{s, d}] += len(r.classes[i].nodes)
		}
	}
	for g, i := range srcs.reps {
		for h, j := range dsts.reps {
			n := len(srcs.nodes[g].nodes)*len(dsts.nodes[h].nodes) - both[[2]int{g, h}]
			if n == 0 {
				continue
			}
			out.Pairs += n
			got := may(i) && !overlap(guards, r.src[i], r.dst[j]) && overlap(allow, r.src[i], r.dst[j])
			if got == (t.Want == "allow") {
				continue
			}
			out.Failed += n
			if len(out.Failures) < maxFailures {
				out.Failures = append(out.Failures, r.failure(t, &srcs.nodes[g], &dsts.nodes[h], n))
			}
		}
	}
	return out, nil
}

// testGroups are classes that are alike for one test.
type testGroups struct {
	reps  []int       // a class of each group
	nodes []class     // all nodes of each group
	of    map[int]int // group by class
}

func (r *testRun) group(who selectors, key func(key []byte, i int) []byte) testGroups {
	g := testGroups{of: map[int]int{}}
	at := map[string]int{}
	var buf []byte
	for i := range r.classes {
		if !who.matches(r.classes[i].nodes[0]) {
			continue
		}
		buf = key(buf[:0], i)
		n, ok := at[string(buf)]
		if !ok {
			n = len(g.reps)
			at[string(buf)] = n
			g.reps = append(g.reps, i)
			g.nodes = append(g.nodes, class{})
		}
		g.of[i] = n
		g.nodes[n].nodes = append(g.nodes[n].nodes, r.classes[i].nodes...)
	}
	return g
}

func appendMasked(key []byte, set, mask bitset) []byte {
	for w := range set {
		key = binary.NativeEndian.AppendUint64(key, set[w]&mask[w])
	}
	return key
}

func overlap(a, b, c bitset) bool {
	for w := range a {
		if a[w]&b[w]&c[w] != 0 {
			return true
		}
	}
	return false
}

func (r *testRun) failure(t *Test, i, j *class, n int) string {
	src, dst := pair(i, j)
	text := fmt.Sprintf("%s to %s: want %s, %s", src.label(), dst.label(), t.Want,
		r.b.explain(*src, *dst, t.Proto, t.Port, t.Lane).Why)
	if n > 1 {
		text += fmt.Sprintf(" (and %d pairs like it)", n-1)
	}
	return text
}

// Select returns the nodes that any of the selectors matches; roles are those of
// the document.
func (d *Document) Select(nodes []Subject, words []string) ([]Subject, error) {
	b, err := d.compile()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDocument, err)
	}
	var sel selectors
	for _, w := range words {
		s, err := b.selector(w)
		if err != nil {
			return nil, err
		}
		sel = append(sel, s...)
	}
	var out []Subject
	for i := range nodes {
		if sel.matches(&nodes[i]) {
			out = append(out, nodes[i])
		}
	}
	return out, nil
}

// Check runs the document's tests against nodes. The error names each test that
// does not hold, and each that matches no two nodes.
func (d *Document) Check(nodes []Subject) error {
	results, err := d.RunTests(nodes)
	if err != nil {
		return err
	}
	var errs []error
	for i := range results {
		errs = append(errs, d.Failures(&results[i])...)
	}
	return errors.Join(errs...)
}

// Failures puts into words why a test does not hold; nil where it does.
func (d *Document) Failures(r *TestResult) (errs []error) {
	t := &d.Tests[r.Test]
	if r.Pairs == 0 {
		return []error{fmt.Errorf("test %d: %s to %s matches no two nodes", r.Test+1, t.Src, t.Dst)}
	}
	for _, f := range r.Failures {
		errs = append(errs, fmt.Errorf("test %d: %s", r.Test+1, f))
	}
	return errs
}
