// SPDX-License-Identifier: Apache-2.0

package hubtest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/binary"
	"errors"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// life is what the hub knows of a node beside what others see.
type life struct {
	generation uint64
	attempt    []byte
	left       int // recoveries
	hubKey     bool
	refuse     dispatchv1.ErrorReason
}

// Refuse makes Recover answer with a reason for one node.
func (h *Hub) Refuse(id identity.PeerID, why dispatchv1.ErrorReason) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lifeLocked(id.String()).refuse = why
}

// Lose makes the hub do what it is asked for and lose the next n answers of Recover
// and Rekey.
func (h *Hub) Lose(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lose = n
}

// Generation returns a node's.
func (h *Hub) Generation(id identity.PeerID) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lifeLocked(id.String()).generation
}

func (h *Hub) lifeLocked(id string) *life {
	l := h.lives[id]
	if l == nil {
		l = &life{left: 3}
		h.lives[id] = l
	}
	return l
}

// lostLocked reports whether this answer is to be lost.
func (h *Hub) lostLocked() error {
	if h.lose == 0 {
		return nil
	}
	h.lose--
	return connect.NewError(connect.CodeUnavailable, errors.New("answer lost"))
}

func refuse(why dispatchv1.ErrorReason) error {
	e := connect.NewError(connect.CodePermissionDenied, errors.New("refused"))
	if d, err := connect.NewErrorDetail(&dispatchv1.ErrorInfo{Reason: why}); err == nil {
		e.AddDetail(d)
	}
	return e
}

// BeginRecovery implements ProvisioningService.
func (h *Hub) BeginRecovery(_ context.Context, req *dispatchv1.BeginRecoveryRequest) (*dispatchv1.BeginRecoveryResponse, error) {
	return &dispatchv1.BeginRecoveryResponse{Challenge: []byte("challenge for " + req.GetNodeId())}, nil
}

// Recover implements ProvisioningService.
func (h *Hub) Recover(ctx context.Context, req *dispatchv1.RecoverRequest) (*dispatchv1.RecoverResponse, error) {
	if _, err := callerID(ctx); err == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a node with a certificate renews it"))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	id := req.GetNodeId()
	p, l := h.nodes[id], h.lifeLocked(id)
	msg := append([]byte("bauxite recover v1\x00"), req.GetChallenge()...)
	msg = append(binary.BigEndian.AppendUint64(msg, req.GetGeneration()), req.GetRecoveryId()...)
	switch {
	case p == nil || !ed25519.Verify(p.GetEd25519PublicKey(), msg, req.GetSignature()):
		return nil, refuse(dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED)
	case string(req.GetChallenge()) != "challenge for "+id:
		return nil, refuse(dispatchv1.ErrorReason_ERROR_REASON_CHALLENGE_INVALID)
	case l.refuse != 0:
		return nil, refuse(l.refuse)
	case l.generation == req.GetGeneration()+1 && bytes.Equal(l.attempt, req.GetRecoveryId()):
	case l.generation != req.GetGeneration():
		l.refuse = dispatchv1.ErrorReason_ERROR_REASON_CLONE_SUSPECTED
		return nil, refuse(l.refuse)
	case l.left == 0:
		return nil, refuse(dispatchv1.ErrorReason_ERROR_REASON_RECOVERY_EXHAUSTED)
	default:
		l.left--
		l.generation++
		l.attempt = req.GetRecoveryId()
	}
	if err := h.lostLocked(); err != nil {
		return nil, err
	}
	chain, err := h.againLocked(p)
	if err != nil {
		return nil, err
	}
	return &dispatchv1.RecoverResponse{NodeCrt: chain, CaCrt: identity.MarshalChainPEM([][]byte{h.Root.Raw}), Generation: l.generation}, nil
}

// againLocked certifies a node anew.
func (h *Hub) againLocked(p *dispatchv1.Peer) ([]byte, error) {
	x, err := x25519(p.GetX25519PublicKey())
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	_, chain := h.enrollLocked(identity.Certificate{Name: p.GetName(), Ed25519: p.GetEd25519PublicKey(), X25519: x})
	return identity.MarshalChainPEM(chain), nil
}

// Rekey implements ProvisioningService.
func (h *Hub) Rekey(ctx context.Context, req *dispatchv1.RekeyRequest) (*dispatchv1.RekeyResponse, error) {
	caller, err := callerID(ctx)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("bad csr"))
	}
	ed, ok := csr.PublicKey.(ed25519.PublicKey)
	x, err := x25519(req.GetX25519PublicKey())
	if err != nil || !ok {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("bad keys"))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.nodes[caller]
	if p == nil { // its certificate is denied
		return nil, refuse(dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED)
	}
	id := identity.NewPeerID(ed, x.Bytes()).String()
	delete(h.nodes, caller)
	h.nodes[id] = &dispatchv1.Peer{
		NodeId: id, Name: p.GetName(), VirtualIp: p.GetVirtualIp(), VirtualIp6: p.GetVirtualIp6(),
		Ed25519PublicKey: ed, X25519PublicKey: x.Bytes(),
	}
	l := h.lifeLocked(id)
	l.generation = h.lifeLocked(caller).generation + 1
	h.changeLocked(&dispatchv1.Delta{Upserts: []*dispatchv1.Peer{h.nodes[id]}, Deletes: []string{caller}})
	if err := h.lostLocked(); err != nil {
		return nil, err
	}
	chain, err := h.againLocked(h.nodes[id])
	if err != nil {
		return nil, err
	}
	return &dispatchv1.RekeyResponse{NodeId: id, NodeCrt: chain, CaCrt: identity.MarshalChainPEM([][]byte{h.Root.Raw}), Generation: l.generation}, nil
}
