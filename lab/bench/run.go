// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/rival"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// file is what -json prints and -merge reads.
type file struct {
	About  About   `json:"about"`
	Report *Report `json:"report"`
}

type options struct {
	only, cases   string
	system        string
	runs, jobs    int
	time          time.Duration
	rivals, slow  bool
	asJSON        bool
	out, saveJSON string
	merge         string
	quiet         time.Duration
}

// Program is a command that runs scenarios and reports.
type Program struct {
	Name string
	// Target is how make runs it, Page what the report says of itself.
	Target string
	Page   Page
	Runs   int // by default
	// Plan lists the scenarios for so many runs and such options.
	Plan func(o Options) []Scenario
}

// Options are what a plan may depend on.
type Options struct {
	Runs int           // how often each case runs
	Time time.Duration // of a case's load, where it has one; 0 is the default
}

// Main runs the program with the command line's arguments until it ends or is
// interrupted. It returns the exit code: 1 where a goal was missed.
func (p Program) Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := p.Run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, p.Name+":", err)
		return 1
	}
	return 0
}

// Run runs the program. The report goes to standard output, progress to standard
// error. It returns an error where a goal was missed.
func (p Program) Run(ctx context.Context, args []string) error {
	var o options
	fs := flag.NewFlagSet(p.Name, flag.ExitOnError)
	fs.StringVar(&o.only, "only", "", "comma-separated `NAMES` of scenarios (default: all)")
	fs.StringVar(&o.cases, "case", "", "only cases that contain `TEXT`")
	fs.StringVar(&o.system, "system", "", "only the `SYSTEM` of this name")
	fs.IntVar(&o.runs, "runs", p.Runs, "how often each case runs")
	fs.DurationVar(&o.time, "time", 0, "how long the load of a case lasts, where it has one (default: the case's own)")
	fs.IntVar(&o.jobs, "jobs", 2, "how many cases run at a time, but for those that load the machine")
	fs.DurationVar(&o.quiet, "quiet", time.Minute, "how long to wait for a quiet machine before what loads it")
	fs.BoolVar(&o.rivals, "rivals", true, "also run the other tunnels that are installed")
	fs.BoolVar(&o.slow, "slow", false, "also run what takes ten minutes, once")
	fs.BoolVar(&o.asJSON, "json", false, "print the report as JSON")
	fs.StringVar(&o.out, "out", "", "also write the report as Markdown to `FILE`")
	fs.StringVar(&o.saveJSON, "save", "", "also write the report as JSON to `FILE`")
	fs.StringVar(&o.merge, "merge", "", "comma-separated `FILES` of -save, whose figures are added")
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "Usage: %s [flags]\n\nScenarios:\n", p.Name)
		for _, sc := range p.Plan(Options{Runs: 1}) {
			fmt.Fprintf(fs.Output(), "  %-9s %s\n", sc.Name, sc.Title)
		}
		fmt.Fprintln(fs.Output(), "\nFlags:")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.runs < 0 || o.jobs < 1 {
		return fmt.Errorf("-runs %d, -jobs %d: want 0 or more, 1 or more", o.runs, o.jobs)
	}
	plan := p.Plan(Options{Runs: o.runs, Time: o.time})
	chosen, err := choose(plan, o.only)
	if err != nil {
		return err
	}
	bin, err := build.Build(ctx, nil)
	if err != nil {
		return err
	}
	systems := []world.System{world.Bauxite(bin)}
	about := About{
		Command: command(p.Target, fs),
		Date:    time.Now().UTC().Format(time.DateOnly), Runs: o.runs, Systems: []string{"bauxite"},
	}
	about.Machine()
	if o.rivals {
		for _, r := range rival.All() {
			if err := r.Usable(); err != nil {
				fmt.Fprintf(os.Stderr, "without %s: %v\n", r.Name, err)
				continue
			}
			systems = append(systems, world.Rival(r))
			about.Systems = append(about.Systems, r.Name+" "+r.Version(ctx))
		}
	}
	systems = append(systems, world.Raw())
	rep := &Report{}
	for _, name := range strings.FieldsFunc(o.merge, func(r rune) bool { return r == ',' }) {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f := file{}
		if err := json.Unmarshal(b, &f); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		about.Runs, about.Date, about.Systems = max(about.Runs, f.About.Runs), f.About.Date, longer(f.About.Systems, about.Systems)
		about.Load = append(about.Load, f.About.Load...)
		for _, fig := range f.Report.Figures {
			rep.Add(*fig)
		}
	}
	var tasks []task
	for n := range o.runs {
		for _, sc := range chosen {
			for _, c := range sc.Cases {
				if c.Slow && (!o.slow || n > 0) || !strings.Contains(c.Name, o.cases) {
					continue
				}
				for i, sys := range systems {
					raw := i == len(systems)-1
					if raw && !c.Raw || i > 0 && !raw && !c.Rivals || o.system != "" && o.system != sys.Name {
						continue
					}
					tasks = append(tasks, task{scenario: sc.Name, c: c, sys: sys, run: n + 1, quiet: o.quiet})
				}
			}
		}
	}
	runErr := runAll(ctx, tasks, o.jobs)
	for _, t := range tasks {
		rep.Add(t.figures...)
		if t.c.Alone && t.figures != nil {
			about.Load = append(about.Load, t.load)
		}
	}
	return errors.Join(runErr, p.publish(rep, about, plan, o))
}

