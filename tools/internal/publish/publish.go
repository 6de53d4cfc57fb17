// SPDX-License-Identifier: Apache-2.0

// Package publish makes a release and rehearses one.
//
// A release is two sets of tags. The modules that others require are tagged
// on a commit of main: consumers ignore their replaces. The modules that
// others install (edge, dispatch) are tagged on a detached commit on top of
// it that has no replaces, because `go install M@v` refuses a go.mod with
// them, and whose siblings therefore resolve by the first set's tags.
//
// Rehearse runs the same functions on a clone whose address stands in for
// the public one, and then does what a stranger would do with the result.
package publish

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// Tag is a module's folder and the version it is released at.
type Tag struct{ Module, Version string }

// String returns the tag's name, as the go command wants it.
func (t Tag) String() string { return t.Module + "/" + t.Version }

// Path returns the module's path.
func (t Tag) Path() string { return repo.Prefix + "/" + t.Module }

// Plan says which tags a release has.
type Plan struct {
	Required  []Tag // tagged where they are
	Installed []Tag // tagged without replaces
}

// Binaries are the commands that people install, by module.
var Binaries = map[string]string{"edge": "bauxite", "dispatch": "bauxite-dispatch"}

// NewPlan reads versions.yaml of the tree at root.
func NewPlan(root string) (Plan, error) {
	sets, err := repo.Versions(root)
	if err != nil {
		return Plan{}, err
	}
	var p Plan
	for _, s := range sets {
		for _, m := range s.Modules {
			if Binaries[m] == "" {
				p.Required = append(p.Required, Tag{m, s.Version})
			} else {
				p.Installed = append(p.Installed, Tag{m, s.Version})
			}
		}
	}
	if len(p.Installed) != len(Binaries) {
		return p, fmt.Errorf("plan release: versions.yaml must name the modules of %v", Binaries)
	}
	return p, nil
}

// TagAll puts tags on the commit that dir has checked out.
func TagAll(ctx context.Context, log *step.Log, dir string, tags []Tag) error {
	for _, t := range tags {
		c := step.Cmd{Dir: dir}
		if err := c.Run(ctx, log, "git", "tag", "-a", "-m", t.String(), t.String()); err != nil {
			return fmt.Errorf("tag %s: %w", t, err)
		}
	}
	return nil
}

// Detach makes the commit without replaces on top of what dir has checked
// out: in each installed module it drops the replaces and tidies, so that
// siblings resolve by their tags. env says where those tags are found.
func Detach(ctx context.Context, log *step.Log, dir string, env []string, tags []Tag) error {
	git := step.Cmd{Dir: dir}
	if err := git.Run(ctx, log, "git", "checkout", "-q", "--detach"); err != nil {
		return err
	}
	for _, t := range tags {
		mod, err := repo.ReadGoMod(ctx, filepath.Join(dir, t.Module))
		if err != nil {
			return err
		}
		args := []string{"mod", "edit"}
		for _, r := range mod.Replace {
			args = append(args, "-dropreplace="+r.Old.Path)
		}
		c := step.Cmd{Dir: filepath.Join(dir, t.Module), Env: append(slices.Clone(env), "GOWORK=off")}
		if len(mod.Replace) > 0 {
			if err := c.Run(ctx, log, "go", args...); err != nil {
				return err
			}
		}
		if err := c.Run(ctx, log, "go", "mod", "tidy"); err != nil {
			return fmt.Errorf("tidy %s without replaces: %w", t.Module, err)
		}
		if err := git.Run(ctx, log, "git", "add", t.Module+"/go.mod", t.Module+"/go.sum"); err != nil {
			return err
		}
	}
	names := make([]string, len(tags))
	for i, t := range tags {
		names[i] = t.String()
	}
	return git.Run(ctx, log, "git", "commit", "-q", "--allow-empty",
		"-m", "Release "+strings.Join(names, ", "),
		"-m", "A module with replaces cannot be installed by its path, so they are dropped here; siblings resolve by their tags.")
}
