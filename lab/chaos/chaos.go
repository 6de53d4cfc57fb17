// SPDX-License-Identifier: Apache-2.0

// Package chaos kills the hub again and again while it works, and checks that it
// loses nothing.
//
// Each round starts the built bauxite-dispatch, puts it under load (machines join
// over TLS, operators make and revoke tokens, change, revoke and delete nodes and
// change the policy, nodes watch the topology), and ends it with SIGKILL at a
// moment that the seed chooses: at any time, while it starts, right after a
// request was sent, or right after an answer came. Then it reads the database as
// the next hub will find it, and demands that
//
//   - what was answered with success is there, with the same content;
//   - what was not answered is there as a whole or not at all, and nothing is
//     there that nobody asked for;
//   - names and addresses are unique, each token counts exactly the nodes that
//     joined with it, and every certificate that was handed out is on record;
//   - resource versions have no gap, and no watcher knows a later one;
//   - the audit log grew by appending only, its chain holds, and it has an entry
//     for each change;
//   - the next hub serves within two seconds, and every watcher resumes without a
//     snapshot and then sees what the database holds.
//
// SIGKILL leaves the operating system's cache in place: this shows that nothing is
// answered or published before it is committed, not that the disk keeps its
// promises. That synchronous=FULL is in force is a test of the store.
package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Config is what Run does. The zero value of each field but Bin is its default.
type Config struct {
	// Bin is the built bauxite-dispatch. Required.
	Bin string
	// Kills is how often the hub is killed; 0 means 50.
	Kills int
	// Seed of all choices; 0 takes one from the clock. Processes and networks have
	// a timing of their own, so the same seed makes the same plan but not the same
	// interleaving.
	Seed uint64
	// Dir is where the data directory is made; empty is the system's folder for
	// temporary files. It is kept where a check fails.
	Dir string
	// Watchers is how many nodes watch the topology; 0 means 6.
	Watchers int
	// Require names operations of which at least one must have been acknowledged,
	// so that a hub which refuses them does not pass.
	Require []string
	// StartLimit is the longest time that a start may take; 0 means 2 s.
	StartLimit time.Duration
	// Progress gets a line now and then; nil discards.
	Progress io.Writer
}

// Count is what became of one kind of operation.
type Count struct {
	// Acked were answered with success.
	Acked int `json:"acknowledged"`
	// Refused were answered with an error.
	Refused int `json:"refused,omitempty"`
	// Refusal is the newest such error.
	Refusal string `json:"newest_refusal,omitempty"`
	// Lost had no answer, and Landed of them are in the database.
	Lost   int `json:"unanswered"`
	Landed int `json:"unanswered_but_committed"`
	// Unserved were answered as not implemented.
	Unserved int `json:"not_implemented,omitempty"`
}

// Report is what a run has shown.
type Report struct {
	Seed        uint64            `json:"seed"`
	Kills       int               `json:"kills"`
	ByMoment    map[string]int    `json:"kills_by_moment"`
	FirstStarts int               `json:"interrupted_first_starts"`
	Seconds     float64           `json:"seconds"`
	StartP50    float64           `json:"start_ms_p50"`
	StartP99    float64           `json:"start_ms_p99"`
	StartMax    float64           `json:"start_ms_max"`
	Ops         map[string]*Count `json:"operations"`
	Nodes       int               `json:"nodes"`
	RV          int64             `json:"rv"`
	AuditSeq    int64             `json:"audit_entries"`
	Watchers    int               `json:"watchers"`
	Resumes     int               `json:"resumes"`
	Snapshots   int               `json:"snapshots_after_the_first"`
	Digests     int               `json:"digests_compared"`
	Admissions  int               `json:"certificates_tried"`
	Failures    []string          `json:"failures,omitempty"`
	DataDir     string            `json:"data_directory,omitempty"`
}

// ErrLost is returned where a check failed.
var ErrLost = errors.New("the hub broke a promise")

