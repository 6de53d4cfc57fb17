// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// ErrStaged is returned where another activation is under way. It is an
// ErrConflict.
var ErrStaged error = conflict("a staged activation is under way")

// errNoRollback is returned where no version can be gone back to.
var errNoRollback error = conflict("there is no earlier version to go back to")

// conflict is an ErrConflict that nobody else has caused.
type conflict string

func (c conflict) Error() string      { return string(c) }
func (conflict) Is(target error) bool { return target == ErrConflict }

// The states of an activation.
const (
	StageCanary     = "canary"
	StageActive     = "active"
	StageRolledBack = "rolled-back"
)

// PolicyVersion is a stored version of the policy. Versions never change.
type PolicyVersion struct {
	Version, Parent uint64
	Author, Note    string
	Created         time.Time
	SHA256          []byte // of the document
	Active          bool
	// Source is the text as it was written, empty where only the document is known;
	// Document is what nodes get. ListPolicies leaves both out.
	Source   string
	Document []byte
}

// NewPolicy is a version to be stored.
type NewPolicy struct {
	Source, Note string
	Document     []byte
	// Base is the newest version that the author has seen.
	Base uint64
}

// Activation is what is in force.
type Activation struct {
	// Generation grows with each change of what is in force for anybody.
	Generation uint64
	// Active is in force for all but the canary.
	Active uint64
	// Stage is the last activation that was asked for; its State is empty where
	// there was none yet.
	Stage Stage
}

// Stage is an activation, staged or at once.
type Stage struct {
	Base, Candidate    uint64
	Canary             []string // selectors; empty: all at once
	Started, HoldUntil time.Time
	State, Reason      string
	// Expect and Detail are the caller's JSON. Detail goes with the end of the stage.
	Expect, Detail string
}

// AddPolicy stores a document as the next version and puts it into force at once.
func (s *Store) AddPolicy(ctx context.Context, document []byte) (version uint64, err error) {
	err = s.update(ctx, func(t *tx) error {
		version, err = t.addPolicy(document)
		return err
	})
	return version, err
}

// InitPolicy is AddPolicy where no version exists yet, and nothing otherwise.
func (s *Store) InitPolicy(ctx context.Context, document []byte) error {
	return s.update(ctx, func(t *tx) error {
		n, err := t.q.CountPolicies(bg)
		if err != nil || n > 0 {
			return err
		}
		_, err = t.addPolicy(document)
		return err
	})
}

func (t *tx) addPolicy(document []byte) (uint64, error) {
	v, err := t.insertPolicy(NewPolicy{Document: document})
	if err != nil {
		return 0, err
	}
	return v, t.putIntoForce(v, "policy.activate", "")
}

func (t *tx) insertPolicy(p NewPolicy) (uint64, error) {
	sum := sha256.Sum256(p.Document)
	v, err := t.q.InsertPolicy(bg, db.InsertPolicyParams{
		Document: p.Document, Sha256: sum[:], Author: ActorOf(t.ctx), Created: t.now.UnixMicro(),
		Parent: int64(p.Base), Source: p.Source, Note: p.Note,
	})
	if err != nil {
		return 0, fmt.Errorf("store policy: %w", err)
	}
	return uint64(v), nil
}

// putIntoForce makes a version the one for all, and tells every node.
func (t *tx) putIntoForce(version uint64, action, detail string) error {
	if err := t.q.SetActivePolicy(bg, int64(version)); err != nil {
		return fmt.Errorf("activate policy: %w", err)
	}
	return t.announce(version, action, detail)
}

// announce counts a change of what is in force and records it.
func (t *tx) announce(version uint64, action, detail string) error {
	if _, err := t.q.BumpPolicyGeneration(bg); err != nil {
		return fmt.Errorf("count activation: %w", err)
	}
	t.change(Change{Scope: ScopeAll})
	t.audit(action, strconv.FormatUint(version, 10), detail)
	return nil
}

