// SPDX-License-Identifier: Apache-2.0

package hygiene

import (
	"bytes"
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/bauxite-mesh/bauxite/tools/internal/repo"
)

// header is the first line of every Go file that people write.
const header = "// SPDX-License-Identifier: Apache-2.0\n"

var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// PackageComments wants a package comment in each package. Test packages and
// generated ones explain themselves.
func PackageComments(_ context.Context, root string) ([]string, error) {
	type pkg struct{ seen, documented bool }
	pkgs := map[string]*pkg{}
	err := goFiles(root, func(name string, text []byte) error {
		if strings.HasSuffix(name, "_test.go") || generated.Match(text) {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, text, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		dir := path.Dir(name)
		if pkgs[dir] == nil {
			pkgs[dir] = &pkg{}
		}
		pkgs[dir].seen = true
		// A license line right above the clause would be taken for one.
		doc := strings.TrimSpace(f.Doc.Text())
		if strings.HasPrefix(doc, "Package ") || strings.HasPrefix(doc, "Command ") {
			pkgs[dir].documented = true
		}
		return nil
	})
	var bad []string
	for dir, p := range pkgs {
		if p.seen && !p.documented {
			bad = append(bad, dir+": has no package comment")
		}
	}
	slices.Sort(bad)
	return bad, err
}

// LicenseHeaders wants the license line at the top of each Go file that is
// not generated.
func LicenseHeaders(_ context.Context, root string) ([]string, error) {
	var bad []string
	err := goFiles(root, func(name string, text []byte) error {
		if !bytes.HasPrefix(text, []byte(header)) && !generated.Match(text) {
			bad = append(bad, name+": does not start with "+strings.TrimSpace(header))
		}
		return nil
	})
	return bad, err
}

// Sleeps wants time.Sleep in a test only where the file imports
// testing/synctest: in fake time it costs nothing and cannot be too short.
func Sleeps(_ context.Context, root string) ([]string, error) {
	var bad []string
	err := goFiles(root, func(name string, text []byte) error {
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, text, 0)
		if err != nil {
			return err
		}
		if imports(f, "testing/synctest") {
			return nil
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Sleep" {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" {
				bad = append(bad, name+":"+strconv.Itoa(fset.Position(n.Pos()).Line)+": sleeps in real time")
			}
			return true
		})
		return nil
	})
	return bad, err
}

func imports(f *ast.File, path string) bool {
	for _, i := range f.Imports {
		if i.Path.Value == strconv.Quote(path) {
			return true
		}
	}
	return false
}

// places are hosts and folders of somebody's machine. They are put together
// here so that this file does not name them.
var places = func() []string {
	dot, slash := ".", "/"
	return []string{
		"proxy" + dot + "golang" + dot + "org", "sum" + dot + "golang" + dot + "org",
		"registry" + dot + "npmjs", "deb" + dot + "debian" + dot + "org",
		slash + "work" + slash, slash + "home" + slash, slash + "Users" + slash,
		slash + "tmp" + slash + "bx", "bash" + "_jobs",
	}
}()

// Places wants no file to name a registry's host or a folder of the machine
// it was written on.
func Places(_ context.Context, root string) ([]string, error) {
	var bad []string
	err := texts(root, func(name string, text []byte) {
		for n, line := range strings.Split(string(text), "\n") {
			for _, p := range places {
				if i := strings.Index(line, p); i >= 0 && !within(line, i) {
					bad = append(bad, name+":"+strconv.Itoa(n+1)+": names "+p)
				}
			}
		}
	})
	return bad, err
}

// within reports whether the folder at i is the inside of a longer path or
// address, as in "https://example.com/home/x".
func within(line string, i int) bool {
	return i > 0 && line[i] == '/' && regexp.MustCompile(`[\w.})~]`).MatchString(line[i-1:i])
}

// LockFiles wants no address in a package-lock.json: it would bind everyone
// to the registry of the machine that wrote it.
func LockFiles(_ context.Context, root string) ([]string, error) {
	var bad []string
	err := texts(root, func(name string, text []byte) {
		if path.Base(name) == "package-lock.json" && bytes.Contains(text, []byte(`"resolved":`)) {
			bad = append(bad, name+": holds download addresses; set omit-lockfile-registry-resolved")
		}
	})
	return bad, err
}

var (
	uses   = regexp.MustCompile(`(?m)^\s*(?:- )?uses:\s*(\S+)(.*)$`)
	pinned = regexp.MustCompile(`^[\w.-]+/[\w./-]+@[0-9a-f]{40}$`)
	named  = regexp.MustCompile(`^ # v\d+\.\d+\.\d+$`)
)

// Actions wants each action of a workflow at a full commit, with its version
// beside it: a tag can be moved.
func Actions(_ context.Context, root string) ([]string, error) {
	var bad []string
	err := texts(root, func(name string, text []byte) {
		if !strings.HasPrefix(name, ".github/") {
			return
		}
		for _, m := range uses.FindAllStringSubmatch(string(text), -1) {
			if !pinned.MatchString(m[1]) || !named.MatchString(m[2]) {
				bad = append(bad, name+": uses "+m[1]+m[2]+": want owner/name@commit # vX.Y.Z")
			}
		}
	})
	return bad, err
}

// goFiles calls fn with every Go file.
func goFiles(root string, fn func(name string, text []byte) error) error {
	return repo.Walk(root, func(name string) error {
		if path.Ext(name) != ".go" {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		return fn(name, text)
	})
}

// texts calls fn with every file that is not binary.
func texts(root string, fn func(name string, text []byte)) error {
	return repo.Walk(root, func(name string) error {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		if bytes.IndexByte(text, 0) < 0 {
			fn(name, text)
		}
		return nil
	})
}
