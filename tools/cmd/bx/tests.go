// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// endToEndModule holds the tests of built binaries. They count time, so they
// run alone and never under the race detector.
const endToEndModule = "lab"

func (e *env) unit(ctx context.Context) { e.goTest(ctx, "unit") }

func (e *env) race(ctx context.Context) { e.goTest(ctx, "race", "-race") }

func (e *env) goTest(ctx context.Context, name string, flags ...string) {
	for _, m := range e.modules {
		if m == endToEndModule {
			continue
		}
		e.do(ctx, name+": "+m, func(ctx context.Context, log *step.Log) error {
			args := append([]string{"test", "-shuffle=on", "-timeout=10m"}, flags...)
			return step.Cmd{Dir: e.path(m), Tests: true}.Run(ctx, log, "go", append(args, "./...")...)
		})
	}
}

// endToEnd runs the namespace tests, one package at a time: two labs at once
// would measure each other. Uncached, because they run what they build.
func (e *env) endToEnd(ctx context.Context) {
	e.do(ctx, "end to end: namespaces", func(ctx context.Context, log *step.Log) error {
		c := step.Cmd{Dir: e.path(endToEndModule), Tests: true}
		return c.Run(ctx, log, "go", "test", "-count=1", "-p=1", "-timeout=30m", "./...")
	})
}

// target is one fuzz test.
type target struct{ module, pkg, name string }

var fuzzFunc = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)

func fuzzTargets(root string) ([]target, error) {
	var found []target
	err := repo.Walk(root, func(p string) error {
		if !strings.HasSuffix(p, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path.Join(root, p))
		if err != nil {
			return err
		}
		module, rest, _ := strings.Cut(path.Dir(p), "/")
		for _, m := range fuzzFunc.FindAllStringSubmatch(string(b), -1) {
			found = append(found, target{module, "./" + rest, m[1]})
		}
		return nil
	})
	return found, err
}

func (e *env) fuzz(ctx context.Context) {
	targets, seconds, err := e.fuzzPlan()
	if err != nil {
		e.do(ctx, "fuzz", func(context.Context, *step.Log) error { return err })
		return
	}
	for _, t := range targets {
		e.do(ctx, fmt.Sprintf("fuzz: %s %s", path.Join(t.module, t.pkg), t.name), func(ctx context.Context, log *step.Log) error {
			return step.Cmd{Dir: e.path(t.module)}.Run(ctx, log, "go", "test", "-run=^$",
				"-fuzz=^"+t.name+"$", fmt.Sprintf("-fuzztime=%ds", seconds), t.pkg)
		})
	}
}

// fuzzPlan finds the targets and how long to run each.
func (e *env) fuzzPlan() (targets []target, seconds int, err error) {
	seconds = 30
	if s := os.Getenv("FUZZ_SECONDS"); s != "" {
		if seconds, err = strconv.Atoi(s); err != nil || seconds < 1 {
			return nil, 0, fmt.Errorf("read FUZZ_SECONDS=%q: want a number of seconds", s)
		}
	}
	if targets, err = fuzzTargets(e.root); err != nil {
		return nil, 0, err
	}
	if len(targets) == 0 {
		return nil, 0, errors.New("find fuzz targets: none")
	}
	slices.SortFunc(targets, func(a, b target) int {
		return strings.Compare(a.module+a.pkg+a.name, b.module+b.pkg+b.name)
	})
	return targets, seconds, nil
}