// maxFailures ends a run: what follows the first ones is noise.
const maxFailures = 20

type runner struct {
	cfg Config
	rng *rand.Rand
	rep *Report
	dir string
	hub *hub

	cl       *clients
	watchers []*watcher
	load     *load
	db       *state // as of the last check
	starts   []time.Duration
}

func newRunner(cfg Config) *runner {
	if cfg.Kills == 0 {
		cfg.Kills = 50
	}
	if cfg.Seed == 0 {
		cfg.Seed = uint64(time.Now().UnixNano())
	}
	if cfg.Watchers == 0 {
		cfg.Watchers = 6
	}
	if cfg.StartLimit == 0 {
		cfg.StartLimit = 2 * time.Second
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	return &runner{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)),
		rep: &Report{Seed: cfg.Seed, ByMoment: make(map[string]int), Ops: make(map[string]*Count), Watchers: cfg.Watchers},
	}
}

// Run runs the whole. Errors: ErrLost with the report's failures, that of ctx, or
// whatever kept it from running.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	r := newRunner(cfg)
	began := time.Now()
	err := r.run(ctx)
	r.rep.Seconds = time.Since(began).Seconds()
	r.summarize()
	if err == nil && len(r.rep.Failures) > 0 {
		err = fmt.Errorf("%w: %s", ErrLost, r.rep.Failures[0])
	}
	if err != nil {
		r.rep.DataDir = r.dir
	} else if r.dir != "" {
		_ = os.RemoveAll(r.dir)
	}
	return r.rep, err
}

func (r *runner) run(ctx context.Context) (err error) {
	// A unix socket's path is limited, so the folder's name is short.
	if r.dir, err = os.MkdirTemp(r.cfg.Dir, "chaos"); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := r.firstStarts(ctx); err != nil {
		return err
	}
	if err := r.begin(ctx); err != nil {
		return err
	}
	defer r.end()
	for r.rep.Kills < r.cfg.Kills && len(r.rep.Failures) < maxFailures {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.round(ctx); err != nil {
			return err
		}
		if r.rep.Kills%10 == 0 {
			r.progress()
		}
	}
	return r.finish(ctx)
}

// begin makes the mesh: its tokens, and the nodes that watch.
func (r *runner) begin(ctx context.Context) (err error) {
	dir := filepath.Join(r.dir, "hub")
	if r.hub, err = newHub(ctx, r.cfg.Bin, dir, r.rng); err != nil {
		return err
	}
	if err := r.start(ctx, true); err != nil {
		return err
	}
	if r.cl, err = newClients(ctx, r.hub); err != nil {
		return err
	}
	r.load = newLoad(r.cl, r.rng.Uint64())
	if err := r.load.prepare(); err != nil {
		return err
	}
	for i := range r.cfg.Watchers {
		w, err := r.load.newWatcher(i)
		if err != nil {
			return err
		}
		r.watchers = append(r.watchers, w)
	}
	r.hub.kill()
	// What has been done up to here is the base of all comparisons.
	if r.db, err = readState(ctx, r.hub.dir, r.dir, nil); err != nil {
		return err
	}
	r.verify("after the preparations", r.db.consistent(nil))
	return nil
}

func (r *runner) end() {
	for _, w := range r.watchers {
		w.close()
	}
	r.hub.kill()
}

// fail records a broken promise and keeps the files as they are now.
func (r *runner) fail(format string, args ...any) {
	if len(r.rep.Failures) == 0 && r.hub != nil {
		_ = copyFiles(r.hub.dir, filepath.Join(r.dir, "first-failure"))
	}
	f := fmt.Sprintf("kill %d: ", r.rep.Kills) + fmt.Sprintf(format, args...)
	fmt.Fprintln(r.cfg.Progress, "chaos: FAIL", f)
	r.rep.Failures = append(r.rep.Failures, f)
}

func (r *runner) verify(when string, problems []string) {
	for _, p := range problems {
		r.fail("%s: %s", when, p)
	}
}

