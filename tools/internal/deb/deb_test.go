// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func sample() Package {
	return Package{
		Control: "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a thing\n that is long\n",
		Scripts: map[string][]byte{"postinst": []byte("#!/bin/sh\n"), "prerm": []byte("#!/bin/sh\n")},
		Files: []File{
			{Path: "/usr/bin/x", Mode: 0o755, Data: bytes.Repeat([]byte("x"), 1500)},
			{Path: "/etc/x/env", Mode: 0o644, Data: []byte("A=1\n"), Conffile: true},
			{Path: "/usr/share/doc/x/copyright", Mode: 0o644, Data: []byte("free\n")},
		},
		Time: time.Unix(1_700_000_000, 123),
	}
}

func write(t *testing.T, p Package) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := Write(&buf, p); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// members cuts an ar archive up.
func members(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	b, ok := bytes.CutPrefix(b, []byte("!<arch>\n"))
	if !ok {
		t.Fatal("not an ar archive")
	}
	found := map[string][]byte{}
	for len(b) > 0 {
		var size int
		if _, err := fmt.Sscan(string(b[48:58]), &size); err != nil || string(b[58:60]) != "`\n" {
			t.Fatalf("header %q: %v", b[:60], err)
		}
		found[strings.TrimSpace(string(b[:16]))] = b[60 : 60+size]
		b = b[60+size+size%2:]
	}
	return found
}

// list reads a tar as "mode path" lines, and its files' texts.
func list(t *testing.T, b []byte) (lines []string, texts map[string]string) {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	texts = map[string]string{}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return lines, texts
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "root" || !h.ModTime.Equal(time.Unix(1_700_000_000, 0)) {
			t.Errorf("%s: owner %d:%d %s, time %v", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		lines = append(lines, fmt.Sprintf("%o %s", h.Mode, h.Name))
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		texts[h.Name] = string(text)
	}
}

func TestWrite(t *testing.T) {
	ar := members(t, write(t, sample()))
	if string(ar["debian-binary"]) != "2.0\n" || len(ar) != 3 {
		t.Errorf("members = %q", slices.Sorted(maps.Keys(ar)))
	}
	lines, _ := list(t, ar["data.tar.gz"])
	want := []string{
		"755 ./", "755 ./etc/", "755 ./etc/x/", "644 ./etc/x/env", "755 ./usr/", "755 ./usr/bin/", "755 ./usr/bin/x",
		"755 ./usr/share/", "755 ./usr/share/doc/", "755 ./usr/share/doc/x/", "644 ./usr/share/doc/x/copyright",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("data = %q, want %q", lines, want)
	}
	lines, texts := list(t, ar["control.tar.gz"])
	want = []string{"755 ./", "644 ./conffiles", "644 ./control", "644 ./md5sums", "755 ./postinst", "755 ./prerm"}
	if !slices.Equal(lines, want) {
		t.Errorf("control = %q, want %q", lines, want)
	}
	if texts["./conffiles"] != "/etc/x/env\n" {
		t.Errorf("conffiles = %q", texts["./conffiles"])
	}
	if !strings.Contains(texts["./control"], "Architecture: all\nInstalled-Size: 4\nMaintainer: ") {
		t.Errorf("control = %q", texts["./control"])
	}
	if !strings.HasPrefix(texts["./md5sums"], "7b9ee9647aa60af266c790de3f659403  etc/x/env\n") {
		t.Errorf("md5sums = %q", texts["./md5sums"])
	}
}

func TestWriteIsReproducible(t *testing.T) {
	a, b := sample(), sample()
	slices.Reverse(b.Files)
	if !bytes.Equal(write(t, a), write(t, b)) {
		t.Error("the order of the files changes the package")
	}
	b.Time = b.Time.Add(time.Second)
	if bytes.Equal(write(t, a), write(t, b)) {
		t.Error("the time does not change the package")
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		edit       func(*Package)
	}{
		{"relative", "not a clean absolute path", func(p *Package) { p.Files[0].Path = "usr/bin/x" }},
		{"unclean", "not a clean absolute path", func(p *Package) { p.Files[0].Path = "/usr/../x" }},
		{"twice", "is there twice", func(p *Package) { p.Files[0].Path = "/etc/x/env" }},
		{"setuid", "permission bits only", func(p *Package) { p.Files[0].Mode |= os.ModeSetuid }},
		{"field", "field Version is missing", func(p *Package) { p.Control = strings.Replace(p.Control, "Version", "X", 1) }},
		{"blank", "blank line", func(p *Package) { p.Control = strings.Replace(p.Control, "\nVersion", "\n\nVersion", 1) }},
	} {
		p := sample()
		tt.edit(&p)
		if err := Write(io.Discard, p); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Write = %v, want %q", tt.name, err, tt.want)
		}
	}
}

// The one reader that counts.
func TestDpkgReadsIt(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("dpkg-deb is missing")
		}
		t.Skip("needs dpkg-deb")
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "x.deb")
	if err := os.WriteFile(name, write(t, sample()), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "dpkg-deb", "-f", name, "Package", "Installed-Size").CombinedOutput()
	if want := "Package: x\nInstalled-Size: 4\n"; err != nil || string(out) != want {
		t.Errorf("dpkg-deb -f = %q, %v, want %q", out, err, want)
	}
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "-R", name, filepath.Join(dir, "r")).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb -R: %v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "r/etc/x/env")); err != nil || string(got) != "A=1\n" {
		t.Errorf("unpacked = %q, %v", got, err)
	}
	sums := exec.CommandContext(t.Context(), "md5sum", "-c", "DEBIAN/md5sums")
	sums.Dir = filepath.Join(dir, "r")
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("md5sum -c: %v: %s", err, out)
	}
}