// ProposePolicy stores a version without putting it into force. Errors:
// ErrConflict where p.Base is not the newest version any more.
func (s *Store) ProposePolicy(ctx context.Context, p NewPolicy) (version uint64, err error) {
	err = s.update(ctx, func(t *tx) error {
		newest, err := t.q.NewestPolicy(bg)
		if err != nil {
			return fmt.Errorf("read newest policy: %w", err)
		}
		if uint64(newest) != p.Base {
			return fmt.Errorf("version %d is the newest, not %d: %w", newest, p.Base, ErrConflict)
		}
		if version, err = t.insertPolicy(p); err != nil {
			return err
		}
		sum := sha256.Sum256(p.Document)
		t.audit("policy.propose", strconv.FormatUint(version, 10),
			detail("parent", strconv.FormatUint(p.Base, 10), "sha256", fmt.Sprintf("%x", sum), "note", p.Note))
		return nil
	})
	return version, err
}

// Policy returns a version and its document; version 0 means the active one.
// Errors: ErrNotFound.
func (s *Store) Policy(ctx context.Context, version uint64) (v uint64, document []byte, err error) {
	p, err := s.ReadPolicy(ctx, version)
	return p.Version, p.Document, err
}

// ReadPolicy returns a version; 0 means the active one. Errors: ErrNotFound.
func (s *Store) ReadPolicy(ctx context.Context, version uint64) (PolicyVersion, error) {
	active, err := s.rq.ActivePolicy(ctx)
	if version == 0 {
		version = uint64(active)
	}
	var p db.Policy
	if err == nil {
		p, err = s.rq.PolicyByVersion(ctx, int64(version))
	}
	if isNoRows(err) {
		return PolicyVersion{}, fmt.Errorf("policy version %d: %w", version, ErrNotFound)
	}
	if err != nil {
		return PolicyVersion{}, fmt.Errorf("read policy: %w", err)
	}
	return PolicyVersion{
		Version: uint64(p.Version), Parent: uint64(p.Parent), Author: p.Author, Note: p.Note, Created: time.UnixMicro(p.Created),
		SHA256: p.Sha256, Active: p.Version == active, Source: p.Source, Document: p.Document,
	}, nil
}

