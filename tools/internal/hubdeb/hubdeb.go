// SPDX-License-Identifier: Apache-2.0

// Package hubdeb makes the Debian package of the hub from the tree: it builds
// the binary, asks it for its manual page and completions, gathers the licenses
// of what is linked in, and adds the files of packaging.
package hubdeb

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/tools/internal/deb"
	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

const (
	name = "bauxite-dispatch"
	docs = "/usr/share/doc/" + name
)

// Arches are the architectures that packages are made for.
var Arches = []string{"amd64", "arm64"}

// builder collects a package.
type builder struct {
	root, arch string
	log        *step.Log
	pkg        deb.Package
}

// Build makes the package for arch from the tree at root, writes it into the
// folder out, which it makes, and returns the file's name.
func Build(ctx context.Context, log *step.Log, root, out, arch string) (string, error) {
	version, mtime, err := version(ctx, log, root)
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp("", name+"-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	b := &builder{root: root, arch: arch, log: log, pkg: deb.Package{Time: mtime, Scripts: map[string][]byte{}}}
	binary := filepath.Join(tmp, "target", name)
	if err := Binary(ctx, log, root, binary, "linux", arch, "v"+version); err != nil {
		return "", err
	}
	host := binary
	if runtime.GOOS != "linux" || runtime.GOARCH != arch {
		host = filepath.Join(tmp, "host", name)
		if err := Binary(ctx, log, root, host, runtime.GOOS, runtime.GOARCH, "v"+version); err != nil {
			return "", err
		}
	}
	for _, add := range []func() error{
		func() error { return b.file(binary, "/usr/bin/"+name, 0o755) },
		func() error { return b.tree(version) },
		func() error { return b.answers(ctx, host) },
		func() error { return b.notices(ctx) },
		func() error { return b.changelog(version) },
	} {
		if err := add(); err != nil {
			return "", err
		}
	}
	var buf bytes.Buffer
	if err := deb.Write(&buf, b.pkg); err != nil {
		return "", err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	file := filepath.Join(out, fmt.Sprintf("%s_%s_%s.deb", name, version, arch))
	return file, os.WriteFile(file, buf.Bytes(), 0o644)
}

// Binary builds the hub of the tree at root into the file to: static, so that
// it runs on any Linux and in an empty container, and without debug tables. version
// is what it calls itself, empty for what the go command knows.
func Binary(ctx context.Context, log *step.Log, root, to, goos, arch, version string) error {
	c := step.Cmd{
		Dir: filepath.Join(root, "dispatch"),
		Env: []string{"CGO_ENABLED=0", "GOOS=" + goos, "GOARCH=" + arch, "GOWORK="},
	}
	flags := "-s -w"
	if version != "" {
		flags += " -X " + repo.Prefix + "/dispatch/internal/cli.version=" + version
	}
	return c.Run(ctx, log, "go", "build", "-buildvcs=auto", "-trimpath", "-ldflags="+flags, "-o", to, "./cmd/"+name)
}

// version returns the package's version and the time of what is in it. What is
// not tagged sorts before the version that it leads to.
func version(ctx context.Context, log *step.Log, root string) (string, time.Time, error) {
	versions, err := repo.ModuleVersions(root)
	if err != nil {
		return "", time.Time{}, err
	}
	v := strings.TrimPrefix(versions["dispatch"], "v")
	git := step.Cmd{Dir: root}
	out, err := git.Output(ctx, log, "git", "log", "-1", "--format=%ct %h")
	if err != nil {
		return "", time.Time{}, err
	}
	stamp, commit, _ := strings.Cut(strings.TrimSpace(out), " ")
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		stamp = s
	}
	sec, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("read time of the source: %w", err)
	}
	mtime := time.Unix(sec, 0).UTC()
	tags, err := git.Output(ctx, log, "git", "tag", "--points-at", "HEAD")
	if err != nil {
		return "", time.Time{}, err
	}
	dirty, err := git.Output(ctx, log, "git", "status", "--porcelain")
	if err != nil {
		return "", time.Time{}, err
	}
	if tagged := slices.Contains(strings.Fields(tags), "dispatch/v"+v); !tagged || dirty != "" {
		v += "~git" + mtime.Format("20060102150405") + "." + commit
	}
	if dirty != "" {
		v += ".dirty"
	}
	return v, mtime, nil
}

func (b *builder) put(path string, mode fs.FileMode, data []byte) {
	b.pkg.Files = append(b.pkg.Files, deb.File{Path: path, Mode: mode, Data: data})
}

// file adds a file of this machine.
func (b *builder) file(from, to string, mode fs.FileMode) error {
	data, err := os.ReadFile(from)
	if err == nil {
		b.put(to, mode, data)
	}
	return err
}

// zipped adds data compressed.
func (b *builder) zipped(path string, data []byte) error {
	z, err := deb.Gzip(data)
	if err == nil {
		b.put(path, 0o644, z)
	}
	return err
}

