// SPDX-License-Identifier: Apache-2.0

package hubtest

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Renew implements the hub's API: a new certificate for the calling node.
func (h *Hub) Renew(ctx context.Context, req *dispatchv1.RenewRequest) (*dispatchv1.RenewResponse, error) {
	id, err := callerID(ctx)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("bad csr"))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.nodes[id]
	if p == nil {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("no such node"))
	}
	if ed, ok := csr.PublicKey.(ed25519.PublicKey); !ok || !ed.Equal(ed25519.PublicKey(p.GetEd25519PublicKey())) {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("key is another node's"))
	}
	chain, err := h.againLocked(p)
	if err != nil {
		return nil, err
	}
	return &dispatchv1.RenewResponse{
		NodeCrt: chain, CaCrt: identity.MarshalChainPEM([][]byte{h.Root.Raw}),
	}, nil
}
