// SPDX-License-Identifier: Apache-2.0

package hubdeb

import (
	"bytes"
	"context"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

// need skips the test where a program is missing, and fails it in CI.
func need(t *testing.T, program string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the hub is packaged for Linux")
	}
	if _, err := exec.LookPath(program); err != nil {
		lack(t, "needs "+program)
	}
}

func lack(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := repo.Root(".")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func read(t *testing.T, names ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(names...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// build makes a package and fails the test with the whole log.
func build(t *testing.T, out string) string {
	t.Helper()
	var file string
	steps := &bytes.Buffer{}
	ok := step.NewRunner(steps).Run(t.Context(), "build", func(ctx context.Context, log *step.Log) (err error) {
		file, err = Build(ctx, log, root(t), out, runtime.GOARCH)
		return err
	})
	if !ok {
		t.Fatal(steps)
	}
	return file
}

func TestPackage(t *testing.T) {
	need(t, "dpkg-deb")
	dir := t.TempDir()
	file := build(t, filepath.Join(dir, "a"))
	t.Run("again", func(t *testing.T) {
		if other := build(t, filepath.Join(dir, "b")); read(t, file) != read(t, other) {
			t.Error("two builds differ")
		}
	})
	tree := filepath.Join(dir, "tree")
	output(t, "dpkg-deb", "-R", file, tree)
	binary := filepath.Join(tree, "usr/bin/bauxite-dispatch")

	t.Run("static", func(t *testing.T) { static(t, binary) })
	t.Run("runs", func(t *testing.T) {
		version := strings.Split(filepath.Base(file), "_")[1]
		if out := output(t, binary, "version"); !strings.HasPrefix(out, "bauxite-dispatch v"+version+" ") {
			t.Errorf("version = %q", out)
		}
	})
	t.Run("environment", func(t *testing.T) {
		variables := regexp.MustCompile(`BAUXITE_DISPATCH_[A-Z0-9_]+`)
		want := variables.FindAllString(output(t, binary, "serve", "--help"), -1)
		have := variables.FindAllString(read(t, tree, "etc/bauxite-dispatch/env"), -1)
		have = append(have, "BAUXITE_DISPATCH_DATA") // set by the unit
		for _, v := range want {
			if !slices.Contains(have, v) {
				t.Errorf("packaging/debian/env lacks %s, a flag of serve", v)
			}
		}
		for _, v := range have {
			if !slices.Contains(want, v) {
				t.Errorf("packaging/debian/env has %s, which no flag of serve reads", v)
			}
		}
	})
	t.Run("unit", func(t *testing.T) {
		unit := read(t, tree, "usr/lib/systemd/system/bauxite-dispatch.service")
		for _, line := range []string{"ExecStart=/usr/bin/bauxite-dispatch serve", "User=bauxite-dispatch", "Environment=BAUXITE_DISPATCH_DATA=/var/lib/bauxite-dispatch"} {
			if !strings.Contains(unit, line+"\n") {
				t.Errorf("the unit lacks %s", line)
			}
		}
	})
	t.Run("scripts", func(t *testing.T) {
		for _, s := range []string{"postinst", "prerm", "postrm"} {
			output(t, "sh", "-n", filepath.Join(tree, "DEBIAN", s))
		}
		if got := read(t, tree, "DEBIAN/conffiles"); got != "/etc/bauxite-dispatch/env\n" {
			t.Errorf("conffiles = %q", got)
		}
	})
	t.Run("documents", func(t *testing.T) {
		notices := output(t, "gzip", "-dc", filepath.Join(tree, "usr/share/doc/bauxite-dispatch/NOTICES.gz"))
		for _, m := range []string{"==== The Go standard library\n", "==== connectrpc.com/connect v", "==== modernc.org/sqlite v"} {
			if !strings.Contains(notices, m) {
				t.Errorf("NOTICES lacks %s", strings.TrimSpace(m))
			}
		}
		if strings.Contains(notices, repo.Prefix) {
			t.Error("NOTICES names our own modules")
		}
		page := output(t, "gzip", "-dc", filepath.Join(tree, "usr/share/man/man8/bauxite-dispatch.8.gz"))
		if !strings.Contains(page, ".SH") || !strings.Contains(page, "token") {
			t.Errorf("manual page = %.200q", page)
		}
	})
}

func static(t *testing.T, binary string) {
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary wants a dynamic linker")
		}
	}
	if f.Section(".debug_info") != nil || f.Section(".symtab") != nil {
		t.Error("the binary has debug tables")
	}
}

// The score is systemd's own; 1.1 is reached, and a change that costs protection
// shows.
func TestUnitIsHardened(t *testing.T) {
	need(t, "systemd-analyze")
	dir := root(t)
	unit := filepath.Join(t.TempDir(), "bauxite-dispatch.service")
	// verify wants what ExecStart names to exist.
	text := strings.Replace(read(t, dir, "packaging/systemd/bauxite-dispatch.service"), "/usr/bin/bauxite-dispatch", "/bin/true", 1)
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := output(t, "systemd-analyze", "verify", "--man=no", unit); strings.Contains(out, "bauxite") {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	output(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=12", unit)
}

func TestLicensesMustBeThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "NOTICE"), []byte("n\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := licenses(&bytes.Buffer{}, dir); err == nil {
		t.Error("a module without a license passed")
	}
	if err := os.WriteFile(filepath.Join(dir, "LICENCE.md"), []byte("do\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := licenses(&text, dir); err != nil || !strings.Contains(text.String(), "-- LICENCE.md\n\ndo\n") || !strings.Contains(text.String(), "-- NOTICE\n") {
		t.Errorf("licenses = %q, %v", text.String(), err)
	}
}

func TestVersion(t *testing.T) {
	need(t, "git")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "versions.yaml"), []byte("fleet:\n  version: v1.2.3\n  modules: [dispatch]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z", "GIT_AUTHOR_DATE=2026-01-02T03:04:05Z")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	check := func(want string) {
		t.Helper()
		steps := step.NewRunner(io.Discard)
		var got string
		if !steps.Run(t.Context(), "version", func(ctx context.Context, log *step.Log) (err error) {
			got, _, err = version(ctx, log, dir)
			return err
		}) {
			t.Fatal("version failed")
		}
		if ok, _ := regexp.MatchString("^"+want+"$", got); !ok {
			t.Errorf("version = %s, want %s", got, want)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "x")
	check(`1\.2\.3~git20260102030405\.[0-9a-f]+`)
	git("tag", "dispatch/v1.2.3")
	check(`1\.2\.3`)
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	check(`1\.2\.3~git20231114221320\.[0-9a-f]+\.dirty`)
}
