// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/lab/build"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestKills is the bounded run; make chaos is the full one.
func TestKills(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	var progress strings.Builder
	rep, err := Run(t.Context(), Config{Bin: build.ForTest(t).Dispatch, Progress: &progress, Require: AllOps})
	if rep != nil {
		_ = rep.WriteText(&progress)
	}
	t.Log(progress.String())
	if err != nil {
		t.Fatal(err)
	}
}

// TestPlanIsOfTheSeed makes sure that a seed from a report can be run again.
func TestPlanIsOfTheSeed(t *testing.T) {
	a, b := newRunner(Config{Seed: 42}), newRunner(Config{Seed: 42})
	other := newRunner(Config{Seed: 43})
	same := true
	for range 50 {
		p := a.plan()
		if q := b.plan(); p != q {
			t.Fatalf("seed 42 plans %+v and %+v", p, q)
		}
		same = same && p == other.plan()
	}
	if same {
		t.Error("seeds 42 and 43 plan alike")
	}
}

// TestReport holds the texts that scripts and people read.
func TestReport(t *testing.T) {
	rep := &Report{Kills: 2, Seed: 3, Ops: map[string]*Count{opJoin: {Acked: 4}}, Failures: []string{"lost"}, DataDir: os.TempDir()}
	var text, js strings.Builder
	if err := rep.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if err := rep.WriteJSON(&js); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 kills", "seed 3", "join", "FAIL lost", "files kept"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("report lacks %q:\n%s", want, text.String())
		}
	}
	if !strings.Contains(js.String(), `"acknowledged": 4`) {
		t.Errorf("report is %s", js.String())
	}
}
