// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	hubpolicy "github.com/bauxite-mesh/bauxite/dispatch/internal/policy"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type policyService struct {
	*API
	dispatchv1connect.UnimplementedPolicyServiceHandler
}

const (
	defaultPolicies, maxPolicies = 50, 500
	maxPolicyNote                = 1024
)

func (a *API) newRollout() *hubpolicy.Rollout {
	return hubpolicy.NewRollout(hubpolicy.RolloutConfig{
		Store: a.store, Logger: a.log,
		Online: func(id identity.PeerID) bool {
			_, _, online := a.cfg.Registry.Lookup(id)
			return online
		},
		Reports: func(ids []identity.PeerID) []hubpolicy.Report {
			reports := a.cfg.Reports.Reports(ids)
			out := make([]hubpolicy.Report, 0, len(reports))
			for i := range reports {
				r := &reports[i]
				out = append(out, hubpolicy.Report{ID: r.ID, Applied: r.Applied, Denied: r.Denied, Time: r.Last})
			}
			return out
		},
	})
}

// StagePolicies moves staged activations on until ctx ends.
func (a *API) StagePolicies(ctx context.Context) error { return a.rollout.Run(ctx) }

// GetPolicy answers a node with what is in force for it. Other versions are none
// of its business: they may name nodes that it must not know.
func (p policyService) GetPolicy(ctx context.Context, req *dispatchv1.GetPolicyRequest) (*dispatchv1.GetPolicyResponse, error) {
	v, doc, err := p.rollout.InForce(ctx, callerOf(ctx).id)
	if err == nil && req.GetVersion() != 0 && req.GetVersion() != v {
		err = fmt.Errorf("policy version %d is not in force for this node: %w", req.GetVersion(), store.ErrNotFound)
	}
	if err != nil {
		return nil, wireError(ctx, p.log, "read policy", err)
	}
	return &dispatchv1.GetPolicyResponse{Version: v, Document: doc}, nil
}

func (p policyService) ListPolicies(ctx context.Context, req *dispatchv1.ListPoliciesRequest) (*dispatchv1.ListPoliciesResponse, error) {
	limit := int(min(req.GetLimit(), maxPolicies))
	if limit == 0 {
		limit = defaultPolicies
	}
	list, err := p.store.ListPolicies(ctx, req.GetBefore(), limit)
	if err != nil {
		return nil, wireError(ctx, p.log, "list policies", err)
	}
	res := &dispatchv1.ListPoliciesResponse{}
	for i := range list {
		res.Policies = append(res.Policies, policyProto(&list[i]))
	}
	return res, nil
}

func policyProto(v *store.PolicyVersion) *dispatchv1.PolicyVersion {
	return &dispatchv1.PolicyVersion{
		Version: v.Version, Parent: v.Parent, Author: v.Author, Created: timestamppb.New(v.Created), Note: v.Note,
		Sha256: v.SHA256, Active: v.Active,
	}
}

func (p policyService) ReadPolicy(ctx context.Context, req *dispatchv1.ReadPolicyRequest) (*dispatchv1.ReadPolicyResponse, error) {
	v, err := p.readPolicy(ctx, req.GetVersion())
	if err != nil {
		return nil, err
	}
	source := v.Source
	if source == "" { // the first version, which nobody wrote
		source = hubpolicy.Commented(v.Document)
	}
	return &dispatchv1.ReadPolicyResponse{Policy: policyProto(&v), Source: source, Document: v.Document}, nil
}

func (a *API) readPolicy(ctx context.Context, version uint64) (store.PolicyVersion, error) {
	if version > math.MaxInt64 {
		version = math.MaxInt64
	}
	v, err := a.store.ReadPolicy(ctx, version)
	if err != nil {
		return v, wireError(ctx, a.log, "read policy", err)
	}
	return v, nil
}

// subjects are the nodes to which policies apply.
func (a *API) subjects(ctx context.Context) ([]policy.Subject, error) {
	nodes, err := a.store.ListNodes(ctx)
	if err != nil {
		return nil, wireError(ctx, a.log, "list nodes", err)
	}
	return hubpolicy.Subjects(nodes), nil
}

func (a *API) examine(ctx context.Context, source string) (hubpolicy.Review, error) {
	nodes, err := a.subjects(ctx)
	if err != nil {
		return hubpolicy.Review{}, err
	}
	return hubpolicy.Examine(source, nodes), nil
}

func (p policyService) TestPolicy(ctx context.Context, req *dispatchv1.TestPolicyRequest) (*dispatchv1.TestPolicyResponse, error) {
	r, err := p.examine(ctx, req.GetSource())
	if err != nil {
		return nil, err
	}
	res := &dispatchv1.TestPolicyResponse{Ok: len(r.Findings) == 0, Tests: uint32(r.Tests), Failed: uint32(r.Failed)}
	for _, f := range r.Findings {
		res.Findings = append(res.Findings, &dispatchv1.PolicyFinding{Line: uint32(f.Line), Column: uint32(f.Column), Message: f.Message})
	}
	return res, nil
}

