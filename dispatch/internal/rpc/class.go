// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// class is what a caller is, and what a procedure asks for.
type class uint8

const (
	anonymous class = iota + 1 // anybody who reaches the node port
	visitor                    // anybody who reaches the admin port
	node                       // the bearer of a node certificate
	user                       // the bearer of an API key
	socket                     // whoever may open the unix socket
)

// rule is who may call a procedure.
type rule struct {
	class class
	// permission is what a user needs, besides being one; may be empty.
	permission authz.Permission
	// serverKey also lets in a node whose key the hub has made.
	serverKey bool
}

// classes names every procedure of the API. One that is missing here is refused,
// and the hub does not start.
var classes = map[string]rule{
	dispatchv1connect.ProvisioningServiceProvisionProcedure:        {class: anonymous},
	dispatchv1connect.ProvisioningServiceRenewProcedure:            {class: node},
	dispatchv1connect.ProvisioningServiceRekeyProcedure:            {class: node, serverKey: true},
	dispatchv1connect.ProvisioningServiceBeginRecoveryProcedure:    {class: anonymous},
	dispatchv1connect.ProvisioningServiceRecoverProcedure:          {class: anonymous},
	dispatchv1connect.ProvisioningServiceGetMeshKeyProcedure:       {class: node},
	dispatchv1connect.ProvisioningServiceLeaveProcedure:            {class: node},
	dispatchv1connect.SignalingServiceExchangeCandidatesProcedure:  {class: node},
	dispatchv1connect.TopologyServiceWatchTopologyProcedure:        {class: node},
	dispatchv1connect.TopologyServiceResolvePeerProcedure:          {class: node},
	dispatchv1connect.RelayServiceRelayProcedure:                   {class: node},
	dispatchv1connect.RelayServiceGetTurnCredentialsProcedure:      {class: node},
	dispatchv1connect.MetricsServiceReportMetricsProcedure:         {class: node},
	dispatchv1connect.MetricsServiceGetNodeMetricsProcedure:        {class: user, permission: authz.MetricsRead},
	dispatchv1connect.MetricsServiceGetFleetMetricsProcedure:       {class: user, permission: authz.MetricsRead},
	dispatchv1connect.PolicyServiceGetPolicyProcedure:              {class: node},
	dispatchv1connect.PolicyServiceListPoliciesProcedure:           {class: user, permission: authz.PolicyRead},
	dispatchv1connect.PolicyServiceReadPolicyProcedure:             {class: user, permission: authz.PolicyRead},
	dispatchv1connect.PolicyServiceTestPolicyProcedure:             {class: user, permission: authz.PolicyRead},
	dispatchv1connect.PolicyServiceProposePolicyProcedure:          {class: user, permission: authz.PolicyWrite},
	dispatchv1connect.PolicyServiceActivatePolicyProcedure:         {class: user, permission: authz.PolicyWrite},
	dispatchv1connect.PolicyServiceRollbackPolicyProcedure:         {class: user, permission: authz.PolicyWrite},
	dispatchv1connect.PolicyServiceGetActivationProcedure:          {class: user, permission: authz.PolicyRead},
	dispatchv1connect.PolicyServiceDiffPoliciesProcedure:           {class: user, permission: authz.PolicyRead},
	dispatchv1connect.PolicyServiceExplainPolicyProcedure:          {class: user, permission: authz.PolicyRead},
	dispatchv1connect.FleetServiceCreateTokenProcedure:             {class: user, permission: authz.TokensWrite},
	dispatchv1connect.FleetServiceListTokensProcedure:              {class: user, permission: authz.TokensRead},
	dispatchv1connect.FleetServiceRevokeTokenProcedure:             {class: user, permission: authz.TokensWrite},
	dispatchv1connect.FleetServiceListNodesProcedure:               {class: user, permission: authz.NodesRead},
	dispatchv1connect.FleetServiceGetNodeProcedure:                 {class: user, permission: authz.NodesRead},
	dispatchv1connect.FleetServiceApproveNodeProcedure:             {class: user, permission: authz.NodesWrite},
	dispatchv1connect.FleetServiceRevokeNodeProcedure:              {class: user, permission: authz.NodesWrite},
	dispatchv1connect.FleetServiceDeleteNodeProcedure:              {class: user, permission: authz.NodesWrite},
	dispatchv1connect.FleetServiceUpdateNodeProcedure:              {class: user, permission: authz.NodesWrite},
	dispatchv1connect.FleetServiceWatchFleetProcedure:              {class: user, permission: authz.NodesRead},
	dispatchv1connect.AuditServiceListAuditEntriesProcedure:        {class: user, permission: authz.AuditRead},
	dispatchv1connect.AuditServiceTailAuditEntriesProcedure:        {class: user, permission: authz.AuditRead},
	dispatchv1connect.AuditServiceListAuditCheckpointsProcedure:    {class: user, permission: authz.AuditRead},
	dispatchv1connect.AccessServiceClaimOwnerProcedure:             {class: visitor},
	dispatchv1connect.AccessServiceCreateOwnerLinkProcedure:        {class: socket},
	dispatchv1connect.AccessServiceWhoAmIProcedure:                 {class: user},
	dispatchv1connect.AccessServiceCreateUserProcedure:             {class: user, permission: authz.UsersWrite},
	dispatchv1connect.AccessServiceListUsersProcedure:              {class: user, permission: authz.UsersRead},
	dispatchv1connect.AccessServiceSetUserRoleProcedure:            {class: user, permission: authz.UsersWrite},
	dispatchv1connect.AccessServiceDeleteUserProcedure:             {class: user, permission: authz.UsersWrite},
	dispatchv1connect.AccessServiceCreateKeyProcedure:              {class: user, permission: authz.KeysWrite},
	dispatchv1connect.AccessServiceListKeysProcedure:               {class: user, permission: authz.KeysRead},
	dispatchv1connect.AccessServiceRevokeKeyProcedure:              {class: user, permission: authz.KeysWrite},
	dispatchv1connect.HubServiceGetHubStatusProcedure:              {class: user, permission: authz.HubRead},
	dispatchv1connect.HubServiceCreateBackupProcedure:              {class: user, permission: authz.BackupsWrite},
	dispatchv1connect.HubServiceBeginIntermediateRotationProcedure: {class: user, permission: authz.HubWrite},
	dispatchv1connect.HubServiceInstallIntermediateProcedure:       {class: user, permission: authz.HubWrite},
	dispatchv1connect.HubServiceRotateMeshKeyProcedure:             {class: user, permission: authz.HubWrite},
}

