// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// About says where and how the figures were made.
type About struct {
	Command string   `json:"command"`
	Date    string   `json:"date"`
	Runs    int      `json:"runs"`
	Systems []string `json:"systems"` // with their versions
	Kernel  string   `json:"kernel"`
	CPU     string   `json:"cpu"`
	Go      string   `json:"go"`
	// Load is what else the machine did before each case that loads it, in cores.
	Load Samples `json:"load,omitempty"`
}

// Machine fills in what the machine knows of itself.
func (a *About) Machine() {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release := unix.ByteSliceToString(u.Release[:])
		a.Kernel = "Linux " + strings.Join(strings.SplitN(release, ".", 3)[:2], ".")
	}
	a.CPU = fmt.Sprintf("%d cores", runtime.NumCPU())
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				a.CPU = fmt.Sprintf("%s, %d cores", strings.TrimSpace(value), runtime.NumCPU())
				break
			}
		}
	}
	a.Go = strings.TrimPrefix(runtime.Version(), "go")
}

// Page is what a report says of itself.
type Page struct {
	Title, Intro string
	// Order says how the cases of a run are run.
	Order string
}

// Markdown writes the report as a page.
func (r *Report) Markdown(out io.Writer, about About, page Page, plan []Scenario) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s\n\n", page.Title, page.Intro)
	fmt.Fprintf(&b, "```sh\n%s\n```\n\n| | |\n|---|---|\n", about.Command)
	for _, row := range [][2]string{
		{"Date", about.Date},
		{"Machine", about.CPU},
		{"Kernel", about.Kernel},
		{"Go", about.Go},
		{"Systems", strings.Join(about.Systems, ", ")},
		{"Runs", fmt.Sprintf("%d, %s", about.Runs, page.Order)},
	} {
		fmt.Fprintf(&b, "| %s | %s |\n", row[0], row[1])
	}
	if len(about.Load) > 0 {
		fmt.Fprintf(&b, "| Other load | %s cores before the cases that load the machine |\n", (&Figure{Samples: about.Load}).Show())
	}
	missed := r.Missed()
	judged := 0
	for _, f := range r.Figures {
		if f.Judged() {
			judged++
		}
	}
	fmt.Fprintf(&b, "\n%d of %d goals hold. ", judged-len(missed), judged)
	b.WriteString("A case that came to no end counts as missed. Times are medians of the runs with the range in brackets, where nothing else is said; packets that were lost or came twice are those of all runs together. Other tunnels are configured as their manuals say, WireGuard with the addresses of both ends and a keepalive of 25 s, Nebula with a lighthouse that also relays; they are the programs of the system, or other builds in the folder that `BAUXITE_LAB_RIVALS` names.\n")
	for _, sc := range plan {
		figs := r.of(sc.Name)
		if len(figs) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", sc.Title, sc.Text)
		if sc.Write != nil {
			sc.Write(&b, figs)
			continue
		}
		writeTable(&b, figs)
	}
	_, err := io.WriteString(out, b.String())
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func (r *Report) of(scenario string) []*Figure {
	var out []*Figure
	for _, f := range r.Figures {
		if f.Scenario == scenario {
			out = append(out, f)
		}
	}
	return out
}

func unique(figs []*Figure, get func(*Figure) string) []string {
	var out []string
	for _, f := range figs {
		if v := get(f); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// writeTable has a line per quantity and a column per system.
func writeTable(b *strings.Builder, figs []*Figure) {
	systems := unique(figs, func(f *Figure) string { return f.System })
	b.WriteString("| Case | Quantity | Goal | " + strings.Join(systems, " | ") + " | |\n|---|---|---|" + strings.Repeat("---|", len(systems)) + "---|\n")
	for _, name := range unique(figs, func(f *Figure) string { return f.Case }) {
		var here []*Figure
		for _, f := range figs {
			// That a case came to its end is worth a line only where it did not.
			if f.Case == name && (f.What != ended || f.Wrong > 0) {
				here = append(here, f)
			}
		}
		for i, what := range unique(here, func(f *Figure) string { return f.What }) {
			label, text, goal, verdict := name, what, "", ""
			if i > 0 {
				label = ""
			}
			cells := make([]string, len(systems))
			for _, f := range here {
				if f.What != what {
					continue
				}
				cells[slices.Index(systems, f.System)] = f.Show()
				if f.Judged() && f.System == systems[0] {
					goal, verdict = f.ShowGoal(), "holds"
					if !f.OK() {
						verdict = "**missed**"
					}
				}
				text = f.label()
			}
			fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", label, text, goal, strings.Join(cells, " | "), verdict)
		}
	}
}

// label is the quantity with its unit and, where it is not the median, statistic.
func (f *Figure) label() string {
	text := f.What
	if f.Unit != "" && f.Unit != "packets" {
		text += ", " + f.Unit
	}
	if f.Samples != nil && f.Stat != Median && f.Stat != Sum {
		text += " (" + string(f.Stat) + ")"
	}
	return text
}

const ended = "came to its end"

// Text writes the figures as lines, for a terminal.
func (r *Report) Text(out io.Writer) error {
	var b strings.Builder
	last := ""
	for _, f := range r.Figures {
		if f.What == ended && f.OK() {
			continue
		}
		if head := f.Scenario + ": " + f.Case; head != last {
			fmt.Fprintf(&b, "\n%s\n", head)
			last = head
		}
		verdict := ""
		if f.Judged() {
			verdict = "pass"
			if !f.OK() {
				verdict = "FAIL"
			}
		}
		unit := f.Unit
		if f.Stat == P95 || f.Stat == Worst && f.Samples != nil {
			unit += " " + string(f.Stat)
		}
		fmt.Fprintf(&b, "  %-4s %-13s %-42s %s %s  %s\n", verdict, f.System, f.What, f.Show(), unit, f.ShowGoal())
	}
	missed := r.Missed()
	fmt.Fprintf(&b, "\n%d goals missed\n", len(missed))
	_, err := io.WriteString(out, b.String())
	return err
}