// start starts the hub, waits until it serves, and measures that.
func (r *runner) start(ctx context.Context, first bool) error {
	began := time.Now()
	if err := r.hub.start(ctx); err != nil {
		return err
	}
	if err := r.hub.waitReady(ctx); err != nil {
		return err
	}
	if took := time.Since(began); !first {
		r.starts = append(r.starts, took)
		if took > r.cfg.StartLimit/4 {
			fmt.Fprintf(r.cfg.Progress, "chaos: slow start after kill %d: %v\n", r.rep.Kills, took.Round(time.Millisecond))
		}
		if took > r.cfg.StartLimit {
			r.fail("start took %v, want at most %v", took.Round(time.Millisecond), r.cfg.StartLimit)
		}
	}
	return nil
}

func (r *runner) progress() {
	acked := 0
	for _, c := range r.rep.Ops {
		acked += c.Acked
	}
	fmt.Fprintf(r.cfg.Progress, "chaos: %d of %d kills, %d nodes, rv %d, %d acknowledged, %d failures\n",
		r.rep.Kills, r.cfg.Kills, len(r.db.nodes), r.db.rv, acked, len(r.rep.Failures))
}

func (r *runner) summarize() {
	slices.Sort(r.starts)
	ms := func(q float64) float64 {
		if len(r.starts) == 0 {
			return 0
		}
		return float64(r.starts[int(q*float64(len(r.starts)-1)+0.5)].Microseconds()) / 1000
	}
	r.rep.StartP50, r.rep.StartP99, r.rep.StartMax = ms(0.5), ms(0.99), ms(1)
	if r.db != nil {
		r.rep.Nodes, r.rep.RV, r.rep.AuditSeq = len(r.db.nodes), r.db.rv, r.db.auditSeq
	}
	for _, w := range r.watchers {
		s := w.stats()
		r.rep.Resumes += s.resumes
		r.rep.Snapshots += max(0, s.snapshots-1)
	}
}

// WriteJSON writes the report.
func (rep *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(rep)
}

// WriteText writes the report for people.
func (rep *Report) WriteText(w io.Writer) error {
	_, err := fmt.Fprintf(w, "chaos: %d kills (%v) and %d interrupted first starts in %.0f s, seed %d\n"+
		"  start after a kill: p50 %.0f ms, p99 %.0f ms, max %.0f ms\n"+
		"  %d nodes, rv %d, %d audit entries\n"+
		"  %d watchers resumed %d times, %d snapshots after the first, %d digests compared with the database\n"+
		"  %d certificates of nodes tried, revoked ones among them\n",
		rep.Kills, rep.ByMoment, rep.FirstStarts, rep.Seconds, rep.Seed, rep.StartP50, rep.StartP99, rep.StartMax,
		rep.Nodes, rep.RV, rep.AuditSeq, rep.Watchers, rep.Resumes, rep.Snapshots, rep.Digests, rep.Admissions)
	if err != nil {
		return err
	}
	kinds := make([]string, 0, len(rep.Ops))
	for k := range rep.Ops {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	for _, k := range kinds {
		c := rep.Ops[k]
		if _, err := fmt.Fprintf(w, "  %-16s %6d acknowledged, %5d without an answer (%d of them committed), %d refused, %d not implemented\n",
			k, c.Acked, c.Lost, c.Landed, c.Refused, c.Unserved); err != nil {
			return err
		}
		if c.Refusal != "" {
			if _, err := fmt.Fprintf(w, "  %-16s newest refusal: %s\n", "", c.Refusal); err != nil {
				return err
			}
		}
	}
	for _, f := range rep.Failures {
		if _, err := fmt.Fprintln(w, "  FAIL", f); err != nil {
			return err
		}
	}
	if rep.DataDir != "" {
		_, err = fmt.Fprintln(w, "  files kept in", rep.DataDir)
	}
	return err
}
