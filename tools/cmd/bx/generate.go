// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// stubs is where generated code lives; only generate writes there.
const stubs = "proto/gen"

func generateCommand(ctx context.Context, e *env) error {
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	check := flags.Bool("check", false, "write nothing; fail when the committed stubs differ")
	if err := flags.Parse(e.args); err != nil {
		return err
	}
	e.tools(ctx)
	if *check {
		e.generateCheck(ctx)
	} else {
		e.do(ctx, "generate: stubs", func(ctx context.Context, log *step.Log) error {
			return step.Cmd{Dir: e.root}.Run(ctx, log, e.path(".bin", "buf"), "generate")
		})
		e.do(ctx, "generate: queries", func(ctx context.Context, log *step.Log) error {
			return step.Cmd{Dir: e.path("dispatch")}.Run(ctx, log, e.path(".bin", "sqlc"), "generate")
		})
	}
	return e.run.Finish(ctx)
}

// generateCheck generates into an empty folder and compares: a stale stub,
// a forgotten one and an edited one all show.
func (e *env) generateCheck(ctx context.Context) {
	e.do(ctx, "generate: stubs are current", func(ctx context.Context, log *step.Log) error {
		tmp, err := os.MkdirTemp("", "bauxite-generate-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		if err := (step.Cmd{Dir: e.root}).Run(ctx, log, e.path(".bin", "buf"), "generate", "-o", tmp); err != nil {
			return err
		}
		diffs, err := compareTrees(e.path(stubs), filepath.Join(tmp, stubs))
		if err != nil {
			return err
		}
		for _, d := range diffs {
			log.Printf("%s", d)
		}
		if len(diffs) > 0 {
			return fmt.Errorf("%d stubs differ from the schema: run make generate", len(diffs))
		}
		return nil
	})
	e.do(ctx, "generate: queries are current", func(ctx context.Context, log *step.Log) error {
		if err := (step.Cmd{Dir: e.path("dispatch")}).Run(ctx, log, e.path(".bin", "sqlc"), "diff"); err != nil {
			return fmt.Errorf("queries differ from their SQL: run make generate: %w", err)
		}
		return nil
	})
}

// compareTrees names the files that differ between two folders.
func compareTrees(have, want string) ([]string, error) {
	a, err := readTree(have)
	if err != nil {
		return nil, err
	}
	b, err := readTree(want)
	if err != nil {
		return nil, err
	}
	var diffs []string
	for name, text := range b {
		if old, ok := a[name]; !ok {
			diffs = append(diffs, name+": not committed")
		} else if !bytes.Equal(old, text) {
			diffs = append(diffs, name+": out of date")
		}
	}
	for name := range a {
		if _, ok := b[name]; !ok {
			diffs = append(diffs, name+": no schema makes it")
		}
	}
	slices.Sort(diffs)
	return diffs, nil
}

func readTree(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == dir {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)], err = os.ReadFile(path)
		return err
	})
	return files, err
}
