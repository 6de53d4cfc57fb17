// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func policiesOf(h *dispatchtest.Hub) dispatchv1connect.PolicyServiceClient {
	return dispatchv1connect.NewPolicyServiceClient(h.Admin(), "http://hub")
}

// policyVersion asks as the node for what is in force for it.
func (m *machine) policyVersion(ctx context.Context) uint64 {
	m.tb.Helper()
	res, err := dispatchv1connect.NewPolicyServiceClient(m.http, m.hub.URL()).GetPolicy(ctx, &dispatchv1.GetPolicyRequest{})
	if err != nil {
		m.tb.Fatal(err)
	}
	if _, err := policy.Parse(res.GetDocument()); err != nil {
		m.tb.Fatalf("version %d: %v", res.GetVersion(), err)
	}
	return res.GetVersion()
}

func (m *machine) report(ctx context.Context, version uint64) {
	m.tb.Helper()
	_, err := dispatchv1connect.NewMetricsServiceClient(m.http, m.hub.URL()).ReportMetrics(ctx, &dispatchv1.ReportMetricsRequest{PolicyVersion: version})
	if err != nil && connect.CodeOf(err) != connect.CodeResourceExhausted {
		m.tb.Fatal(err)
	}
}

// text is a policy that allows all and has a rule of its own.
func policyText(id string, tests ...string) string {
	return fmt.Sprintf(`// version %s
{
	"version": 1,
	"allow": [{"id": %q, "src": ["*"], "dst": ["*"]}],
	"guards": [{"id": "no-telnet", "src": ["*"], "dst": ["*"], "proto": "tcp", "ports": ["23"]}],
	"tests": [
		%s
	],
}
`, id, id, strings.Join(tests, ",\n\t\t"))
}

const (
	goodTest = `{"src": "name:a", "dst": "name:b", "proto": "tcp", "port": 23, "want": "deny"}`
	badTest  = `{"src": "name:a", "dst": "name:b", "proto": "tcp", "port": 22, "want": "deny"}`
)

func propose(t *testing.T, c dispatchv1connect.PolicyServiceClient, base uint64) {
	t.Helper()
	res, err := c.ProposePolicy(testContext(t), &dispatchv1.ProposePolicyRequest{Source: policyText("x", goodTest), BaseVersion: base, Note: "why"})
	if err != nil || res.GetVersion() != base+1 {
		t.Fatalf("propose: %v, %v", res, err)
	}
}

func TestPolicyPropose(t *testing.T) {
	ctx := testContext(t)
	h := dispatchtest.Start(t)
	join(t, h, "a")
	join(t, h, "b")
	c := policiesOf(h)
	for name, tc := range map[string]struct {
		source string
		base   uint64
		code   connect.Code
		want   string
	}{
		"syntax":     {"{\n  \"version\": 1,\n  \"allow\": nothing\n}", 1, connect.CodeFailedPrecondition, "3:12: invalid literal"},
		"selector":   {`{"version": 1, "allow": [{"src": ["a"], "dst": ["*"]}]}`, 1, connect.CodeFailedPrecondition, `1:35: allow rule "1": selector "a"`},
		"test fails": {policyText("x", goodTest, badTest), 1, connect.CodeFailedPrecondition, "8:3: test 2: a to b: want deny, allowed by rule x"},
		"no node":    {policyText("x", strings.Replace(goodTest, "name:a", "name:nobody", 1)), 1, connect.CodeFailedPrecondition, "test 1: name:nobody to name:b matches no two nodes"},
		"stale":      {policyText("x"), 7, connect.CodeAborted, "version 1 is the newest, not 7"},
	} {
		_, err := c.ProposePolicy(ctx, &dispatchv1.ProposePolicyRequest{Source: tc.source, BaseVersion: tc.base})
		if connect.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %v %q", name, err, tc.code, tc.want)
		}
		// Trying it out says the same, where the base does not matter.
		res, err := c.TestPolicy(ctx, &dispatchv1.TestPolicyRequest{Source: tc.source})
		if err != nil || res.GetOk() != (name == "stale") || !res.GetOk() && !strings.Contains(tc.want, res.GetFindings()[0].GetMessage()[:10]) {
			t.Errorf("%s: %v, %v", name, res, err)
		}
	}
	if _, err := c.ProposePolicy(ctx, &dispatchv1.ProposePolicyRequest{Source: policyText("x"), BaseVersion: 1, Note: strings.Repeat("x", 2000)}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("long note: %v", err)
	}
	propose(t, c, 1)
	list, err := c.ListPolicies(ctx, &dispatchv1.ListPoliciesRequest{})
	if err != nil || len(list.GetPolicies()) != 2 {
		t.Fatal(list, err)
	}
	if p := list.GetPolicies()[0]; p.GetVersion() != 2 || p.GetParent() != 1 || p.GetAuthor() != "socket" || p.GetNote() != "why" || p.GetActive() || len(p.GetSha256()) != 32 {
		t.Errorf("newest: %v", p)
	}
	res, err := c.ReadPolicy(ctx, &dispatchv1.ReadPolicyRequest{Version: 2})
	if err != nil || res.GetSource() != policyText("x", goodTest) || strings.ContainsAny(string(res.GetDocument()), "\n/") {
		t.Errorf("text: %v, %v", res, err)
	}
	if res, err := c.ReadPolicy(ctx, &dispatchv1.ReadPolicyRequest{}); err != nil || res.GetPolicy().GetVersion() != 1 || res.GetSource() == "" {
		t.Errorf("active: %v, %v", res, err)
	}
	for _, v := range []uint64{9, 1 << 63, ^uint64(0)} {
		if _, err := c.ReadPolicy(ctx, &dispatchv1.ReadPolicyRequest{Version: v}); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("version %d: %v", v, err)
		}
	}
}

