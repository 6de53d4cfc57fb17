// SPDX-License-Identifier: Apache-2.0

package hubdeb

import (
	"context"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/tools/internal/step"
)

var (
	fence    = regexp.MustCompile("(?ms)^```sh\n(.*?)^```")
	span     = regexp.MustCompile("`([^`\n]+)`")
	program  = regexp.MustCompile(`(?:^|[ /])bauxite-dispatch ([a-z].*)`)
	word     = regexp.MustCompile(`^[a-z][a-z-]*$`)
	flagRE   = regexp.MustCompile(`--[a-z][a-z0-9-]*`)
	group    = regexp.MustCompile(`(?m)^COMMANDS:`)
	metric   = regexp.MustCompile("`bauxite_([a-z_]+)")
	exitLine = regexp.MustCompile(`(?m)^ *(\d+)  `)
	exitRow  = regexp.MustCompile(`(?m)^\| (\d+) \| `)
)

// helper asks a binary for the help of its commands, each once.
type helper struct {
	t      *testing.T
	binary string
	known  map[string]string
}

// help returns the help of a command, empty where there is none.
func (h *helper) help(path []string) string {
	key := strings.Join(path, " ")
	text, ok := h.known[key]
	if !ok {
		out, err := exec.CommandContext(h.t.Context(), h.binary, append(slices.Clone(path), "--help")...).Output()
		if err == nil && strings.Contains(string(out), "bauxite-dispatch "+key+" - ") {
			text = string(out)
		}
		h.known[key] = text
	}
	return text
}

// check holds what a page says, "token create --ttl 2h", against the help.
func (h *helper) check(line string) {
	h.t.Helper()
	line, _, _ = strings.Cut(line, " #")
	line, _, _ = strings.Cut(line, " | ")
	fields := strings.Fields(line)
	var path []string
	for _, f := range fields {
		if !word.MatchString(f) || h.help(append(slices.Clone(path), f)) == "" {
			break
		}
		path = append(path, f)
	}
	help := h.help(path)
	if len(path) == 0 {
		h.t.Errorf("%q: no such command", line)
		return
	}
	if rest := fields[len(path):]; group.MatchString(help) && len(rest) > 0 && word.MatchString(rest[0]) {
		h.t.Errorf("%q: %s has no command %s", line, strings.Join(path, " "), rest[0])
	}
	for _, f := range flagRE.FindAllString(line, -1) {
		if f != "--help" && !strings.Contains(help, f+" ") && !strings.Contains(help, f+"\n") && !strings.Contains(help, f+",") {
			h.t.Errorf("%q: %s has no %s", line, strings.Join(path, " "), f)
		}
	}
}

// Each command that the handbook and the packaging name exists, with its flags.
func TestHandbookNamesWhatThereIs(t *testing.T) {
	dir := root(t)
	binary := filepath.Join(t.TempDir(), name)
	if !step.NewRunner(t.Output()).Run(t.Context(), "build", func(ctx context.Context, log *step.Log) error {
		return Binary(ctx, log, dir, binary, runtime.GOOS, runtime.GOARCH, "")
	}) {
		t.FailNow()
	}
	h := &helper{t, binary, map[string]string{}}
	top := regexp.MustCompile(`(?m)^   ([a-z]+)[ ,]`).FindAllStringSubmatch(output(t, binary, "--help"), -1)
	isTop := func(w string) bool {
		return slices.ContainsFunc(top, func(m []string) bool { return m[1] == w })
	}
	checked := 0
	page := read(t, dir, "docs/operations.md")
	lines := []string{}
	for _, m := range fence.FindAllStringSubmatch(page, -1) {
		lines = append(lines, strings.Split(m[1], "\n")...)
	}
	inline := fence.ReplaceAllString(page, "")
	for _, m := range span.FindAllStringSubmatch(inline, -1) {
		first, rest, _ := strings.Cut(m[1], " ")
		switch {
		case first == name:
			lines = append(lines, m[1])
		case isTop(first) && rest != "":
			lines = append(lines, name+" "+m[1])
		}
	}
	for _, f := range []string{"debian/postinst", "container/Containerfile"} {
		lines = append(lines, strings.Split(strings.ReplaceAll(read(t, dir, "packaging", f), "hub /"+name, name), "\n")...)
	}
	for _, l := range lines {
		if m := program.FindStringSubmatch(l); m != nil && (!strings.Contains(l, "is installed and not started") && !strings.Contains(l, "./cmd/")) {
			h.check(m[1])
			checked++
		}
	}
	checkExitCodes(t, dir, page, output(t, binary, "exit-codes"))
	checkMetrics(t, dir, page)
	if checked < 30 {
		t.Errorf("found %d commands, want 30 at least: does the test still read the page?", checked)
	}
}

// checkExitCodes holds the handbook's table against the program's, and the unit
// against those that it says are for good.
func checkExitCodes(t *testing.T, dir, page, program string) {
	t.Helper()
	_, table, ok := strings.Cut(page, "\n## Exit codes\n")
	if !ok {
		t.Fatal("the handbook has no table of exit codes")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	var have, want, final []string
	for row := range strings.SplitSeq(table, "\n") {
		if m := exitRow.FindStringSubmatch(row); m != nil {
			have = append(have, m[1])
			if strings.HasSuffix(row, "| no |") {
				final = append(final, m[1])
			}
		}
	}
	for _, m := range exitLine.FindAllStringSubmatch(program, -1) {
		want = append(want, m[1])
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("the handbook has the exit codes %v, the program %v", have, want)
	}
	line := "RestartPreventExitStatus=" + strings.Join(final, " ") + "\n"
	if unit := read(t, dir, "packaging/systemd/bauxite-dispatch.service"); len(final) == 0 || !strings.Contains(unit, line) {
		t.Errorf("the unit lacks %q, which the handbook's table says", line)
	}
}

// checkMetrics wants each metric of the page in the source that makes them: some
// show only once there is something to count.
func checkMetrics(t *testing.T, dir, page string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "dispatch/internal/metrics/*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no source of metrics: %v", err)
	}
	source := ""
	for _, f := range files {
		source += read(t, f)
	}
	// The golden of the nodes' metrics has all that they write.
	nodes := read(t, dir, "edge/internal/metrics/testdata/robot.txt")
	found := metric.FindAllStringSubmatch(page, -1)
	for _, m := range found {
		if strings.Contains(nodes, "# TYPE bauxite_"+m[1]+" ") {
			continue
		}
		if !strings.Contains(source, `"`+m[1]+`"`) && !strings.Contains(source, `"`+strings.TrimPrefix(m[1], "hub_")+`"`) {
			t.Errorf("neither the hub nor a node has a metric bauxite_%s", m[1])
		}
	}
	if len(found) < 10 {
		t.Errorf("the handbook names %d metrics, want 10 at least", len(found))
	}
}
