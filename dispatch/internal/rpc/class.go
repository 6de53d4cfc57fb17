// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// class is who may call a procedure.
type class uint8

const (
	anonymous class = iota + 1 // anybody who reaches the node port
	node                       // the bearer of a node certificate
	admin                      // whoever may open the unix socket
)

// classes names every procedure of the API. One that is missing here is refused,
// and the hub does not start.
var classes = map[string]class{
	dispatchv1connect.ProvisioningServiceProvisionProcedure:        anonymous,
	dispatchv1connect.ProvisioningServiceRenewProcedure:            node,
	dispatchv1connect.ProvisioningServiceRekeyProcedure:            node,
	dispatchv1connect.ProvisioningServiceBeginRecoveryProcedure:    anonymous,
	dispatchv1connect.ProvisioningServiceRecoverProcedure:          anonymous,
	dispatchv1connect.ProvisioningServiceGetMeshKeyProcedure:       node,
	dispatchv1connect.ProvisioningServiceLeaveProcedure:            node,
	dispatchv1connect.SignalingServiceExchangeCandidatesProcedure:  node,
	dispatchv1connect.TopologyServiceWatchTopologyProcedure:        node,
	dispatchv1connect.TopologyServiceResolvePeerProcedure:          node,
	dispatchv1connect.RelayServiceRelayProcedure:                   node,
	dispatchv1connect.RelayServiceGetTurnCredentialsProcedure:      node,
	dispatchv1connect.MetricsServiceReportMetricsProcedure:         node,
	dispatchv1connect.MetricsServiceGetNodeMetricsProcedure:        admin,
	dispatchv1connect.MetricsServiceGetFleetMetricsProcedure:       admin,
	dispatchv1connect.PolicyServiceGetPolicyProcedure:              node,
	dispatchv1connect.PolicyServiceListPoliciesProcedure:           admin,
	dispatchv1connect.PolicyServiceReadPolicyProcedure:             admin,
	dispatchv1connect.PolicyServiceTestPolicyProcedure:             admin,
	dispatchv1connect.PolicyServiceProposePolicyProcedure:          admin,
	dispatchv1connect.PolicyServiceActivatePolicyProcedure:         admin,
	dispatchv1connect.PolicyServiceRollbackPolicyProcedure:         admin,
	dispatchv1connect.PolicyServiceGetActivationProcedure:          admin,
	dispatchv1connect.PolicyServiceDiffPoliciesProcedure:           admin,
	dispatchv1connect.PolicyServiceExplainPolicyProcedure:          admin,
	dispatchv1connect.FleetServiceCreateTokenProcedure:             admin,
	dispatchv1connect.FleetServiceListTokensProcedure:              admin,
	dispatchv1connect.FleetServiceRevokeTokenProcedure:             admin,
	dispatchv1connect.FleetServiceListNodesProcedure:               admin,
	dispatchv1connect.FleetServiceGetNodeProcedure:                 admin,
	dispatchv1connect.FleetServiceApproveNodeProcedure:             admin,
	dispatchv1connect.FleetServiceRevokeNodeProcedure:              admin,
	dispatchv1connect.FleetServiceDeleteNodeProcedure:              admin,
	dispatchv1connect.FleetServiceUpdateNodeProcedure:              admin,
	dispatchv1connect.FleetServiceWatchFleetProcedure:              admin,
	dispatchv1connect.AuditServiceListAuditEntriesProcedure:        admin,
	dispatchv1connect.AuditServiceTailAuditEntriesProcedure:        admin,
	dispatchv1connect.AuditServiceListAuditCheckpointsProcedure:    admin,
	dispatchv1connect.AccessServiceClaimOwnerProcedure:             anonymous,
	dispatchv1connect.AccessServiceCreateOwnerLinkProcedure:        admin,
	dispatchv1connect.AccessServiceWhoAmIProcedure:                 admin,
	dispatchv1connect.AccessServiceCreateUserProcedure:             admin,
	dispatchv1connect.AccessServiceListUsersProcedure:              admin,
	dispatchv1connect.AccessServiceSetUserRoleProcedure:            admin,
	dispatchv1connect.AccessServiceDeleteUserProcedure:             admin,
	dispatchv1connect.AccessServiceCreateKeyProcedure:              admin,
	dispatchv1connect.AccessServiceListKeysProcedure:               admin,
	dispatchv1connect.AccessServiceRevokeKeyProcedure:              admin,
	dispatchv1connect.HubServiceGetHubStatusProcedure:              admin,
	dispatchv1connect.HubServiceCreateBackupProcedure:              admin,
	dispatchv1connect.HubServiceBeginIntermediateRotationProcedure: admin,
	dispatchv1connect.HubServiceInstallIntermediateProcedure:       admin,
	dispatchv1connect.HubServiceRotateMeshKeyProcedure:             admin,
}

