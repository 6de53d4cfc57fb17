// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// withPolicies opens a store with n versions, of which the first is active.
func withPolicies(t *testing.T, n int) *fixture {
	t.Helper()
	f := open(t, "", testMeta)
	ctx := WithActor(context.Background(), "user:eve")
	if err := f.InitPolicy(ctx, []byte("1")); err != nil {
		t.Fatal(err)
	}
	for v := 2; v <= n; v++ {
		got, err := f.ProposePolicy(ctx, NewPolicy{Source: fmt.Sprintf("// %d", v), Document: fmt.Append(nil, v), Base: uint64(v - 1), Note: "n"})
		if err != nil || got != uint64(v) {
			t.Fatalf("ProposePolicy = %d, %v", got, err)
		}
	}
	return f
}

func canary(candidate uint64) Stage {
	return Stage{
		Candidate: candidate, State: StageCanary, Canary: []string{"tag:c"}, HoldUntil: time.Time{}.Add(time.Minute),
		Expect: `{"min_online_percent":50}`, Detail: `{"nodes":["x"]}`,
	}
}

// state is what is in force in a few words, and how many changes were told.
func (f *fixture) state(t *testing.T) string {
	t.Helper()
	a, err := f.Activation(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.TrimSpace(fmt.Sprintf("g%d active %d, %s %d on %d %s; %d told", a.Generation, a.Active, a.Stage.State, a.Stage.Candidate, a.Stage.Base, a.Stage.Reason, len(f.events)))
}

func TestPolicyVersions(t *testing.T) {
	f := withPolicies(t, 3)
	ctx := context.Background()
	if _, err := f.ProposePolicy(ctx, NewPolicy{Document: []byte("x"), Base: 2}); !errors.Is(err, ErrConflict) {
		t.Errorf("stale base: %v", err)
	}
	list, err := f.ListPolicies(ctx, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	want := []PolicyVersion{
		{Version: 3, Parent: 2, Author: "user:eve", Note: "n"},
		{Version: 2, Parent: 1, Author: "user:eve", Note: "n"},
		{Version: 1, Author: "user:eve", Active: true},
	}
	if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(PolicyVersion{}, "Created", "SHA256")); diff != "" {
		t.Error(diff)
	}
	if list, err := f.ListPolicies(ctx, 3, 1); err != nil || len(list) != 1 || list[0].Version != 2 {
		t.Errorf("page: %+v, %v", list, err)
	}
	p, err := f.ReadPolicy(ctx, 2)
	if err != nil || p.Source != "// 2" || string(p.Document) != "2" || len(p.SHA256) != 32 || p.Active || time.Since(p.Created) > time.Minute {
		t.Errorf("ReadPolicy = %+v, %v", p, err)
	}
	if p, err := f.ReadPolicy(ctx, 0); err != nil || p.Version != 1 || !p.Active {
		t.Errorf("active: %+v, %v", p, err)
	}
	if _, err := f.ReadPolicy(ctx, 9); !errors.Is(err, ErrNotFound) {
		t.Errorf("version 9: %v", err)
	}
	// A proposal is no news for nodes.
	if got, want := f.state(t), "g1 active 1,  0 on 0 ; 1 told"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Of any number of authors who have seen the same version one wins.
func TestProposeRace(t *testing.T) {
	f := withPolicies(t, 1)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 20 {
		wg.Go(func() {
			_, err := f.ProposePolicy(context.Background(), NewPolicy{Document: []byte("x"), Base: 1})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d proposals with the same base", won)
	}
}

func TestActivateAtOnce(t *testing.T) {
	f := withPolicies(t, 3)
	ctx := context.Background()
	for _, tc := range []struct {
		candidate, active uint64
		want              error
	}{{9, 0, ErrNotFound}, {1, 0, ErrConflict}, {2, 3, ErrConflict}} {
		if _, err := f.ActivatePolicy(ctx, Stage{Candidate: tc.candidate, State: StageActive}, tc.active); !errors.Is(err, tc.want) {
			t.Errorf("activate %d: %v, want %v", tc.candidate, err, tc.want)
		}
	}
	a, err := f.ActivatePolicy(ctx, Stage{Candidate: 2, State: StageActive}, 1)
	if err != nil || a.Active != 2 {
		t.Errorf("ActivatePolicy = %+v, %v", a, err)
	}
	if got, want := f.state(t), "g2 active 2, active 2 on 1 ; 2 told"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := f.ActivatePolicy(ctx, Stage{Candidate: 3, State: StageActive}, 0); err != nil {
		t.Error(err)
	}
	// Back once; there is no second way back.
	if _, err := f.RollbackPolicy(ctx, "bad"); err != nil {
		t.Error(err)
	}
	if got, want := f.state(t), "g4 active 2, rolled-back 3 on 2 bad; 4 told"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := f.RollbackPolicy(ctx, "again"); !errors.Is(err, ErrConflict) {
		t.Errorf("second rollback: %v", err)
	}
}

func TestRollbackOfTheFirst(t *testing.T) {
	f := withPolicies(t, 1)
	if _, err := f.RollbackPolicy(context.Background(), ""); !errors.Is(err, ErrConflict) {
		t.Errorf("rollback of nothing: %v", err)
	}
}

func TestStagedActivation(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(f *fixture, a Activation) error
		want string
	}{
		"promoted": {func(f *fixture, a Activation) error {
			_, err := f.EndStage(context.Background(), a.Stage.Started, StageActive, "")
			return err
		}, "g3 active 2, active 2 on 1 ; 3 told"},
		"failed": {func(f *fixture, a Activation) error {
			_, err := f.EndStage(context.Background(), a.Stage.Started, StageRolledBack, "why")
			return err
		}, "g3 active 1, rolled-back 2 on 1 why; 3 told"},
		"stopped": {func(f *fixture, _ Activation) error {
			_, err := f.RollbackPolicy(context.Background(), "by hand")
			return err
		}, "g3 active 1, rolled-back 2 on 1 by hand; 3 told"},
	} {
		t.Run(name, func(t *testing.T) {
			f := withPolicies(t, 3)
			ctx := context.Background()
			a, err := f.ActivatePolicy(ctx, canary(2), 0)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := f.state(t), "g2 active 1, canary 2 on 1 ; 2 told"; got != want {
				t.Fatalf("%s, want %s", got, want)
			}
			if hold := a.Stage.HoldUntil.Sub(a.Stage.Started); hold != time.Minute || time.Since(a.Stage.Started) > time.Minute {
				t.Errorf("started %v, hold %v", a.Stage.Started, hold)
			}
			if _, err := f.ActivatePolicy(ctx, canary(3), 0); !errors.Is(err, ErrStaged) || !errors.Is(err, ErrConflict) {
				t.Errorf("second stage: %v", err)
			}
			// All of it is there after a restart.
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			told := f.events
			f = open(t, f.path, testMeta)
			f.events = told
			again, err := f.Activation(ctx)
			if diff := cmp.Diff(a, again); diff != "" || err != nil {
				t.Errorf("after a restart: %s %v", diff, err)
			}
			if again.Stage.Detail == "" || again.Stage.Expect == "" || len(again.Stage.Canary) != 1 {
				t.Errorf("stage %+v", again.Stage)
			}
			if _, err := f.EndStage(ctx, a.Stage.Started.Add(1), StageActive, ""); !errors.Is(err, ErrConflict) {
				t.Errorf("end of another stage: %v", err)
			}
			if err := tc.end(f, again); err != nil {
				t.Fatal(err)
			}
			if got := f.state(t); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
			if _, err := f.EndStage(ctx, a.Stage.Started, StageActive, ""); !errors.Is(err, ErrConflict) {
				t.Errorf("second end: %v", err)
			}
			if _, err := f.ActivatePolicy(ctx, canary(3), 0); err != nil {
				t.Errorf("next stage: %v", err)
			}
		})
	}
}

func TestPolicyIsAudited(t *testing.T) {
	f := withPolicies(t, 2)
	ctx := WithActor(context.Background(), "key:1")
	a, err := f.ActivatePolicy(ctx, canary(2), 0)
	if err == nil {
		_, err = f.EndStage(context.Background(), a.Stage.Started, StageActive, "")
	}
	if err == nil {
		_, err = f.RollbackPolicy(ctx, "no good")
	}
	if err != nil {
		t.Fatal(err)
	}
	entries, err := f.Audit(context.Background(), AuditFilter{Action: "policy.", Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Actor+" "+e.Action+" "+e.Target)
	}
	want := []string{"user:eve policy.activate 1", "user:eve policy.propose 2", "key:1 policy.stage 2", "hub policy.activate 2", "key:1 policy.rollback 1"}
	if diff := cmp.Diff(want, got, cmpopts.SortSlices(func(a, b string) bool { return a < b })); diff != "" {
		t.Error(diff)
	}
}
