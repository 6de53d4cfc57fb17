// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo/repotest"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

func TestReachedWantsACall(t *testing.T) {
	answer := `{"config":{}}
{"osv":{"id":"GO-1"}}
{"finding":{"osv":"GO-1","trace":[{"module":"m"}]}}
{"finding":{"osv":"GO-2","trace":[{"module":"m","package":"p","function":"F"}]}}
{"finding":{"osv":"GO-2","trace":[{"module":"m","package":"p","function":"G"}]}}`
	got, err := reached(strings.NewReader(answer))
	if err != nil || !slices.Equal(got, []string{"GO-2"}) {
		t.Errorf("reached = %v, %v, want [GO-2]", got, err)
	}
	if _, err := reached(strings.NewReader(`{"finding":`)); err == nil {
		t.Error("reached(half an answer) = nil error")
	}
}

func TestReadAllowedWantsReasons(t *testing.T) {
	name := filepath.Join(t.TempDir(), "allow.txt")
	repotest.Put(t, name, "# comment\nGO-1  never called\n")
	if got, err := readAllowed(name); err != nil || got["GO-1"] != "never called" {
		t.Errorf("readAllowed = %v, %v", got, err)
	}
	repotest.Put(t, name, "GO-1\n")
	if _, err := readAllowed(name); err == nil || !strings.Contains(err.Error(), "no reason") {
		t.Errorf("readAllowed(no reason) = %v", err)
	}
}

func TestCompareTrees(t *testing.T) {
	have, want := t.TempDir(), t.TempDir()
	for dir, files := range map[string]map[string]string{
		have: {"same": "1", "x/edited": "1", "left": "1"},
		want: {"same": "1", "x/edited": "2", "x/new": "1"},
	} {
		for name, text := range files {
			repotest.Put(t, filepath.Join(dir, name), text)
		}
	}
	got, err := compareTrees(have, want)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"left: no schema makes it", "x/edited: out of date", "x/new: not committed"}; !slices.Equal(got, want) {
		t.Errorf("compareTrees = %q, want %q", got, want)
	}
}

func TestFuzzTargets(t *testing.T) {
	root := t.TempDir()
	repotest.Put(t, filepath.Join(root, "conduit/internal/wire/a_test.go"), "package wire\n\nfunc FuzzHeader(f *testing.F) {}\n\nfunc TestX(t *testing.T) {}\n")
	repotest.Put(t, filepath.Join(root, "edge/b_test.go"), "package edge\n\nfunc FuzzConfig(f *testing.F) {}\n")
	got, err := fuzzTargets(root)
	if err != nil {
		t.Fatal(err)
	}
	if want := []target{{"conduit", "./internal/wire", "FuzzHeader"}, {"edge", "./", "FuzzConfig"}}; !slices.Equal(got, want) {
		t.Errorf("fuzzTargets = %v, want %v", got, want)
	}
}

func TestUnlessFreshInstallsOnce(t *testing.T) {
	e := &env{root: t.TempDir()}
	repotest.Put(t, e.path("pins"), "v1")
	n := 0
	install := func() error { n++; return nil }
	for _, want := range []int{1, 1} {
		if err := e.unlessFresh("x", []string{"pins"}, install); err != nil || n != want {
			t.Errorf("installed %d times, %v, want %d", n, err, want)
		}
	}
	repotest.Put(t, e.path("pins"), "v2")
	if err := e.unlessFresh("x", []string{"pins"}, install); err != nil || n != 2 {
		t.Errorf("installed %d times after a new pin, %v, want 2", n, err)
	}
}

func TestBufPin(t *testing.T) {
	name := filepath.Join(t.TempDir(), "package.json")
	repotest.Put(t, name, `{"optionalDependencies": {"`+bufPackage()+`": "1.2.3", "other": "1.2.3"}}`)
	if v, here, err := bufPin(name); err != nil || v != "1.2.3" || !here {
		t.Errorf("bufPin = %q, %v, %v", v, here, err)
	}
	repotest.Put(t, name, `{"optionalDependencies": {"other": "1.2.3"}}`)
	if v, here, err := bufPin(name); err != nil || v != "1.2.3" || here {
		t.Errorf("bufPin(other platform) = %q, %v, %v", v, here, err)
	}
	repotest.Put(t, name, `{"optionalDependencies": {"a": "1.2.3", "b": "1.2.4"}}`)
	if _, _, err := bufPin(name); err == nil {
		t.Error("bufPin(two versions) = nil error")
	}
}

func TestMissing(t *testing.T) {
	if err := missing(true, nil, "hint"); err != nil {
		t.Errorf("missing(nothing) = %v", err)
	}
	want := step.Skip("lacking ping; install it")
	if err := missing(false, []string{"ping"}, "install it"); !errors.Is(err, want) {
		t.Errorf("missing on a laptop = %v, want a Skip", err)
	}
	if err := missing(true, []string{"ping"}, "install it"); err == nil || errors.Is(err, want) {
		t.Errorf("missing in CI = %v, want an error", err)
	}
}