func (p policyService) ProposePolicy(ctx context.Context, req *dispatchv1.ProposePolicyRequest) (*dispatchv1.ProposePolicyResponse, error) {
	if len(req.GetNote()) > maxPolicyNote {
		return nil, invalid("note: want at most %d bytes", maxPolicyNote)
	}
	r, err := p.examine(ctx, req.GetSource())
	if err != nil {
		return nil, err
	}
	if len(r.Findings) > 0 {
		return nil, badPolicy(r.Findings)
	}
	// Nodes need no white space, and each of thousands fetches it.
	var doc bytes.Buffer
	if err := json.Compact(&doc, r.Text.Document.Marshal()); err != nil {
		return nil, wireError(ctx, p.log, "store policy", err)
	}
	if doc.Len() > hubpolicy.MaxText {
		return nil, invalid("policy: %d bytes without white space, want at most %d", doc.Len(), hubpolicy.MaxText)
	}
	v, err := p.store.ProposePolicy(ctx, store.NewPolicy{
		Source: req.GetSource(), Document: doc.Bytes(), Base: req.GetBaseVersion(), Note: req.GetNote(),
	})
	if err != nil {
		return nil, wireError(ctx, p.log, "store policy", err)
	}
	p.log.InfoContext(ctx, "policy proposed", "version", v, "by", store.ActorOf(ctx))
	return &dispatchv1.ProposePolicyResponse{Version: v}, nil
}

// badPolicy is the refusal of a text; it shows the first of what is wrong.
func badPolicy(findings []hubpolicy.Finding) error {
	const most = 10
	var out []string
	for i, f := range findings {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(findings)-most))
			break
		}
		out = append(out, f.String())
	}
	return fail(connect.CodeFailedPrecondition, dispatchv1.ErrorReason_ERROR_REASON_POLICY_TESTS_FAILED,
		"policy refused: "+strings.Join(out, "\n"), "try it without storing it: bauxite-dispatch policy test FILE")
}

func (p policyService) ActivatePolicy(ctx context.Context, req *dispatchv1.ActivatePolicyRequest) (*dispatchv1.ActivatePolicyResponse, error) {
	if req.GetVersion() == 0 || req.GetVersion() > math.MaxInt64 {
		return nil, invalid("version is missing")
	}
	e := req.GetExpect()
	plan := hubpolicy.Plan{
		Candidate: req.GetVersion(), Canary: req.GetCanary(), Hold: req.GetHold().AsDuration(),
		Expect: hubpolicy.Expectations{
			MinAppliedPercent: int(e.GetMinAppliedPercent()), MaxDeniedPerMinute: e.GetMaxDeniedPerMinute(),
			MinOnlinePercent: int(e.GetMinOnlinePercent()),
		},
	}
	switch {
	case len(plan.Canary) == 0 && (req.GetHold() != nil || e != nil):
		return nil, invalid("hold and expect need a canary")
	case len(plan.Canary) > policy.MaxSelectors:
		return nil, invalid("canary: want at most %d selectors", policy.MaxSelectors)
	case len(plan.Canary) > 0:
		// It is checked with the nodes again; here it is the caller's mistake.
		if err := plan.Validate(); err != nil {
			return nil, invalid("%w", err)
		}
	}
	st, err := p.rollout.Activate(ctx, plan, req.GetExpectedActive())
	if err != nil {
		return nil, p.activateError(ctx, err)
	}
	p.log.InfoContext(ctx, "policy activation", "version", plan.Candidate, "state", st.Stage.State, "by", store.ActorOf(ctx))
	return &dispatchv1.ActivatePolicyResponse{Activation: activationProto(&st)}, nil
}

func (p policyService) activateError(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, hubpolicy.ErrTests):
		return fail(connect.CodeFailedPrecondition, dispatchv1.ErrorReason_ERROR_REASON_POLICY_TESTS_FAILED, err.Error(),
			"the nodes have changed since it was proposed: propose a version whose tests hold")
	case errors.Is(err, hubpolicy.ErrNoCanary), errors.Is(err, policy.ErrSelector):
		return invalid("%w", err)
	case errors.Is(err, store.ErrStaged):
		return fail(connect.CodeAborted, dispatchv1.ErrorReason_ERROR_REASON_CONFLICT, err.Error(),
			"wait for it, or end it: bauxite-dispatch policy rollback")
	}
	return wireError(ctx, p.log, "activate policy", err)
}

