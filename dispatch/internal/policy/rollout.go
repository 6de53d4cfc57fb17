// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// ErrTests is returned for a policy of which a test does not hold.
var ErrTests = errors.New("the policy's tests do not hold")

// ErrNoCanary is returned where the selectors of a canary match no node.
var ErrNoCanary = errors.New("the canary selectors match no node")

const (
	// stepEvery is how often a stage is judged, listEvery how often the nodes are
	// read for it, and the tests run, if anything has changed.
	stepEvery = time.Second
	listEvery = 5 * time.Second
)

// Store is what a Rollout needs of the hub's store.
type Store interface {
	State(ctx context.Context) (store.State, error)
	ListNodes(ctx context.Context) ([]store.Node, error)
	ReadPolicy(ctx context.Context, version uint64) (store.PolicyVersion, error)
	Activation(ctx context.Context) (store.Activation, error)
	ActivatePolicy(ctx context.Context, st store.Stage, active uint64) (store.Activation, error)
	EndStage(ctx context.Context, started time.Time, state, reason string) (store.Activation, error)
	RollbackPolicy(ctx context.Context, reason string) (store.Activation, error)
}

// Report is what a node said last.
type Report struct {
	ID identity.PeerID
	// Applied is the version that it applies, Denied how many packets its policy
	// has denied since it started.
	Applied, Denied uint64
	Time            time.Time
}

// RolloutConfig is what a Rollout stands on. All but Logger are required.
type RolloutConfig struct {
	Store Store
	// Online reports whether a node has its stream open.
	Online func(identity.PeerID) bool
	// Reports returns the newest report of each of the nodes that has one.
	Reports func([]identity.PeerID) []Report
	// Logger nil discards.
	Logger *slog.Logger
}

// Rollout knows which version is in force for whom and moves staged activations
// on. Its methods are safe for concurrent use.
type Rollout struct {
	cfg  RolloutConfig
	wake chan struct{} // an activation began or ended

	force atomic.Pointer[force]
	load  sync.Mutex // one at a time reads what is in force

	mu    sync.Mutex // guards the stage, and is held while it changes
	stage *running   // nil where none is under way
}

// force is what is in force at one generation.
type force struct {
	store.Activation
	members map[identity.PeerID]bool
	base    version
	// candidate is that of a stage under way.
	candidate version
}

type version struct {
	number   uint64
	document []byte
}

// running is the stage under way.
type running struct {
	store.Stage
	machine *Machine
	members []identity.PeerID
	doc     *policy.Document
	born    time.Time // when this run of the hub began to judge it
	// rv and listed tell for which state of the mesh nodes and tests are.
	rv       uint64
	listed   time.Time
	nodes    []Node // members that are still in the mesh
	index    map[identity.PeerID]int
	tests    error
	progress Progress
}

// details are what a stage keeps in the store besides its columns.
type details struct {
	// Nodes are the canary nodes, fixed when the stage begins: a node whose tags
	// change meanwhile stays what it was.
	Nodes  []identity.PeerID `json:"nodes"`
	Online []string          `json:"online"`
}

// NewRollout returns a Rollout. It does no I/O.
func NewRollout(cfg RolloutConfig) *Rollout {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Rollout{cfg: cfg, wake: make(chan struct{}, 1)}
}

// Subjects are the nodes to which policies apply.
func Subjects(nodes []store.Node) []policy.Subject {
	out := make([]policy.Subject, 0, len(nodes))
	for i := range nodes {
		if n := &nodes[i]; n.Visible() {
			out = append(out, policy.Subject{ID: n.ID, Name: n.Name, Tags: n.Tags})
		}
	}
	return out
}

// InForce returns the version that is in force for a node, and its document.
func (r *Rollout) InForce(ctx context.Context, id identity.PeerID) (uint64, []byte, error) {
	f, err := r.current(ctx)
	if err != nil {
		return 0, nil, err
	}
	v := &f.base
	if f.members[id] {
		v = &f.candidate
	}
	return v.number, v.document, nil
}

// current returns what is in force now. A node that was told of a change and asks
// at once must not get what was before it: so the generation is read each time,
// and the rest only where it differs.
func (r *Rollout) current(ctx context.Context) (*force, error) {
	st, err := r.cfg.Store.State(ctx)
	if err != nil {
		return nil, err
	}
	if f := r.force.Load(); f != nil && f.Generation >= st.Policy {
		return f, nil
	}
	r.load.Lock()
	defer r.load.Unlock()
	if f := r.force.Load(); f != nil && f.Generation >= st.Policy {
		return f, nil
	}
	f := new(force)
	if f.Activation, err = r.cfg.Store.Activation(ctx); err != nil {
		return nil, err
	}
	if f.base, err = r.read(ctx, f.Active); err != nil {
		return nil, err
	}
	if f.Stage.State == store.StageCanary {
		if f.candidate, err = r.read(ctx, f.Stage.Candidate); err != nil {
			return nil, err
		}
		var d details
		if err := json.Unmarshal([]byte(f.Stage.Detail), &d); err != nil {
			return nil, fmt.Errorf("read canary: %w", err)
		}
		f.members = make(map[identity.PeerID]bool, len(d.Nodes))
		for _, id := range d.Nodes {
			f.members[id] = true
		}
	}
	r.force.Store(f)
	return f, nil
}

