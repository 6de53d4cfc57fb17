// SPDX-License-Identifier: Apache-2.0

package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrebuilt(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(BinEnv, dir)
	if _, err := Build(t.Context(), nil); err == nil {
		t.Error("Build found binaries in an empty folder")
	}
	for _, target := range targets {
		if err := os.WriteFile(filepath.Join(dir, target.name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := Build(t.Context(), nil)
	if err != nil || b.Bauxite != filepath.Join(dir, "bauxite") || b.Dispatch != filepath.Join(dir, "bauxite-dispatch") {
		t.Errorf("Build = %+v, %v, want the files in %s", b, err, dir)
	}
}

func TestBuildOne(t *testing.T) {
	module := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(module, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GOWORK", "off")
	write("go.mod", "module example.org/x\n\ngo 1.26.0\n")
	write("cmd/x/main.go", "package main\n\nfunc main() {}\n")
	out := t.TempDir()
	if err := buildOne(t.Context(), module, "x", out, nil); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(out, "x")); err != nil || st.Mode()&0o111 == 0 {
		t.Errorf("no program at the end: %v", err)
	}
	write("cmd/x/main.go", "package main\n\nfunc main() { undefined() }\n")
	if err := buildOne(t.Context(), module, "x", out, nil); err == nil || !strings.Contains(err.Error(), "undefined") {
		t.Errorf("build of broken code = %v, want the compiler's words", err)
	}
	if left, err := filepath.Glob(filepath.Join(out, "build-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRoot(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "lab", "go.mod")); err != nil {
		t.Errorf("workspace %s has no lab: %v", root, err)
	}
	t.Chdir(t.TempDir())
	if dir, err := Root(); err == nil {
		t.Errorf("found a workspace at %s", dir)
	}
}
