// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// fakeHub is a store, the presence and the reports of a mesh.
type fakeHub struct {
	mu      sync.Mutex
	a       store.Activation
	rv      uint64
	nodes   []store.Node
	docs    map[uint64][]byte
	online  map[identity.PeerID]bool
	reports map[identity.PeerID]Report
	endErr  error
}

func id(n byte) identity.PeerID { return identity.PeerID{n} }

func newFakeHub() *fakeHub {
	f := &fakeHub{
		a: store.Activation{Generation: 1, Active: 1}, rv: 1, docs: map[uint64][]byte{},
		online: map[identity.PeerID]bool{}, reports: map[identity.PeerID]Report{},
	}
	for n := byte(1); n <= 4; n++ {
		node := store.Node{ID: id(n), Name: fmt.Sprintf("n%d", n), State: store.Active}
		if n <= 2 {
			node.Tags = []string{"canary"}
		}
		f.nodes = append(f.nodes, node)
		f.online[id(n)] = true
	}
	for v := uint64(1); v <= 3; v++ {
		d := policy.Default()
		d.Allow[0].ID = fmt.Sprintf("v%d", v)
		if v == 3 {
			d.Tests = []policy.Test{{Src: "name:n1", Dst: "tag:intruder", Want: "allow"}, {Src: "tag:intruder", Dst: "name:n1", Want: "deny"}}
			d.Guards = []policy.Rule{{Src: []string{"name:n4"}, Dst: []string{"*"}}}
		}
		f.docs[v] = d.Marshal()
	}
	return f
}

func (f *fakeHub) State(context.Context) (store.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return store.State{RV: f.rv, Policy: f.a.Generation}, nil
}

func (f *fakeHub) ListNodes(context.Context) ([]store.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.nodes), nil
}

func (f *fakeHub) ReadPolicy(_ context.Context, v uint64) (store.PolicyVersion, error) {
	if f.docs[v] == nil {
		return store.PolicyVersion{}, store.ErrNotFound
	}
	return store.PolicyVersion{Version: v, Document: f.docs[v]}, nil
}

func (f *fakeHub) Activation(context.Context) (store.Activation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.a, nil
}

func (f *fakeHub) ActivatePolicy(_ context.Context, st store.Stage, _ uint64) (store.Activation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.a.Stage.State == store.StageCanary {
		return f.a, store.ErrStaged
	}
	st.Base, st.HoldUntil, st.Started = f.a.Active, time.Now().Add(st.HoldUntil.Sub(st.Started)), time.Now()
	f.a.Stage = st
	if st.State == store.StageActive {
		f.a.Active = st.Candidate
	}
	f.a.Generation++
	f.rv++
	return f.a, nil
}

func (f *fakeHub) EndStage(_ context.Context, started time.Time, state, reason string) (store.Activation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.endErr != nil {
		return f.a, f.endErr
	}
	if f.a.Stage.State != store.StageCanary || !f.a.Stage.Started.Equal(started) {
		return f.a, store.ErrConflict
	}
	f.a.Stage.State, f.a.Stage.Reason = state, reason
	if state == store.StageActive {
		f.a.Active = f.a.Stage.Candidate
	}
	f.a.Generation++
	f.rv++
	return f.a, nil
}

func (f *fakeHub) RollbackPolicy(ctx context.Context, reason string) (store.Activation, error) {
	f.mu.Lock()
	started := f.a.Stage.Started
	f.mu.Unlock()
	return f.EndStage(ctx, started, store.StageRolledBack, reason)
}

func (f *fakeHub) report(n byte, applied, denied uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reports[id(n)] = Report{ID: id(n), Applied: applied, Denied: denied, Time: time.Now()}
}

func (f *fakeHub) rollout() *Rollout {
	return NewRollout(RolloutConfig{
		Store: f,
		Online: func(id identity.PeerID) bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.online[id]
		},
		Reports: func(ids []identity.PeerID) (out []Report) {
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, id := range ids {
				if r, ok := f.reports[id]; ok {
					out = append(out, r)
				}
			}
			return out
		},
	})
}

// run runs r until the test's function ends.
func run(t *testing.T, f *fakeHub, do func(r *Rollout)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := f.rollout()
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	do(r)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func expectForce(t *testing.T, r *Rollout, want ...uint64) {
	t.Helper()
	for i, v := range want {
		got, doc, err := r.InForce(t.Context(), id(byte(i+1)))
		if err != nil || got != v || len(doc) == 0 {
			t.Errorf("version %d is in force for n%d, want %d (%v)", got, i+1, v, err)
		}
	}
}

func stagePlan(v uint64) Plan {
	return Plan{Candidate: v, Canary: []string{"tag:canary"}, Hold: time.Minute}
}

func TestRolloutPromotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeHub()
		run(t, f, func(r *Rollout) {
			expectForce(t, r, 1, 1, 1, 1)
			f.report(1, 2, 0) // what was said before does not count
			time.Sleep(time.Second)
			if _, err := r.Activate(t.Context(), stagePlan(2), 0); err != nil {
				t.Fatal(err)
			}
			expectForce(t, r, 2, 2, 1, 1)
			time.Sleep(2 * time.Second)
			st, err := r.Status(t.Context())
			if err != nil || st.CanaryNodes != 2 || st.Progress.Nodes != 2 || st.Progress.Applied != 0 || st.Progress.Left > time.Minute || st.Progress.Left < 55*time.Second {
				t.Errorf("%+v, %v", st, err)
			}
			f.report(1, 2, 0)
			f.report(2, 2, 0)
			// A node that becomes a canary by its tags meanwhile was told of no change.
			f.mu.Lock()
			f.nodes[2].Tags = []string{"canary"}
			f.rv++
			f.mu.Unlock()
			time.Sleep(50 * time.Second)
			expectForce(t, r, 2, 2, 1, 1)
			time.Sleep(15 * time.Second)
			expectForce(t, r, 2, 2, 2, 2)
			if st, err := r.Status(t.Context()); err != nil || st.Stage.State != store.StageActive || st.Generation != 3 || st.CanaryNodes != 0 {
				t.Errorf("%+v, %v", st, err)
			}
		})
	})
}

func TestRolloutRollsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeHub()
		run(t, f, func(r *Rollout) {
			p := stagePlan(2)
			p.Expect.MaxDeniedPerMinute = 10
			if _, err := r.Activate(t.Context(), p, 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			f.report(1, 2, 1000)
			time.Sleep(2 * time.Second)
			expectForce(t, r, 2, 2, 1, 1)
			f.report(1, 2, 1011)
			time.Sleep(2 * time.Second)
			expectForce(t, r, 1, 1, 1, 1)
			st, err := r.Status(t.Context())
			if err != nil || st.Stage.State != store.StageRolledBack || st.Stage.Reason != "n1 denied 11 packets in a minute, at most 10 wanted" {
				t.Errorf("%+v, %v", st, err)
			}
			// The next one is judged anew.
			if _, err := r.Activate(t.Context(), stagePlan(2), 0); err != nil {
				t.Fatal(err)
			}
			expectForce(t, r, 2, 2, 1, 1)
			if _, err := r.Rollback(t.Context(), "by hand"); err != nil {
				t.Fatal(err)
			}
			expectForce(t, r, 1, 1, 1, 1)
			time.Sleep(5 * time.Minute)
			expectForce(t, r, 1, 1, 1, 1)
		})
	})
}

// A node joins to which the candidate does not apply as its tests want.
func TestRolloutTests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeHub()
		run(t, f, func(r *Rollout) {
			if _, err := r.Activate(t.Context(), stagePlan(3), 0); !errors.Is(err, ErrTests) {
				t.Errorf("a test that matches nobody: %v", err)
			}
			expectForce(t, r, 1, 1, 1, 1)
			f.mu.Lock()
			f.nodes[3].Tags = []string{"intruder"} // n4, which is guarded
			f.mu.Unlock()
			if _, err := r.Activate(t.Context(), stagePlan(3), 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
			expectForce(t, r, 3, 3, 1, 1)
			f.mu.Lock()
			f.nodes[2].Tags = []string{"intruder"} // n3 is not
			f.rv++
			f.mu.Unlock()
			time.Sleep(7 * time.Second)
			expectForce(t, r, 1, 1, 1, 1)
		})
	})
}

// A stage goes on where another run of the hub has left it.
func TestRolloutRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeHub()
		run(t, f, func(r *Rollout) {
			if _, err := r.Activate(t.Context(), stagePlan(2), 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		})
		time.Sleep(time.Hour)
		f.online = map[identity.PeerID]bool{}
		run(t, f, func(r *Rollout) {
			expectForce(t, r, 2, 2, 1, 1)
			if _, err := r.Activate(t.Context(), stagePlan(2), 0); !errors.Is(err, store.ErrStaged) {
				t.Errorf("second stage: %v", err)
			}
			time.Sleep(20 * time.Second)
			f.mu.Lock()
			f.online[id(1)], f.online[id(2)] = true, true
			f.mu.Unlock()
			f.report(1, 2, 0)
			f.report(2, 2, 0)
			time.Sleep(45 * time.Second)
			expectForce(t, r, 2, 2, 2, 2)
		})
	})
}

// A store that cannot be written delays the decision, and does not lose it.
func TestRolloutStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeHub()
		run(t, f, func(r *Rollout) {
			if _, err := r.Activate(t.Context(), stagePlan(2), 0); err != nil {
				t.Fatal(err)
			}
			f.mu.Lock()
			f.endErr = errors.New("disk full")
			f.mu.Unlock()
			time.Sleep(2 * time.Minute)
			expectForce(t, r, 2, 2, 1, 1)
			f.mu.Lock()
			f.endErr = nil
			f.mu.Unlock()
			time.Sleep(2 * time.Second)
			expectForce(t, r, 1, 1, 1, 1)
		})
	})
}

func TestActivateRefuses(t *testing.T) {
	f := newFakeHub()
	r := f.rollout()
	for name, tc := range map[string]struct {
		plan Plan
		want error
	}{
		"no version": {Plan{Candidate: 9}, store.ErrNotFound},
		"no canary":  {Plan{Candidate: 2, Canary: []string{"tag:nobody"}}, ErrNoCanary},
		"bad canary": {Plan{Candidate: 2, Canary: []string{"nobody"}}, nil},
		"bad hold":   {Plan{Candidate: 2, Canary: []string{"*"}, Hold: time.Second}, nil},
	} {
		if _, err := r.Activate(t.Context(), tc.plan, 0); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	expectForce(t, r, 1, 1, 1, 1)
	st, err := r.Activate(t.Context(), Plan{Candidate: 2}, 1)
	if err != nil || st.Active != 2 || st.Generation != 2 {
		t.Errorf("at once: %+v, %v", st, err)
	}
	expectForce(t, r, 2, 2, 2, 2)
}

func TestSubjects(t *testing.T) {
	nodes := newFakeHub().nodes
	nodes[0].State = store.Revoked
	nodes[1].State = store.Pending
	nodes[2].ServerKey = true
	got := Subjects(nodes)
	if len(got) != 1 || got[0].ID != id(4) || got[0].Name != "n4" {
		t.Errorf("subjects %v", got)
	}
}