// command is what makes the same figures, without the places that files went to.
func command(target string, fs *flag.FlagSet) string {
	var flags []string
	fs.Visit(func(f *flag.Flag) {
		if !slices.Contains([]string{"out", "save", "merge", "json", "jobs", "quiet"}, f.Name) && (f.Name != "runs" || f.Value.String() != "0") {
			flags = append(flags, strings.TrimSuffix(fmt.Sprintf("-%s=%s", f.Name, f.Value), "=true"))
		}
	})
	if len(flags) == 0 {
		return target
	}
	return fmt.Sprintf("%s LAB_FLAGS=%q", target, strings.Join(flags, " "))
}

func longer(a, b []string) []string {
	if len(b) > len(a) {
		return b
	}
	return a
}

// task is a case of one run.
type task struct {
	scenario string
	c        Case
	sys      world.System
	run      int

	quiet   time.Duration
	load    float64 // what others took before an Alone case, in cores
	figures []Figure
}

// runAll runs the tasks in their order, some at a time.
func runAll(ctx context.Context, tasks []task, jobs int) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	free := make(chan struct{}, jobs)
	for i := range tasks {
		t := &tasks[i]
		need := 1
		if t.c.Alone {
			need = jobs
		}
		for range need {
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		wg.Go(func() {
			t.do(ctx)
			for range need {
				<-free
			}
		})
	}
	return nil
}

// do runs the case and says how it went. What loads the machine waits for others
// to be done with theirs.
func (t *task) do(ctx context.Context) {
	if t.c.Alone {
		t.load = awaitQuiet(ctx, t.quiet)
	}
	began := time.Now()
	figs, err := t.c.Run(ctx, t.scenario, t.sys)
	if ctx.Err() != nil {
		return
	}
	t.figures = figs
	var line strings.Builder
	fmt.Fprintf(&line, "%s run %d: %s: %s: %s: %.0f s", time.Now().Format(time.TimeOnly), t.run, t.scenario, t.c.Name, t.sys.Name, time.Since(began).Seconds())
	for _, f := range figs {
		if !f.OK() {
			fmt.Fprintf(&line, "; missed: %s %s, %s", f.What, f.Show(), f.Case)
		}
	}
	if err != nil {
		fmt.Fprintf(&line, "\n  %v", err)
	}
	if t.c.Alone {
		fmt.Fprintf(&line, "; other load before it %.2f cores", t.load)
	}
	fmt.Fprintln(os.Stderr, line.String())
}

// awaitQuiet waits until the machine does little, but not longer than that, and
// returns how many cores it still kept busy.
func awaitQuiet(ctx context.Context, most time.Duration) (cores float64) {
	const enough = 0.2
	for deadline := time.Now().Add(most); ; {
		before, began := busy(), time.Now()
		t := time.NewTimer(time.Second)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return cores
		}
		cores = (busy() - before).Seconds() / time.Since(began).Seconds()
		if cores < enough || time.Now().After(deadline) {
			return cores
		}
	}
}

// busy is the time that all cores have worked since boot.
func busy() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	var ticks int64
	for i, s := range f {
		if i == 0 || i == 4 || i == 5 { // the name, idle, waiting for a disk
			continue
		}
		if n, err := strconv.ParseInt(s, 10, 64); err == nil && i < 9 { // guests count as user
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100
}

func choose(plan []Scenario, only string) ([]Scenario, error) {
	if only == "" {
		return plan, nil
	}
	var chosen []Scenario
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(plan, func(s Scenario) bool { return s.Name == name })
		if i < 0 {
			var names []string
			for _, s := range plan {
				names = append(names, s.Name)
			}
			return nil, fmt.Errorf("no scenario %q: there are %s", name, strings.Join(names, ", "))
		}
		chosen = append(chosen, plan[i])
	}
	return chosen, nil
}

func (p Program) publish(rep *Report, about About, plan []Scenario, o options) error {
	var errs []error
	if o.saveJSON != "" {
		b, err := json.MarshalIndent(file{about, rep}, "", "  ")
		errs = append(errs, err, os.WriteFile(o.saveJSON, append(b, '\n'), 0o644))
	}
	if o.out != "" {
		f, err := os.Create(o.out)
		if err == nil {
			err = errors.Join(rep.Markdown(f, about, p.Page, plan), f.Close())
		}
		errs = append(errs, err)
	}
	if o.asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		errs = append(errs, e.Encode(file{about, rep}))
	} else {
		errs = append(errs, rep.Text(os.Stdout))
	}
	if missed := rep.Missed(); len(missed) > 0 {
		errs = append(errs, fmt.Errorf("%d goals were missed", len(missed)))
	}
	return errors.Join(errs...)
}