// checkClasses panics unless table classifies every procedure of files.
func checkClasses(table map[string]rule, files ...protoreflect.FileDescriptor) {
	for _, f := range files {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				p := fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name())
				if table[p].class == 0 {
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
	// ip is where the caller comes from; invalid on the socket.
	ip netip.Addr

	// Of a node:
	id       identity.PeerID
	standing store.Standing // set by the gate
	serial   []byte         // of its certificate
	// unblock makes pending and later reads of the request fail. Where the caller
	// streams only.
	unblock func()
	// hold keeps what is sent in the response's buffer, as far as it fits, until the
	// first message after it was called with false. The sender alone calls it.
	hold func(bool)

	// Of all that came through a listener:
	// cut makes pending and later writes fail, and resets the stream.
	cut func()
	// whole takes the deadline for the request's one message away; nil where the
	// caller streams.
	whole func()

	// Of a user:
	user    string
	key     string
	role    authz.Role
	scopes  []authz.Permission
	expires time.Time // of the key
}

// actor is what the audit log calls c; empty where nobody is known.
func (c *caller) actor() string {
	switch c.class {
	case node:
		return "node:" + c.id.String()
	case user:
		return "user:" + c.user + "/" + c.key
	case socket:
		return "socket"
	case anonymous, visitor:
	}
	return ""
}

// can reports whether c has a permission of users.
func (c *caller) can(p authz.Permission) bool {
	return c.class == socket || c.class == user && authz.Allowed(c.role, c.scopes, p)
}

type callerKey struct{}

func withCaller(ctx context.Context, c *caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns who calls; nobody may change it. It is a pointer because a caller
// is large, and what lies in the frames of a stream's handler makes its stack twice
// as large for as long as the stream lives.
func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{}
}

// authorize is the only place where a call is let in. What is not allowed here is
// denied.
func authorize(c *caller, procedure string) error {
	r, known := classes[procedure]
	allowed := false
	switch r.class {
	case anonymous:
		allowed = c.class == anonymous || c.class == node
	case visitor:
		allowed = c.class == visitor || c.class == user || c.class == socket
	case node:
		if c.class == node && c.standing.ServerKey && !r.serverKey {
			return fail(connect.CodePermissionDenied, dispatchv1.ErrorReason_ERROR_REASON_REKEY_REQUIRED,
				store.ErrRekey.Error(), "the node calls Rekey by itself: let it run a current version")
		}
		allowed = c.class == node
	case user:
		if c.class == user && r.permission != "" && !c.can(r.permission) {
			return fail(connect.CodePermissionDenied, dispatchv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED,
				fmt.Sprintf("this needs the permission %s, which %s with the role %s has not", r.permission, c.user, c.role),
				"ask an owner for another role, or use a key without the scopes of this one")
		}
		allowed = c.class == user || c.class == socket
	case socket:
		allowed = c.class == socket
	}
	if known && allowed {
		return nil
	}
	code, hint := connect.CodePermissionDenied, ""
	switch {
	case c.class == anonymous && r.class == node:
		code = connect.CodeUnauthenticated
	case c.class == visitor && r.class == user:
		code, hint = connect.CodeUnauthenticated, "send an API key"
	case r.class == socket:
		hint = "this works only on the hub's machine, through the socket in its data directory"
	}
	return fail(code, dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED, "this caller may not use "+procedure, hint)
}