func (p policyService) RollbackPolicy(ctx context.Context, req *dispatchv1.RollbackPolicyRequest) (*dispatchv1.RollbackPolicyResponse, error) {
	if len(req.GetReason()) > maxReason {
		return nil, invalid("reason: want at most %d bytes", maxReason)
	}
	st, err := p.rollout.Rollback(ctx, req.GetReason())
	if err != nil {
		return nil, wireError(ctx, p.log, "roll back policy", err)
	}
	return &dispatchv1.RollbackPolicyResponse{Activation: activationProto(&st)}, nil
}

func (p policyService) GetActivation(ctx context.Context, _ *dispatchv1.GetActivationRequest) (*dispatchv1.GetActivationResponse, error) {
	st, err := p.rollout.Status(ctx)
	if err != nil {
		return nil, wireError(ctx, p.log, "read activation", err)
	}
	return &dispatchv1.GetActivationResponse{Activation: activationProto(&st)}, nil
}

func activationProto(st *hubpolicy.Status) *dispatchv1.Activation {
	a := &dispatchv1.Activation{Generation: st.Generation, Base: st.Active, State: st.Stage.State, Reason: st.Stage.Reason}
	switch st.Stage.State {
	case "":
		a.State = store.StageActive
	case store.StageRolledBack:
		a.Reason = fmt.Sprintf("version %d: %s", st.Stage.Candidate, st.Stage.Reason)
	case store.StageCanary:
		a.Candidate, a.Canary, a.HoldUntil = st.Stage.Candidate, st.Stage.Canary, timestamppb.New(st.Stage.HoldUntil)
		a.CanaryNodes, a.CanaryApplied = uint32(st.CanaryNodes), uint32(st.Progress.Applied)
	}
	return a
}

func (p policyService) DiffPolicies(ctx context.Context, req *dispatchv1.DiffPoliciesRequest) (*dispatchv1.DiffPoliciesResponse, error) {
	from, err := p.document(ctx, req.GetFrom())
	if err != nil {
		return nil, err
	}
	var to *policy.Document
	if req.GetSource() == "" {
		to, err = p.document(ctx, req.GetTo())
	} else {
		var text *hubpolicy.Text
		if text, err = hubpolicy.Parse(req.GetSource()); err != nil {
			return nil, invalid("%w", err)
		}
		to = text.Document
	}
	if err != nil {
		return nil, err
	}
	nodes, err := p.subjects(ctx)
	if err != nil {
		return nil, err
	}
	diff, err := policy.Diff(from, to, nodes)
	if err != nil {
		return nil, wireError(ctx, p.log, "compare policies", err)
	}
	res := &dispatchv1.DiffPoliciesResponse{Truncated: diff.Truncated}
	for i := range diff.Rules {
		res.Rules = append(res.Rules, diff.Rules[i].String())
	}
	for i := range diff.Reach {
		res.Reachability = append(res.Reachability, diff.Reach[i].String())
	}
	return res, nil
}

// document reads a version; 0 means the active one.
func (a *API) document(ctx context.Context, version uint64) (*policy.Document, error) {
	v, err := a.readPolicy(ctx, version)
	if err != nil {
		return nil, err
	}
	d, err := policy.Parse(v.Document)
	if err != nil {
		return nil, wireError(ctx, a.log, "read policy", err)
	}
	return d, nil
}

func (p policyService) ExplainPolicy(ctx context.Context, req *dispatchv1.ExplainPolicyRequest) (*dispatchv1.ExplainPolicyResponse, error) {
	lane := policy.Critical
	if req.GetLane() != "" {
		var err error
		if lane, err = policy.ParseLane(req.GetLane()); err != nil {
			return nil, invalid("%w", err)
		}
	}
	switch p := req.GetProto(); {
	case p != "" && p != "any" && p != "icmp" && p != "tcp" && p != "udp":
		return nil, invalid("proto %q: want any, icmp, tcp or udp", p)
	case req.GetPort() > math.MaxUint16, (p == "tcp" || p == "udp") != (req.GetPort() != 0):
		return nil, invalid("tcp and udp need a port from 1 to 65535, others have none")
	}
	var ends [2]policy.Subject
	for i, name := range []string{req.GetSrc(), req.GetDst()} {
		n, err := p.find(ctx, name)
		if err != nil {
			return nil, err
		}
		ends[i] = policy.Subject{ID: n.ID, Name: n.Name, Tags: n.Tags}
	}
	if ends[0].ID == ends[1].ID {
		return nil, invalid("src and dst are the same node")
	}
	v, err := p.readPolicy(ctx, req.GetVersion())
	if err != nil {
		return nil, err
	}
	d, err := policy.Parse(v.Document)
	if err != nil {
		return nil, wireError(ctx, p.log, "read policy", err)
	}
	got := d.Explain(ends[0], ends[1], req.GetProto(), uint16(req.GetPort()), lane)
	return &dispatchv1.ExplainPolicyResponse{Allow: got.Allow, Rule: got.Rule, Why: got.Why, Version: v.Version}, nil
}