func TestPolicyStages(t *testing.T) {
	ctx := testContext(t)
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	c := policiesOf(h)
	propose(t, c, 1)
	if _, err := fleetOf(h).UpdateNode(ctx, &dispatchv1.UpdateNodeRequest{
		Node: "a", Tags: []string{"canary"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"tags"}},
	}); err != nil {
		t.Fatal(err)
	}
	w := b.watch(ctx, nil)
	w.until("synced", func() bool { return w.epoch != 0 })
	first := w.policy
	activate := func(req *dispatchv1.ActivatePolicyRequest) (*dispatchv1.Activation, error) {
		res, err := c.ActivatePolicy(ctx, req)
		return res.GetActivation(), err
	}
	for name, req := range map[string]*dispatchv1.ActivatePolicyRequest{
		"no version":      {},
		"nobody":          {Version: 2, Canary: []string{"tag:nobody"}},
		"bad selector":    {Version: 2, Canary: []string{"canary"}},
		"hold, no canary": {Version: 2, Hold: durationpb.New(time.Minute)},
		"short hold":      {Version: 2, Canary: []string{"*"}, Hold: durationpb.New(time.Second)},
		"200 percent":     {Version: 2, Canary: []string{"*"}, Expect: &dispatchv1.Expectations{MinOnlinePercent: 200}},
	} {
		if _, err := activate(req); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	act, err := activate(&dispatchv1.ActivatePolicyRequest{Version: 2, Canary: []string{"tag:canary"}, ExpectedActive: 1})
	if err != nil || act.GetState() != "canary" || act.GetBase() != 1 || act.GetCandidate() != 2 || act.GetCanaryNodes() != 1 || time.Until(act.GetHoldUntil().AsTime()) < 9*time.Minute {
		t.Fatalf("activation %v, %v", act, err)
	}
	// Every node is told, whoever it concerns, and gets what is for it.
	w.until("told", func() bool { return w.st.Msg().GetDelta().GetPolicyVersion() > first })
	if va, vb := a.policyVersion(ctx), b.policyVersion(ctx); va != 2 || vb != 1 {
		t.Errorf("canary has version %d, the other %d", va, vb)
	}
	if _, err := dispatchv1connect.NewPolicyServiceClient(b.http, h.URL()).GetPolicy(ctx, &dispatchv1.GetPolicyRequest{Version: 2}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a node reads a version that is not for it: %v", err)
	}
	if _, err := activate(&dispatchv1.ActivatePolicyRequest{Version: 2}); connect.CodeOf(err) != connect.CodeAborted {
		t.Errorf("second activation: %v", err)
	}
	// The hub's restart changes nothing.
	h.Restart()
	c = policiesOf(h)
	if va, vb := a.policyVersion(ctx), b.policyVersion(ctx); va != 2 || vb != 1 {
		t.Errorf("after a restart the canary has version %d, the other %d", va, vb)
	}
	res, err := c.RollbackPolicy(ctx, &dispatchv1.RollbackPolicyRequest{Reason: "not yet"})
	if err != nil || res.GetActivation().GetState() != "rolled-back" || res.GetActivation().GetReason() != "version 2: not yet" || res.GetActivation().GetGeneration() <= act.GetGeneration() {
		t.Errorf("rollback %v, %v", res, err)
	}
	if va, vb := a.policyVersion(ctx), b.policyVersion(ctx); va != 1 || vb != 1 {
		t.Errorf("after the rollback versions %d and %d", va, vb)
	}
	if act, err = activate(&dispatchv1.ActivatePolicyRequest{Version: 2}); err != nil || act.GetState() != "active" || act.GetBase() != 2 || act.GetCandidate() != 0 {
		t.Errorf("at once: %v, %v", act, err)
	}
	if va, vb := a.policyVersion(ctx), b.policyVersion(ctx); va != 2 || vb != 2 {
		t.Errorf("versions %d and %d", va, vb)
	}
	if _, err := activate(&dispatchv1.ActivatePolicyRequest{Version: 1, ExpectedActive: 1}); connect.CodeOf(err) != connect.CodeAborted {
		t.Errorf("stale activation: %v", err)
	}
	if _, err := c.RollbackPolicy(ctx, &dispatchv1.RollbackPolicyRequest{}); err != nil || a.policyVersion(ctx) != 1 {
		t.Errorf("rollback of an activation: %v", err)
	}
	if _, err := c.RollbackPolicy(ctx, &dispatchv1.RollbackPolicyRequest{}); connect.CodeOf(err) != connect.CodeAborted {
		t.Errorf("second rollback: %v", err)
	}
}

