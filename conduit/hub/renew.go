// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// maxRenewal bounds the hub's answer, in bytes.
const maxRenewal = 64 << 10

// Why the hub gives a node no certificate. No retry mends any of them, but for
// ErrChallenge.
var (
	// ErrRevoked: an administrator revoked the node.
	ErrRevoked = errors.New("the hub has revoked this node")
	// ErrRecoveryExhausted: the node was away for too long too often.
	ErrRecoveryExhausted = errors.New("the hub allows this node no further recovery")
	// ErrCloneSuspected: the same identity was used in two places.
	ErrCloneSuspected = errors.New("the hub has locked this node: its identity seems to have been copied")
	// ErrRecoveryRefused: the hub does not know the node, or not with these keys.
	ErrRecoveryRefused = errors.New("the hub does not know this node with these keys")
	// ErrChallenge: the challenge was too old when it was answered.
	ErrChallenge = errors.New("the hub does not take its challenge back")
)

// provision runs f with a client on a connection of its own that shows cert; a cert
// without a certificate shows none. It gives up after 20 s.
func (c *Connector) provision(ctx context.Context, cert *tls.Certificate, meshID string, f func(context.Context, dispatchv1connect.ProvisioningServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timing.dial)
	defer cancel()
	tr := c.transport(cert, meshID)
	defer tr.CloseIdleConnections()
	hc := &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return reason(f(ctx, dispatchv1connect.NewProvisioningServiceClient(hc, c.url.String(), connect.WithReadMaxBytes(maxRenewal))))
}

// reason makes an error that callers branch on of what the hub attached to err.
func reason(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	for _, d := range ce.Details() {
		v, derr := d.Value()
		info, ok := v.(*dispatchv1.ErrorInfo)
		if derr != nil || !ok {
			continue
		}
		for r, is := range map[dispatchv1.ErrorReason]error{
			dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED:       ErrRevoked,
			dispatchv1.ErrorReason_ERROR_REASON_RECOVERY_EXHAUSTED: ErrRecoveryExhausted,
			dispatchv1.ErrorReason_ERROR_REASON_CLONE_SUSPECTED:    ErrCloneSuspected,
			dispatchv1.ErrorReason_ERROR_REASON_CHALLENGE_INVALID:  ErrChallenge,
			dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED: ErrRecoveryRefused,
		} {
			if info.GetReason() == r {
				return &refusal{is, err}
			}
		}
	}
	return err
}

// refusal says why in our words, since the hub's own say the same again.
type refusal struct{ is, err error }

func (r *refusal) Error() string   { return r.is.Error() }
func (r *refusal) Unwrap() []error { return []error{r.is, r.err} }

func parseChain(pem []byte) ([][]byte, error) {
	chain, err := identity.ParseChainPEM(pem)
	if err == nil && len(chain) == 0 {
		err = errors.New("answer holds no certificate")
	}
	return chain, err
}

// Renew asks the hub for a new certificate and returns the chain that it sent,
// leaf first, in DER. csr is a PKCS #10 request in DER, signed by the node's
// Ed25519 key. It opens a connection of its own, so it needs no Run, and gives up
// after 20 s. The caller verifies the chain and makes Config.Certificate return it.
func (c *Connector) Renew(ctx context.Context, csr []byte) (chain [][]byte, err error) {
	cert, id, err := c.own()
	if err != nil {
		return nil, err
	}
	err = c.provision(ctx, cert, id.MeshID, func(ctx context.Context, rpc dispatchv1connect.ProvisioningServiceClient) error {
		res, err := rpc.Renew(ctx, &dispatchv1.RenewRequest{Csr: csr})
		if err != nil {
			return err
		}
		chain, err = parseChain(res.GetNodeCrt())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	return chain, nil
}

// Rekey puts keys into the place of those of Config.Certificate, whose certificate
// is denied from then on, and returns the chain of the new certificate, leaf first,
// in DER, and the node's generation. Otherwise it is like Renew.
func (c *Connector) Rekey(ctx context.Context, keys *identity.Keys) (chain [][]byte, generation uint64, err error) {
	cert, id, err := c.own()
	if err != nil {
		return nil, 0, err
	}
	csr, err := keys.CSR()
	if err != nil {
		return nil, 0, err
	}
	err = c.provision(ctx, cert, id.MeshID, func(ctx context.Context, rpc dispatchv1connect.ProvisioningServiceClient) error {
		res, err := rpc.Rekey(ctx, &dispatchv1.RekeyRequest{Csr: csr, X25519PublicKey: keys.X25519.PublicKey().Bytes()})
		if err != nil {
			return err
		}
		generation = res.GetGeneration()
		chain, err = parseChain(res.GetNodeCrt())
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("replace keys: %w", err)
	}
	return chain, generation, nil
}

// Recovery is a node's claim to be itself after its certificate has expired.
type Recovery struct {
	Keys   *identity.Keys
	MeshID string
	// Generation is the newest that the node has stored.
	Generation uint64
	// Attempt is random and stored before it is sent, so that the same attempt, made
	// again because its answer was lost, is not taken for a copy of the node.
	Attempt [16]byte
}

// recoverDomain begins what the node signs.
const recoverDomain = "bauxite recover v1\x00"

// Recover asks for a certificate with the node's keys alone and returns its chain,
// leaf first, in DER, and the node's new generation. It opens a connection of its
// own that shows no certificate, and gives up after 20 s. The caller verifies the
// chain.
func (c *Connector) Recover(ctx context.Context, r Recovery) (chain [][]byte, generation uint64, err error) {
	id := r.Keys.ID().String()
	err = c.provision(ctx, &tls.Certificate{}, r.MeshID, func(ctx context.Context, rpc dispatchv1connect.ProvisioningServiceClient) error {
		begun, err := rpc.BeginRecovery(ctx, &dispatchv1.BeginRecoveryRequest{NodeId: id})
		if err != nil {
			return err
		}
		msg := append([]byte(recoverDomain), begun.GetChallenge()...)
		msg = binary.BigEndian.AppendUint64(msg, r.Generation)
		res, err := rpc.Recover(ctx, &dispatchv1.RecoverRequest{
			NodeId: id, Challenge: begun.GetChallenge(), Generation: r.Generation, RecoveryId: r.Attempt[:],
			Signature: ed25519.Sign(r.Keys.Ed25519, append(msg, r.Attempt[:]...)),
		})
		if err != nil {
			return err
		}
		generation = res.GetGeneration()
		chain, err = parseChain(res.GetNodeCrt())
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("recover: %w", err)
	}
	return chain, generation, nil
}

// Leave takes the node out of the mesh for good. It opens a connection of its own
// and gives up after 20 s.
func (c *Connector) Leave(ctx context.Context) error {
	cert, id, err := c.own()
	if err != nil {
		return err
	}
	err = c.provision(ctx, cert, id.MeshID, func(ctx context.Context, rpc dispatchv1connect.ProvisioningServiceClient) error {
		_, err := rpc.Leave(ctx, &dispatchv1.LeaveRequest{})
		return err
	})
	if err != nil {
		return fmt.Errorf("leave the mesh: %w", err)
	}
	return nil
}
