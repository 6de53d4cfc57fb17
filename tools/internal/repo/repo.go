// SPDX-License-Identifier: Apache-2.0

// Package repo reads the shape of the workspace: where its root is, which
// modules it has, and at which version each set of modules stands. The
// programs in tools share it so that no list of modules is written twice.
package repo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Prefix is the path that every module of the workspace starts with.
const Prefix = "github.com/bauxite-mesh/bauxite"

// Remote is the address that the module paths stand for.
const Remote = "https://" + Prefix

// Root walks up from dir to the folder that holds go.work.
func Root(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.work")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("find go.work above %s: %w", dir, os.ErrNotExist)
		}
	}
}

// GoMod is what the programs need of a go.mod.
type GoMod struct {
	Module  struct{ Path string }
	Go      string
	Require []struct{ Path, Version string }
	Replace []struct {
		Old, New struct{ Path, Version string }
	}
	Exclude   []struct{ Path, Version string }
	Toolchain string
}

// ReadGoMod parses dir/go.mod with the go command itself.
func ReadGoMod(ctx context.Context, dir string) (*GoMod, error) {
	var m GoMod
	if err := goJSON(ctx, dir, &m, "mod", "edit", "-json"); err != nil {
		return nil, fmt.Errorf("read go.mod in %s: %w", dir, err)
	}
	return &m, nil
}

// Uses lists the folders that go.work names, without "./", sorted.
func Uses(ctx context.Context, root string) ([]string, error) {
	var w struct{ Use []struct{ DiskPath string } }
	if err := goJSON(ctx, root, &w, "work", "edit", "-json", "go.work"); err != nil {
		return nil, fmt.Errorf("read go.work: %w", err)
	}
	var dirs []string
	for _, u := range w.Use {
		dirs = append(dirs, filepath.ToSlash(filepath.Clean(u.DiskPath)))
	}
	slices.Sort(dirs)
	return dirs, nil
}

func goJSON(ctx context.Context, dir string, into any, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return err
	}
	return json.Unmarshal(out, into)
}

// Set is a group of modules that carry one version.
type Set struct {
	Name    string
	Version string // with the v, as in a tag
	Modules []string
}

// Versions reads versions.yaml. The file is a two-level map written in the
// simplest YAML there is, so it is read line by line: a parser would be the
// only dependency of these programs.
func Versions(root string) ([]Set, error) {
	f, err := os.Open(filepath.Join(root, "versions.yaml"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var sets []Set
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimRight(s.Text(), " ")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch nested := strings.HasPrefix(line, "  "); {
		case !ok:
			return nil, fmt.Errorf("read versions.yaml:%d: %q is not key: value", n, line)
		case !nested && value == "":
			sets = append(sets, Set{Name: key})
		case nested && len(sets) > 0 && key == "version":
			sets[len(sets)-1].Version = value
		case nested && len(sets) > 0 && key == "modules":
			for m := range strings.SplitSeq(strings.Trim(value, "[]"), ",") {
				sets[len(sets)-1].Modules = append(sets[len(sets)-1].Modules, strings.TrimSpace(m))
			}
		default:
			return nil, fmt.Errorf("read versions.yaml:%d: unknown entry %q", n, line)
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	for _, set := range sets {
		if set.Version == "" || len(set.Modules) == 0 {
			return nil, fmt.Errorf("read versions.yaml: set %s lacks a version or modules", set.Name)
		}
	}
	return sets, nil
}

// ModuleVersions maps each published module's folder to its version.
func ModuleVersions(root string) (map[string]string, error) {
	sets, err := Versions(root)
	if err != nil {
		return nil, err
	}
	versions := map[string]string{}
	for _, s := range sets {
		for _, m := range s.Modules {
			versions[m] = s.Version
		}
	}
	return versions, nil
}

// ModuleDirs finds every folder below root that holds a go.mod, sorted.
func ModuleDirs(root string) ([]string, error) {
	var dirs []string
	err := Walk(root, func(path string) error {
		if filepath.Base(path) == "go.mod" {
			dirs = append(dirs, filepath.ToSlash(filepath.Dir(path)))
		}
		return nil
	})
	slices.Sort(dirs)
	return dirs, err
}

// Walk calls fn with the path, relative to root, of every regular file that
// belongs to the project: hidden folders other than .ci and .github,
// node_modules and testdata are left out.
func Walk(root string, fn func(path string) error) error {
	return filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			hidden := strings.HasPrefix(name, ".") && name != ".ci" && name != ".github" && path != root
			if hidden || name == "node_modules" || name == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return fn(filepath.ToSlash(rel))
	})
}