// checkClasses panics unless table classifies every procedure of files.
func checkClasses(table map[string]class, files ...protoreflect.FileDescriptor) {
	for _, f := range files {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				p := fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name())
				if table[p] == 0 {
					panic("rpc: procedure without a class: " + p)
				}
			}
		}
	}
}

// apiFiles are the files that declare services.
var apiFiles = []protoreflect.FileDescriptor{
	dispatchv1.File_bauxite_dispatch_v1_provisioning_proto,
	dispatchv1.File_bauxite_dispatch_v1_signaling_proto,
	dispatchv1.File_bauxite_dispatch_v1_topology_proto,
	dispatchv1.File_bauxite_dispatch_v1_policy_proto,
	dispatchv1.File_bauxite_dispatch_v1_relay_proto,
	dispatchv1.File_bauxite_dispatch_v1_metrics_proto,
	dispatchv1.File_bauxite_dispatch_v1_fleet_proto,
	dispatchv1.File_bauxite_dispatch_v1_audit_proto,
	dispatchv1.File_bauxite_dispatch_v1_access_proto,
	dispatchv1.File_bauxite_dispatch_v1_hub_proto,
}

// caller is who is at the other end of a connection, as the transport proved it.
type caller struct {
	class class
	id    identity.PeerID // zero unless class is node
	// unblock makes pending and later reads of the request fail.
	unblock func()
}

type callerKey struct{}

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// authorize is the only place where a call is let in.
func authorize(ctx context.Context, procedure string) error {
	want, have := classes[procedure], callerOf(ctx).class
	if want == 0 || have == 0 || want != anonymous && want != have {
		code := connect.CodePermissionDenied
		if have == anonymous && want == node {
			code = connect.CodeUnauthenticated
		}
		return fail(code, dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED, "this caller may not use "+procedure, "")
	}
	return nil
}

// gate applies authorize to every kind of call and knows the nodes' live streams.
type gate struct {
	admit func(ctx context.Context, id identity.PeerID) error

	mu   sync.Mutex // guards live
	live map[identity.PeerID]map[*context.CancelCauseFunc]struct{}
}

var errRevoked = errors.New("revoked")

// watch returns a context that cut ends, and a function to call in the end.
func (g *gate) watch(ctx context.Context, id identity.PeerID) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.live[id] == nil {
		g.live[id] = make(map[*context.CancelCauseFunc]struct{})
	}
	g.live[id][&cancel] = struct{}{}
	return ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if delete(g.live[id], &cancel); len(g.live[id]) == 0 {
			delete(g.live, id)
		}
		cancel(nil)
	}
}

// cut ends all streams of a node.
func (g *gate) cut(id identity.PeerID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for cancel := range g.live[id] {
		(*cancel)(errRevoked)
	}
}

func (g *gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := authorize(ctx, req.Spec().Procedure); err != nil {
			return nil, err
		}
		if c := callerOf(ctx); c.class == node {
			if err := g.admit(ctx, c.id); err != nil {
				return nil, err
			}
		}
		return next(ctx, req)
	}
}

func (g *gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (g *gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := authorize(ctx, conn.Spec().Procedure); err != nil {
			return err
		}
		if c := callerOf(ctx); c.class == node {
			var done func()
			ctx, done = g.watch(ctx, c.id)
			defer done()
			// After watch, so that a revocation falls into neither gap. The handshake
			// may lie far back: connections live for weeks.
			if err := g.admit(ctx, c.id); err != nil {
				return err
			}
		}
		return next(ctx, conn)
	}
}