// ListPolicies returns at most limit versions, newest first, without their texts;
// before other than 0 leaves out that version and newer ones.
func (s *Store) ListPolicies(ctx context.Context, before uint64, limit int) ([]PolicyVersion, error) {
	active, err := s.rq.ActivePolicy(ctx)
	if err != nil && !isNoRows(err) {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	if before == 0 || before > 1<<62 {
		before = 1 << 62
	}
	rows, err := s.rq.ListPolicies(ctx, db.ListPoliciesParams{Before: int64(before), Limit: int64(limit)})
	if err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	out := make([]PolicyVersion, 0, len(rows))
	for _, r := range rows {
		out = append(out, PolicyVersion{
			Version: uint64(r.Version), Parent: uint64(r.Parent), Author: r.Author, Note: r.Note,
			Created: time.UnixMicro(r.Created), SHA256: r.Sha256, Active: r.Version == active,
		})
	}
	return out, nil
}

// Activation returns what is in force. Errors: ErrNotFound before the first
// version.
func (s *Store) Activation(ctx context.Context) (Activation, error) {
	return activation(ctx, s.rq)
}

func activation(ctx context.Context, q *db.Queries) (Activation, error) {
	r, err := q.GetActivation(ctx)
	if isNoRows(err) {
		return Activation{}, fmt.Errorf("policy: %w", ErrNotFound)
	}
	if err != nil {
		return Activation{}, fmt.Errorf("read activation: %w", err)
	}
	a := Activation{Generation: uint64(r.PolicyGeneration), Active: uint64(r.Active), Stage: Stage{
		Base: uint64(r.Base), Candidate: uint64(r.Candidate), Started: time.UnixMicro(r.Started),
		HoldUntil: time.UnixMicro(r.HoldUntil), State: r.State, Reason: r.Reason, Expect: r.Expect, Detail: r.Detail,
	}}
	if r.Canary != "" {
		if err := json.Unmarshal([]byte(r.Canary), &a.Stage.Canary); err != nil {
			return a, fmt.Errorf("read activation: %w", err)
		}
	}
	return a, nil
}

// ActivatePolicy begins the activation of st.Candidate: for all at once where
// st.State is StageActive, else for the canary only. It sets st.Base and
// st.Started. active other than 0 is the version that the caller believes to be in
// force. Errors: ErrNotFound, ErrStaged, ErrConflict.
func (s *Store) ActivatePolicy(ctx context.Context, st Stage, active uint64) (a Activation, err error) {
	err = s.update(ctx, func(t *tx) error {
		now, err := activation(bg, t.q)
		switch {
		case err != nil:
			return err
		case now.Stage.State == StageCanary:
			return fmt.Errorf("version %d: %w", now.Stage.Candidate, ErrStaged)
		case active != 0 && active != now.Active:
			return fmt.Errorf("version %d is active, not %d: %w", now.Active, active, ErrConflict)
		case st.Candidate == now.Active:
			return fmt.Errorf("version %d is active already: %w", now.Active, ErrConflict)
		}
		if _, err := t.q.PolicyByVersion(bg, int64(st.Candidate)); isNoRows(err) {
			return fmt.Errorf("policy version %d: %w", st.Candidate, ErrNotFound)
		} else if err != nil {
			return fmt.Errorf("read policy: %w", err)
		}
		hold := st.HoldUntil.Sub(st.Started)
		st.Base, st.Started = now.Active, t.now
		st.HoldUntil = t.now.Add(hold)
		if err := t.putStage(&st); err != nil {
			return err
		}
		base := strconv.FormatUint(now.Active, 10)
		if st.State == StageActive {
			err = t.putIntoForce(st.Candidate, "policy.activate", detail("base", base))
		} else {
			canary, _ := json.Marshal(st.Canary) //nolint:errchkjson // strings always can
			err = t.announce(st.Candidate, "policy.stage", detail("base", base, "canary", string(canary), "hold", hold.String(), "expect", st.Expect))
		}
		if err == nil {
			a, err = activation(bg, t.q)
		}
		return err
	})
	return a, err
}

func (t *tx) putStage(st *Stage) error {
	canary, err := json.Marshal(st.Canary)
	if err == nil {
		err = t.q.PutStage(bg, db.PutStageParams{
			Base: int64(st.Base), Candidate: int64(st.Candidate), Canary: string(canary), Expect: st.Expect,
			Started: st.Started.UnixMicro(), HoldUntil: st.HoldUntil.UnixMicro(), State: st.State, Reason: st.Reason, Detail: st.Detail,
		})
	}
	if err != nil {
		return fmt.Errorf("store activation: %w", err)
	}
	return nil
}

// EndStage ends the staged activation that began at started: with StageActive its
// candidate is for all, with StageRolledBack its base. Errors: ErrConflict where it
// is not under way any more.
func (s *Store) EndStage(ctx context.Context, started time.Time, state, reason string) (a Activation, err error) {
	err = s.update(ctx, func(t *tx) error {
		now, err := activation(bg, t.q)
		if err != nil {
			return err
		}
		if now.Stage.State != StageCanary || !now.Stage.Started.Equal(started) {
			return fmt.Errorf("end activation: %w", ErrConflict)
		}
		a, err = t.endStage(now, state, reason)
		return err
	})
	return a, err
}

// RollbackPolicy ends the staged activation that is under way, or puts the version
// before the last activation back into force. Errors: ErrConflict where neither is
// possible.
func (s *Store) RollbackPolicy(ctx context.Context, reason string) (a Activation, err error) {
	err = s.update(ctx, func(t *tx) error {
		now, err := activation(bg, t.q)
		if err != nil {
			return err
		}
		st := &now.Stage
		if st.State == StageRolledBack || st.State == "" || st.State == StageActive && st.Candidate != now.Active {
			return errNoRollback
		}
		a, err = t.endStage(now, StageRolledBack, reason)
		return err
	})
	return a, err
}

func (t *tx) endStage(now Activation, state, reason string) (a Activation, err error) {
	st := &now.Stage
	n, err := t.q.EndStage(bg, db.EndStageParams{State: state, Reason: reason, Was: st.State, Started: st.Started.UnixMicro()})
	if err == nil && n != 1 {
		err = errors.New("no such stage")
	}
	if err != nil {
		return a, fmt.Errorf("end activation: %w", err)
	}
	if state == StageActive {
		err = t.putIntoForce(st.Candidate, "policy.activate", detail("base", strconv.FormatUint(st.Base, 10), "reason", reason))
	} else {
		err = t.putIntoForce(st.Base, "policy.rollback", detail("candidate", strconv.FormatUint(st.Candidate, 10), "reason", reason))
	}
	if err != nil {
		return a, err
	}
	return activation(bg, t.q)
}
