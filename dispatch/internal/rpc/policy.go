// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type policyService struct {
	*API
	dispatchv1connect.UnimplementedPolicyServiceHandler
}

func (p policyService) GetPolicy(ctx context.Context, req *dispatchv1.GetPolicyRequest) (*dispatchv1.GetPolicyResponse, error) {
	v, doc, err := p.store.Policy(ctx, req.GetVersion())
	if err != nil {
		return nil, wireError(ctx, p.log, "read policy", err)
	}
	return &dispatchv1.GetPolicyResponse{Version: v, Document: doc}, nil
}
