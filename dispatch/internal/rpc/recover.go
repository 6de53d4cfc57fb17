// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	recoverDomain = "bauxite recover v1\x00"
	// challengeLife is how long a node has to answer.
	challengeLife = time.Minute
	challengeLen  = 8 + 16 + sha256.Size
	attemptLen    = 16
	// maxGeneration bounds what a node may claim: the database counts in 63 bits, and
	// a number beyond them would stand for any.
	maxGeneration = 1 << 62
)

// challenger makes challenges that it can recognise without keeping them: a
// stranger who asks for millions costs no memory. They end with the process.
type challenger struct {
	once sync.Once
	key  [32]byte
}

func (c *challenger) mac(id identity.PeerID, head []byte) []byte {
	c.once.Do(func() { _, _ = rand.Read(c.key[:]) }) // crypto/rand does not fail
	m := hmac.New(sha256.New, c.key[:])
	m.Write(id[:])
	m.Write(head)
	return m.Sum(nil)
}

// make returns Unix seconds, a nonce, and the authenticator of both and the node.
func (c *challenger) make(id identity.PeerID, now time.Time) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, challengeLen), uint64(now.Unix()))
	b = b[:24]
	_, _ = rand.Read(b[8:])
	return append(b, c.mac(id, b)...)
}

func (c *challenger) valid(id identity.PeerID, b []byte, now time.Time) bool {
	if len(b) != challengeLen || !hmac.Equal(b[24:], c.mac(id, b[:24])) {
		return false
	}
	age := now.Sub(time.Unix(int64(binary.BigEndian.Uint64(b)), 0))
	return age > -challengeLife && age < challengeLife
}

// BeginRecovery returns a challenge, to whomever asks and for whatever node.
func (p provisioning) BeginRecovery(_ context.Context, req *dispatchv1.BeginRecoveryRequest) (*dispatchv1.BeginRecoveryResponse, error) {
	id, err := identity.ParsePeerID(req.GetNodeId())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("node_id: "+err.Error()))
	}
	return &dispatchv1.BeginRecoveryResponse{Challenge: p.challenges.make(id, time.Now())}, nil
}

// recoverMessage is what the node signs.
func recoverMessage(req *dispatchv1.RecoverRequest) []byte {
	b := append([]byte(recoverDomain), req.GetChallenge()...)
	b = binary.BigEndian.AppendUint64(b, req.GetGeneration())
	return append(b, req.GetRecoveryId()...)
}

// Recover issues a certificate to a node that proves its enrolled key. Nothing is
// told to a caller who does not: not even whether the node exists.
func (p provisioning) Recover(ctx context.Context, req *dispatchv1.RecoverRequest) (*dispatchv1.RecoverResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	now := time.Now()
	id, err := identity.ParsePeerID(req.GetNodeId())
	if err != nil || len(req.GetRecoveryId()) != attemptLen {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("node_id or recovery_id is malformed"))
	}
	if req.GetGeneration() >= maxGeneration {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("generation is out of range"))
	}
	if !p.challenges.valid(id, req.GetChallenge(), now) {
		return nil, fail(connect.CodeFailedPrecondition, dispatchv1.ErrorReason_ERROR_REASON_CHALLENGE_INVALID,
			"challenge is too old or not this hub's", "begin the recovery anew")
	}
	ip := callerOf(ctx).ip
	if err := p.keys.mayTry(ip); err != nil {
		return nil, err
	}
	n, err := p.store.NodeByID(ctx, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, wireError(ctx, p.log, "recover", err)
	}
	key := n.Ed25519
	if len(key) != ed25519.PublicKeySize {
		key = make([]byte, ed25519.PublicKeySize)
	}
	if !ed25519.Verify(key, recoverMessage(req), req.GetSignature()) || err != nil {
		p.keys.failed(ip)
		return nil, fail(connect.CodePermissionDenied, dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED,
			"recovery refused", "the node is unknown to this hub, or signs with other keys than it joined with")
	}
	if !p.renewals.allow(id, now) {
		return nil, tooMany()
	}
	c, err := p.issue(now)
	if err != nil {
		return nil, wireError(ctx, p.log, "recover", err)
	}
	actor := "node:" + id.String()
	n, err = p.store.Recover(store.WithActor(ctx, actor), store.Recovery{
		ID: id, Generation: req.GetGeneration(), Attempt: bytes.Clone(req.GetRecoveryId()),
	}, c)
	if err != nil {
		if errors.Is(err, store.ErrNodeLocked) {
			p.dropped(id)
			p.log.WarnContext(ctx, "node is locked: its identity may have been copied", "node", id.Short(), "name", n.Name)
		}
		return nil, wireError(ctx, p.log, "recover", err)
	}
	crt, err := p.cfg.CA.IssueNode(n, c.Serial, now, c.NotAfter)
	if err != nil {
		return nil, wireError(ctx, p.log, "recover", err)
	}
	p.log.InfoContext(ctx, "node recovered", "node", id.Short(), "name", n.Name, "generation", n.Generation)
	return &dispatchv1.RecoverResponse{NodeCrt: crt, CaCrt: p.cfg.CA.RootPEM(), Generation: n.Generation}, nil
}
