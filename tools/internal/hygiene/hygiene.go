// SPDX-License-Identifier: Apache-2.0

// Package hygiene holds the rules of the tree that no linter knows: how the
// modules hang together, what every file carries and what none may say. Each
// rule is a function of a folder, so that a test can show it a bad tree.
package hygiene

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
)

// Rule looks at the tree below root and returns what breaks it, one
// "file: what" each.
type Rule func(ctx context.Context, root string) ([]string, error)

// Rules is every rule by name.
var Rules = map[string]Rule{
	"replaces name siblings":       Replaces,
	"requires follow versions":     Requires,
	"go.work lists the modules":    Workspace,
	"packages have a comment":      PackageComments,
	"files carry the license":      LicenseHeaders,
	"tests sleep in fake time":     Sleeps,
	"no machine or registry named": Places,
	"Makefile is short":            MakefileLength,
	"lock files name no address":   LockFiles,
	"actions are pinned":           Actions,
}

// unpublished are the modules that are never tagged.
var unpublished = []string{"lab", "tools"}

// Replaces wants each replace to name the sibling folder, each required
// sibling to be replaced, and no exclude: a consumer ignores those, and
// `go install` refuses them.
func Replaces(ctx context.Context, root string) ([]string, error) {
	return eachModule(ctx, root, func(_ string, mod *repo.GoMod) (bad []string) {
		replaced := map[string]bool{}
		for _, r := range mod.Replace {
			replaced[r.Old.Path] = true
			name, ours := strings.CutPrefix(r.Old.Path, repo.Prefix+"/")
			if !ours || r.Old.Version != "" || r.New.Version != "" || r.New.Path != "../"+name {
				bad = append(bad, fmt.Sprintf("replace %s => %s: only a sibling by ../name", r.Old.Path, r.New.Path))
			}
		}
		for _, r := range mod.Require {
			if strings.HasPrefix(r.Path, repo.Prefix+"/") && !replaced[r.Path] {
				bad = append(bad, fmt.Sprintf("require %s: lacks its replace", r.Path))
			}
		}
		for _, x := range mod.Exclude {
			bad = append(bad, "exclude "+x.Path+": would break go install")
		}
		return bad
	})
}

// Requires wants siblings at the version that versions.yaml gives them, one
// go line everywhere and no toolchain line.
func Requires(ctx context.Context, root string) ([]string, error) {
	versions, err := repo.ModuleVersions(root)
	if err != nil {
		return nil, err
	}
	return eachModule(ctx, root, func(dir string, mod *repo.GoMod) (bad []string) {
		if want := repo.Prefix + "/" + dir; mod.Module.Path != want {
			bad = append(bad, fmt.Sprintf("module %s: want %s", mod.Module.Path, want))
		}
		for _, r := range mod.Require {
			name, ours := strings.CutPrefix(r.Path, repo.Prefix+"/")
			if ours && r.Version != versions[name] {
				bad = append(bad, fmt.Sprintf("require %s %s: versions.yaml says %q", r.Path, r.Version, versions[name]))
			}
		}
		if mod.Go != "1.26.0" {
			bad = append(bad, fmt.Sprintf("go %s: want 1.26.0, in every module", mod.Go))
		}
		if mod.Toolchain != "" {
			bad = append(bad, "toolchain "+mod.Toolchain+": would bind consumers")
		}
		return bad
	})
}

// Workspace wants go.work to use every module but those below tools, and
// versions.yaml to name every one that is published.
func Workspace(ctx context.Context, root string) ([]string, error) {
	uses, err := repo.Uses(ctx, root)
	if err != nil {
		return nil, err
	}
	versions, err := repo.ModuleVersions(root)
	if err != nil {
		return nil, err
	}
	dirs, err := repo.ModuleDirs(root)
	if err != nil {
		return nil, err
	}
	var bad []string
	for _, d := range dirs {
		inTools := d == "tools" || strings.HasPrefix(d, "tools/")
		switch {
		case inTools && slices.Contains(uses, d):
			bad = append(bad, "go.work: uses "+d+", whose pins would bind everything else")
		case !inTools && !slices.Contains(uses, d):
			bad = append(bad, "go.work: does not use "+d)
		}
		if !inTools && !slices.Contains(unpublished, d) && versions[d] == "" {
			bad = append(bad, "versions.yaml: does not name "+d)
		}
	}
	for _, u := range uses {
		if !slices.Contains(dirs, u) {
			bad = append(bad, "go.work: uses "+u+", which is no module")
		}
	}
	for v := range versions {
		if !slices.Contains(dirs, v) {
			bad = append(bad, "versions.yaml: names "+v+", which is no module")
		}
	}
	slices.Sort(bad)
	return bad, nil
}

// MakefileLength wants a Makefile under 80 lines: logic belongs into Go.
func MakefileLength(_ context.Context, root string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(b), "\n"); n >= 80 {
		return []string{fmt.Sprintf("Makefile: %d lines, want fewer than 80", n)}, nil
	}
	return nil, nil
}

// eachModule calls fn for every module and puts the file's name before what
// it returns.
func eachModule(ctx context.Context, root string, fn func(dir string, mod *repo.GoMod) []string) ([]string, error) {
	dirs, err := repo.ModuleDirs(root)
	if err != nil {
		return nil, err
	}
	var bad []string
	for _, d := range dirs {
		mod, err := repo.ReadGoMod(ctx, filepath.Join(root, d))
		if err != nil {
			return nil, err
		}
		for _, b := range fn(d, mod) {
			bad = append(bad, d+"/go.mod: "+b)
		}
	}
	return bad, nil
}