// TestPolicyStageDecides lets the hub itself decide, which takes the shortest hold.
func TestPolicyStageDecides(t *testing.T) {
	if testing.Short() {
		t.Skip("takes two holds of 10 s")
	}
	ctx := testContext(t)
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	c := policiesOf(h)
	propose(t, c, 1)
	a.signal(ctx)
	until := func(state string) *dispatchv1.Activation {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			res, err := c.GetActivation(ctx, &dispatchv1.GetActivationRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if res.GetActivation().GetState() == state {
				return res.GetActivation()
			}
			<-tick.C
		}
	}
	for _, applied := range []uint64{1, 2} {
		if _, err := c.ActivatePolicy(ctx, &dispatchv1.ActivatePolicyRequest{Version: 2, Canary: []string{"name:a"}, Hold: durationpb.New(10 * time.Second)}); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 8 {
				a.report(ctx, applied)
				select {
				case <-time.After(1100 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		}()
		if applied == 1 {
			if act := until("rolled-back"); !strings.Contains(act.GetReason(), "0 of 1 canary nodes have applied it") {
				t.Errorf("reason %q", act.GetReason())
			}
		} else {
			until("active")
		}
		<-done
		if va, vb := a.policyVersion(ctx), b.policyVersion(ctx); va != applied || vb != applied {
			t.Errorf("versions %d and %d, want %d", va, vb, applied)
		}
	}
}

func TestPolicyDiffAndExplain(t *testing.T) {
	ctx := testContext(t)
	h := dispatchtest.Start(t)
	a, _ := join(t, h, "a"), join(t, h, "b")
	c := policiesOf(h)
	propose(t, c, 1)
	diff, err := c.DiffPolicies(ctx, &dispatchv1.DiffPoliciesRequest{To: 2})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"- allow enrolled: * to *", "+ allow x: * to *", "+ guard no-telnet: * to * tcp 23", "+ test: name:a to name:b tcp 23 on critical: deny"}
	if !slices.Equal(diff.GetRules(), want) {
		t.Errorf("rules %q", diff.GetRules())
	}
	if got := diff.GetReachability(); !slices.Equal(got, []string{"- a, b to a, b: tcp 23, every lane"}) {
		t.Errorf("reachability %q", got)
	}
	if diff, err := c.DiffPolicies(ctx, &dispatchv1.DiffPoliciesRequest{From: 2, Source: policyText("x", goodTest)}); err != nil || len(diff.GetRules())+len(diff.GetReachability()) > 0 {
		t.Errorf("with its own text: %v, %v", diff, err)
	}
	if _, err := c.DiffPolicies(ctx, &dispatchv1.DiffPoliciesRequest{Source: "{"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("bad text: %v", err)
	}
	why := func(req *dispatchv1.ExplainPolicyRequest) (*dispatchv1.ExplainPolicyResponse, error) {
		return c.ExplainPolicy(ctx, req)
	}
	if res, err := why(&dispatchv1.ExplainPolicyRequest{Src: "a", Dst: "b", Proto: "tcp", Port: 23, Lane: "bulk"}); err != nil || !res.GetAllow() || res.GetRule() != "enrolled" || res.GetVersion() != 1 {
		t.Errorf("why %v, %v", res, err)
	}
	if res, err := why(&dispatchv1.ExplainPolicyRequest{Src: a.id.String()[:12], Dst: "b", Proto: "tcp", Port: 23, Version: 2}); err != nil || res.GetAllow() || res.GetWhy() != "denied by guard:no-telnet: a to b, tcp port 23, lane critical" {
		t.Errorf("why %v, %v", res, err)
	}
	for name, req := range map[string]*dispatchv1.ExplainPolicyRequest{
		"lane": {Src: "a", Dst: "b", Lane: "fast"}, "proto": {Src: "a", Dst: "b", Proto: "sctp"}, "port": {Src: "a", Dst: "b", Proto: "tcp"},
		"big port": {Src: "a", Dst: "b", Proto: "tcp", Port: 1 << 16}, "icmp port": {Src: "a", Dst: "b", Proto: "icmp", Port: 1}, "itself": {Src: "a", Dst: "a"},
		"no src": {Dst: "b"},
	} {
		if _, err := why(req); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := why(&dispatchv1.ExplainPolicyRequest{Src: "a", Dst: "nobody"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("unknown node: %v", err)
	}
}

// The hub carries between two nodes what either policy in force allows, and stops
// when neither does.
func TestPolicyStageTalk(t *testing.T) {
	ctx := testContext(t)
	h := dispatchtest.Start(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	c := policiesOf(h)
	for v, source := range []string{
		`{"version": 1, "allow": [{"src": ["*"], "dst": ["name:nobody"]}]}`,
		`{"version": 1, "allow": [{"src": ["name:b"], "dst": ["*"], "proto": "tcp", "ports": ["22"], "lanes": ["bulk"]}]}`,
	} {
		if _, err := c.ProposePolicy(ctx, &dispatchv1.ProposePolicyRequest{Source: source, BaseVersion: uint64(v + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	sa, sb := a.signal(ctx), b.signal(ctx)
	seq := uint64(0)
	carried := func() bool {
		t.Helper()
		seq++
		if err := sa.Send(&dispatchv1.ExchangeCandidatesRequest{To: b.id.String(), Seq: seq, Body: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		answers := make(chan bool, 2)
		// Either the sender hears that it was not carried, or the receiver gets it.
		for _, s := range []*bidi{sa, sb} {
			go func() {
				res, err := s.Receive()
				answers <- err == nil && res.GetDelivery() != nil
			}()
		}
		got := <-answers
		// The other one is still reading: let it read the next message to itself.
		if got {
			_ = sb.Send(&dispatchv1.ExchangeCandidatesRequest{To: a.id.String(), Seq: seq, Body: []byte("x")})
		} else {
			_ = sb.Send(&dispatchv1.ExchangeCandidatesRequest{To: b.id.String(), Seq: seq, Body: []byte("x")})
		}
		<-answers
		return got
	}
	activate := func(version uint64, canary ...string) {
		t.Helper()
		if _, err := c.ActivatePolicy(ctx, &dispatchv1.ActivatePolicyRequest{Version: version, Canary: canary}); err != nil {
			t.Fatal(err)
		}
	}
	if !carried() {
		t.Error("denied under the first policy")
	}
	activate(2)
	if carried() {
		t.Error("carried although nobody may talk")
	}
	activate(3, "name:a")
	if !carried() {
		t.Error("denied although the candidate allows it")
	}
	if _, err := c.RollbackPolicy(ctx, &dispatchv1.RollbackPolicyRequest{}); err != nil {
		t.Fatal(err)
	}
	if carried() {
		t.Error("carried after the rollback")
	}
}
