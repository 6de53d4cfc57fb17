// SPDX-License-Identifier: Apache-2.0

package lanequeue

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func drain(q *Queue[string]) (out []string) {
	for {
		w, wl, wok := q.Peek()
		v, lane, ok := q.Pop()
		if v != w || lane != wl || ok != wok {
			return []string{"peek differs from pop"}
		}
		if !ok {
			return out
		}
		out = append(out, v)
	}
}

func TestOrder(t *testing.T) {
	q := New[string](8)
	for i, v := range []string{"b1", "t1", "c1", "b2", "t2", "c2"} {
		if _, from := q.Push([]int{2, 1, 0}[i%3], v); from != -1 {
			t.Errorf("push %s dropped from lane %d", v, from)
		}
	}
	if diff := cmp.Diff([]string{"c1", "c2", "t1", "t2", "b1", "b2"}, drain(q)); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestFull(t *testing.T) {
	for _, tc := range []struct {
		name        string
		have        []int // lanes, numbered from 0
		push        int
		wantDropped string
		wantFrom    int
	}{
		{"oldest bulk goes for critical", []int{2, 2, 1}, 0, "0", 2},
		{"oldest bulk goes for bulk", []int{0, 2, 2}, 2, "1", 2},
		{"telemetry goes for critical", []int{0, 1, 1}, 0, "1", 1},
		{"oldest critical goes for critical", []int{0, 0, 0}, 0, "0", 0},
		{"new bulk goes itself", []int{0, 0, 1}, 2, "new", 2},
		{"a lane that is none is bulk", []int{0, 0, 0}, 7, "new", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := New[string](3)
			for i, l := range tc.have {
				q.Push(l, string(rune('0'+i)))
			}
			dropped, from := q.Push(tc.push, "new")
			if dropped != tc.wantDropped || from != tc.wantFrom || q.Len() != 3 {
				t.Errorf("dropped %q of lane %d, %d left; want %q of lane %d, 3 left", dropped, from, q.Len(), tc.wantDropped, tc.wantFrom)
			}
		})
	}
}

// TestModel compares the rings, around their ends, with slices.
func TestModel(t *testing.T) {
	const limit = 5
	q := New[int](limit)
	var want [Lanes][]int
	for i := range 10_000 {
		if rand.IntN(5) < 2 {
			v, lane, ok := q.Pop()
			w := slices.IndexFunc(want[:], func(s []int) bool { return len(s) > 0 })
			if ok != (w >= 0) || ok && (lane != w || v != want[w][0]) {
				t.Fatalf("step %d: pop gives %d of lane %d, %v", i, v, lane, ok)
			}
			if ok {
				want[w] = want[w][1:]
			}
			continue
		}
		l := rand.IntN(Lanes)
		want[l] = append(want[l], i)
		if len(want[0])+len(want[1])+len(want[2]) > limit {
			for from := Lanes - 1; ; from-- {
				if len(want[from]) > 0 {
					want[from] = want[from][1:]
					break
				}
			}
		}
		q.Push(l, i)
	}
}
