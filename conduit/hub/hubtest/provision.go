// SPDX-License-Identifier: Apache-2.0

package hubtest

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// SetPending makes joins wait for approval while it is on. The token is used.
func (h *Hub) SetPending(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pending = on
}

// Provision implements ProvisioningService.
func (h *Hub) Provision(_ context.Context, req *dispatchv1.ProvisionRequest) (*dispatchv1.ProvisionResponse, error) {
	invalid := dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID
	x, err := x25519(req.GetX25519PublicKey())
	if err != nil {
		return nil, refuse(invalid)
	}
	var ed ed25519.PublicKey
	var key []byte
	who := string(req.GetCsr())
	if req.GetGenerateKey() {
		pub, private := newKey(h.tb)
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, err
		}
		ed, key = pub, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		who = string(x.Bytes())
	} else {
		csr, err := x509.ParseCertificateRequest(req.GetCsr())
		if err != nil || csr.CheckSignature() != nil {
			return nil, refuse(invalid)
		}
		var ok bool
		if ed, ok = csr.PublicKey.(ed25519.PublicKey); !ok {
			return nil, refuse(invalid)
		}
	}
	sent, err := identity.ParseToken(req.GetToken())
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tokens[sent.ID]
	switch {
	case err != nil || t == nil || t.Secret != sent.Secret:
		return nil, refuse(dispatchv1.ErrorReason_ERROR_REASON_TOKEN_INVALID)
	case t.nodes[who] != nil && key == nil:
		return t.nodes[who], nil
	case t.nodes[who] != nil || t.waiting[who]:
	case time.Now().After(t.expires):
		return nil, refuse(dispatchv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED)
	case len(t.nodes)+len(t.waiting) >= t.uses:
		return nil, refuse(dispatchv1.ErrorReason_ERROR_REASON_TOKEN_USED_UP)
	}
	if h.pending {
		t.waiting[who] = true
		e := connect.NewError(connect.CodeFailedPrecondition, errors.New("node waits for approval"))
		if d, err := connect.NewErrorDetail(&dispatchv1.ErrorInfo{Reason: dispatchv1.ErrorReason_ERROR_REASON_APPROVAL_PENDING, Retryable: true, RetryAfterMs: 10}); err == nil {
			e.AddDetail(d)
		}
		return nil, e
	}
	delete(t.waiting, who)
	name := req.GetName()
	if name == "" {
		name = fmt.Sprintf("node%d", len(h.nodes)+1)
	}
	if was := t.nodes[who]; was != nil { // with the key that the hub makes this time
		delete(h.nodes, was.GetNodeId())
		name = was.GetName()
	} else {
		h.redeemed++
	}
	p, chain := h.enrollLocked(identity.Certificate{Name: name, Ed25519: ed, X25519: x})
	l := h.lifeLocked(p.GetNodeId())
	l.hubKey = key != nil
	res := &dispatchv1.ProvisionResponse{
		NodeId: p.GetNodeId(), Name: name, CaCrt: identity.MarshalChainPEM([][]byte{h.Root.Raw}), NodeCrt: identity.MarshalChainPEM(chain),
		VirtualIp: p.GetVirtualIp(), VirtualIp6: p.GetVirtualIp6(), MeshCidr: "10.66.0.0/16", MeshCidr6: "fd66::/64",
		MeshId: h.MeshID, Psk: h.psk, PskEpoch: h.pskEpoch, NodeKey: key, Generation: l.generation,
	}
	if h.tamper != nil {
		h.tamper(res)
	}
	t.nodes[who] = res
	return res, nil
}