// tree adds what lies in the tree as it is.
func (b *builder) tree(version string) error {
	packaging := filepath.Join(b.root, "packaging")
	control, err := os.ReadFile(filepath.Join(packaging, "debian", "control"))
	if err != nil {
		return err
	}
	b.pkg.Control = strings.NewReplacer("${Version}", version, "${Architecture}", b.arch).Replace(string(control))
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		if b.pkg.Scripts[script], err = os.ReadFile(filepath.Join(packaging, "debian", script)); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{
		"debian/copyright":                 docs + "/copyright",
		"debian/lintian-overrides":         "/usr/share/lintian/overrides/" + name,
		"systemd/bauxite-dispatch.service": "/usr/lib/systemd/system/" + name + ".service",
		"systemd/port-443.conf":            docs + "/examples/port-443.conf",
		"debian/env":                       "/etc/" + name + "/env",
	} {
		if err := b.file(filepath.Join(packaging, filepath.FromSlash(from)), to, 0o644); err != nil {
			return err
		}
		if strings.HasPrefix(to, "/etc/") {
			b.pkg.Files[len(b.pkg.Files)-1].Conffile = true
		}
	}
	proxies, err := os.ReadDir(filepath.Join(packaging, "proxy"))
	if err != nil {
		return err
	}
	for _, p := range proxies {
		if err := b.file(filepath.Join(packaging, "proxy", p.Name()), docs+"/examples/proxy/"+p.Name(), 0o644); err != nil {
			return err
		}
	}
	page, err := os.ReadFile(filepath.Join(b.root, "docs", "operations.md"))
	if err != nil {
		return err
	}
	return b.zipped(docs+"/operations.md.gz", page)
}

// answers adds what the binary says about itself.
func (b *builder) answers(ctx context.Context, binary string) error {
	page, err := step.Cmd{}.Output(ctx, b.log, binary, "man")
	if err != nil {
		return err
	}
	if err := b.zipped("/usr/share/man/man8/"+name+".8.gz", []byte(page)); err != nil {
		return err
	}
	for shell, to := range map[string]string{
		"bash": "/usr/share/bash-completion/completions/" + name,
		"zsh":  "/usr/share/zsh/vendor-completions/_" + name,
		"fish": "/usr/share/fish/vendor_completions.d/" + name + ".fish",
	} {
		script, err := step.Cmd{}.Output(ctx, b.log, binary, "completion", shell)
		if err != nil {
			return err
		}
		b.put(to, 0o644, []byte(script))
	}
	return nil
}

// notices adds the license of each module that is linked in, which must be
// there, and of Go.
func (b *builder) notices(ctx context.Context) error {
	c := step.Cmd{
		Dir: filepath.Join(b.root, "dispatch"),
		Env: []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + b.arch, "GOWORK="},
	}
	list, err := c.Output(ctx, b.log, "go", "list", "-deps", "-f",
		`{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}`, "./cmd/"+name)
	if err != nil {
		return err
	}
	goroot, err := c.Output(ctx, b.log, "go", "env", "GOROOT")
	if err != nil {
		return err
	}
	modules := slices.Sorted(strings.SplitSeq(strings.TrimSpace(list), "\n"))
	modules = append([]string{"The Go standard library  " + strings.TrimSpace(goroot)}, slices.Compact(modules)...)
	var text bytes.Buffer
	text.WriteString("The binary contains these works, each under its license.\n")
	for _, m := range modules {
		if m == "" {
			continue
		}
		i := strings.LastIndexByte(m, ' ')
		fmt.Fprintf(&text, "\n==== %s\n", strings.TrimSpace(m[:i]))
		if err := licenses(&text, m[i+1:]); err != nil {
			return fmt.Errorf("license of %s: %w", m[:i], err)
		}
	}
	return b.zipped(docs+"/NOTICES.gz", text.Bytes())
}

// licenses writes the license files of the folder dir.
func licenses(text *bytes.Buffer, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		upper := strings.ToUpper(e.Name())
		isLicense := strings.HasPrefix(upper, "LICENSE") || strings.HasPrefix(upper, "LICENCE") || strings.HasPrefix(upper, "COPYING")
		if !e.Type().IsRegular() || !isLicense && !strings.HasPrefix(upper, "NOTICE") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(text, "\n-- %s\n\n%s\n", e.Name(), bytes.TrimSpace(data))
		found = found || isLicense
	}
	if !found {
		return fmt.Errorf("no license file in %s: %w", dir, fs.ErrNotExist)
	}
	return nil
}

// changelog adds the one that Debian's tools read; it points at ours.
func (b *builder) changelog(version string) error {
	maintainer := ""
	for line := range strings.SplitSeq(b.pkg.Control, "\n") {
		if m, ok := strings.CutPrefix(line, "Maintainer: "); ok {
			maintainer = m
		}
	}
	return b.zipped(docs+"/changelog.gz", fmt.Appendf(nil,
		"%s (%s) stable; urgency=medium\n\n  * See https://github.com/bauxite-mesh/bauxite/blob/main/CHANGELOG.md\n\n -- %s  %s\n",
		name, version, maintainer, b.pkg.Time.Format(time.RFC1123Z)))
}