func (r *Rollout) read(ctx context.Context, v uint64) (version, error) {
	p, err := r.cfg.Store.ReadPolicy(ctx, v)
	return version{p.Version, p.Document}, err
}

// Check runs the tests of a document against the nodes of the mesh. Errors:
// ErrTests.
func (r *Rollout) Check(ctx context.Context, d *policy.Document) error {
	nodes, err := r.cfg.Store.ListNodes(ctx)
	if err != nil {
		return err
	}
	if err := d.Check(Subjects(nodes)); err != nil {
		return fmt.Errorf("%w: %w", ErrTests, err)
	}
	return nil
}

// Activate puts version into force: for all at once where p has no canary, else by
// stages. active other than 0 is the version that the caller believes to be in
// force. Errors: ErrTests, ErrNoCanary, those of Plan.Validate, and those of
// store.ActivatePolicy.
func (r *Rollout) Activate(ctx context.Context, p Plan, active uint64) (Status, error) {
	v, err := r.cfg.Store.ReadPolicy(ctx, p.Candidate)
	if err != nil {
		return Status{}, err
	}
	doc, err := policy.Parse(v.Document)
	if err != nil {
		return Status{}, err
	}
	if err := r.Check(ctx, doc); err != nil {
		return Status{}, err
	}
	st := store.Stage{Candidate: p.Candidate, State: store.StageActive}
	if len(p.Canary) > 0 {
		if st, err = r.prepare(ctx, doc, &p); err != nil {
			return Status{}, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err = r.cfg.Store.ActivatePolicy(ctx, st, active); err != nil {
		return Status{}, err
	}
	r.cfg.Logger.InfoContext(ctx, "policy activated", "version", p.Candidate, "canary", p.Canary)
	r.changed()
	return r.statusLocked(ctx)
}

// prepare finds the canary nodes and makes the row of a stage.
func (r *Rollout) prepare(ctx context.Context, doc *policy.Document, p *Plan) (st store.Stage, err error) {
	if err := p.Validate(); err != nil {
		return st, err
	}
	nodes, err := r.cfg.Store.ListNodes(ctx)
	if err != nil {
		return st, err
	}
	chosen, err := doc.Select(Subjects(nodes), p.Canary)
	if err != nil {
		return st, err
	}
	if len(chosen) == 0 {
		return st, ErrNoCanary
	}
	d := details{Nodes: make([]identity.PeerID, 0, len(chosen)), Online: []string{}}
	for i := range chosen {
		d.Nodes = append(d.Nodes, chosen[i].ID)
		if r.cfg.Online(chosen[i].ID) {
			d.Online = append(d.Online, chosen[i].ID.String())
		}
	}
	detail, err := json.Marshal(d)
	if err != nil {
		return st, fmt.Errorf("store canary: %w", err)
	}
	expect, err := json.Marshal(p.Expect)
	if err != nil {
		return st, fmt.Errorf("store expectations: %w", err)
	}
	return store.Stage{
		Candidate: p.Candidate, State: store.StageCanary, Canary: p.Canary,
		HoldUntil: time.Time{}.Add(p.Hold), Expect: string(expect), Detail: string(detail),
	}, nil
}

// Rollback ends the stage that is under way, or goes back to the version before
// the last activation. Errors: store.ErrConflict.
func (r *Rollout) Rollback(ctx context.Context, reason string) (Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, err := r.cfg.Store.RollbackPolicy(ctx, reason)
	if err != nil {
		return Status{}, err
	}
	r.cfg.Logger.InfoContext(ctx, "policy rolled back", "to", a.Active, "reason", reason)
	r.stage = nil
	r.changed()
	return r.statusLocked(ctx)
}

// Status is what is in force and how far a stage is.
type Status struct {
	store.Activation
	// Progress is that of a stage under way, CanaryNodes how many nodes it has,
	// online or not. Both are zero otherwise.
	Progress    Progress
	CanaryNodes int
}

// Status returns what is in force.
func (r *Rollout) Status(ctx context.Context) (Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.statusLocked(ctx)
}

func (r *Rollout) statusLocked(ctx context.Context) (Status, error) {
	f, err := r.current(ctx)
	if err != nil {
		return Status{}, err
	}
	out := Status{Activation: f.Activation, CanaryNodes: len(f.members)}
	if s := r.stage; s != nil && f.Stage.State == store.StageCanary && s.Started.Equal(f.Stage.Started) {
		out.Progress = s.progress
	}
	return out, nil
}

func (r *Rollout) changed() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run moves staged activations on until ctx ends, one that an earlier run of the
// hub has begun as well.
func (r *Rollout) Run(ctx context.Context) error {
	t := time.NewTicker(stepEvery)
	defer t.Stop()
	for {
		under, err := r.step(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			r.cfg.Logger.ErrorContext(ctx, "judge the staged policy", "err", err)
		}
		tick := t.C
		if !under && err == nil {
			tick = nil // nothing to do until somebody activates
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-tick:
		}
	}
}

// step judges the stage once; it reports whether one is under way.
func (r *Rollout) step(ctx context.Context, now time.Time) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, err := r.current(ctx)
	if err != nil {
		return false, err
	}
	if f.Stage.State != store.StageCanary {
		r.stage = nil
		return false, nil
	}
	if r.stage == nil || !r.stage.Started.Equal(f.Stage.Started) {
		if r.stage, err = r.resume(f, now); err != nil {
			return true, err
		}
	}
	s := r.stage
	if err := r.refresh(ctx, s, now); err != nil {
		return true, err
	}
	s.progress = s.machine.Step(now, r.observe(s), s.tests)
	if s.progress.State == Canary {
		return true, nil
	}
	a, err := r.cfg.Store.EndStage(ctx, s.Started, string(s.progress.State), s.progress.Reason)
	if err != nil {
		return true, err // the machine says the same at the next step
	}
	r.cfg.Logger.InfoContext(ctx, "staged policy decided", "version", s.Candidate, "state", a.Stage.State, "reason", a.Stage.Reason)
	r.stage = nil
	return false, nil
}

// resume makes the machine of a stage that has just begun, or that an earlier run
// of the hub began.
func (r *Rollout) resume(f *force, now time.Time) (*running, error) {
	p := Plan{Base: f.Stage.Base, Candidate: f.Stage.Candidate, Canary: f.Stage.Canary, Hold: f.Stage.HoldUntil.Sub(f.Stage.Started)}
	var d details
	if err := json.Unmarshal([]byte(f.Stage.Detail), &d); err != nil {
		return nil, fmt.Errorf("read canary: %w", err)
	}
	p.Online = d.Online
	if err := json.Unmarshal([]byte(f.Stage.Expect), &p.Expect); err != nil {
		return nil, fmt.Errorf("read expectations: %w", err)
	}
	s := &running{Stage: f.Stage, members: d.Nodes, born: now}
	var err error
	if s.doc, err = policy.Parse(f.candidate.document); err != nil {
		return nil, err
	}
	if age := now.Sub(f.Stage.Started); age >= 0 && age < 2*stepEvery {
		s.machine = NewMachine(p, now)
	} else {
		s.machine = Resume(p, f.Stage.HoldUntil, now)
	}
	s.progress = Progress{State: Canary, Left: p.Hold}
	return s, nil
}

// refresh reads the nodes and runs the tests again where the mesh has changed.
func (r *Rollout) refresh(ctx context.Context, s *running, now time.Time) error {
	if since := now.Sub(s.listed); since >= 0 && since < listEvery {
		return nil
	}
	st, err := r.cfg.Store.State(ctx)
	if err != nil {
		return err
	}
	if !s.listed.IsZero() && st.RV == s.rv {
		s.listed = now
		return nil
	}
	nodes, err := r.cfg.Store.ListNodes(ctx)
	if err != nil {
		return err
	}
	subjects := Subjects(nodes)
	names := make(map[identity.PeerID]string, len(subjects))
	for i := range subjects {
		names[subjects[i].ID] = subjects[i].Name
	}
	s.nodes, s.index = s.nodes[:0], map[identity.PeerID]int{}
	for _, id := range s.members {
		if name, ok := names[id]; ok {
			s.index[id] = len(s.nodes)
			s.nodes = append(s.nodes, Node{ID: id.String(), Name: name})
		}
	}
	s.tests = s.doc.Check(subjects)
	s.rv, s.listed = st.RV, now
	return nil
}

// observe puts presence and reports together. What was said before the stage
// began, or before the hub was there to hear it, does not count.
func (r *Rollout) observe(s *running) []Node {
	for i := range s.nodes {
		n := &s.nodes[i]
		n.Reported, n.Applied, n.Denied = time.Time{}, 0, 0
	}
	for id, i := range s.index {
		s.nodes[i].Online = r.cfg.Online(id)
	}
	for _, rep := range r.cfg.Reports(s.members) {
		if i, ok := s.index[rep.ID]; ok && !rep.Time.Before(s.born) {
			n := &s.nodes[i]
			n.Reported, n.Applied, n.Denied = rep.Time, rep.Applied, rep.Denied
		}
	}
	return s.nodes
}
