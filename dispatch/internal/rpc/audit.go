// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type auditService struct {
	*API
	dispatchv1connect.UnimplementedAuditServiceHandler
}

const (
	defaultAudit = 100
	maxAudit     = 1000
	// A checkpoint is signed after so many entries or so much time.
	checkpointEntries = 1000
	checkpointEvery   = time.Minute
)

func entryProto(e *audit.Entry) *dispatchv1.AuditEntry {
	return &dispatchv1.AuditEntry{
		Seq: e.Seq, Time: timestamppb.New(e.Time), Actor: e.Actor, Action: e.Action, Target: e.Target, Detail: e.Detail,
		Prev: e.Prev, Hash: e.Hash,
	}
}

func limit(n uint32, def, most int) int {
	if n == 0 {
		return def
	}
	return min(int(n), most)
}

func (s auditService) ListAuditEntries(ctx context.Context, req *dispatchv1.ListAuditEntriesRequest) (*dispatchv1.ListAuditEntriesResponse, error) {
	f := store.AuditFilter{
		After: req.GetAfter(), NewestFirst: req.GetNewestFirst(), Actor: req.GetActor(), Action: req.GetAction(),
		Target: req.GetTarget(), Limit: limit(req.GetLimit(), defaultAudit, maxAudit),
	}
	if req.GetSince() != nil {
		f.Since = req.GetSince().AsTime()
	}
	entries, err := s.store.Audit(ctx, f)
	if err != nil {
		return nil, wireError(ctx, s.log, "list audit entries", err)
	}
	res := &dispatchv1.ListAuditEntriesResponse{}
	for i := range entries {
		res.Entries = append(res.Entries, entryProto(&entries[i]))
	}
	return res, nil
}

func (s auditService) TailAuditEntries(ctx context.Context, req *dispatchv1.TailAuditEntriesRequest, stream *connect.ServerStream[dispatchv1.TailAuditEntriesResponse]) error {
	st, err := s.store.State(ctx)
	if err != nil {
		return wireError(ctx, s.log, "tail audit log", err)
	}
	after := st.AuditSeq - min(st.AuditSeq, uint64(min(req.GetLast(), maxAudit)))
	for {
		changed := s.store.AuditChanged()
		entries, err := s.store.Audit(ctx, store.AuditFilter{After: after, Limit: maxAudit})
		if err != nil {
			return wireError(ctx, s.log, "tail audit log", err)
		}
		for i := range entries {
			if err := stream.Send(&dispatchv1.TailAuditEntriesResponse{Entry: entryProto(&entries[i])}); err != nil {
				return err
			}
			after = entries[i].Seq
		}
		if len(entries) == maxAudit {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

func (s auditService) ListAuditCheckpoints(ctx context.Context, req *dispatchv1.ListAuditCheckpointsRequest) (*dispatchv1.ListAuditCheckpointsResponse, error) {
	signed, err := s.store.Checkpoints(ctx, limit(req.GetLimit(), defaultAudit, maxAudit))
	if err != nil {
		return nil, wireError(ctx, s.log, "list audit checkpoints", err)
	}
	res := &dispatchv1.ListAuditCheckpointsResponse{PublicKey: s.cfg.Audit.Public().(ed25519.PublicKey)}
	for _, b := range signed {
		c, err := audit.ParseCheckpoint(b)
		if err != nil {
			return nil, wireError(ctx, s.log, "list audit checkpoints", err)
		}
		res.Checkpoints = append(res.Checkpoints, &dispatchv1.AuditCheckpoint{
			Seq: c.Seq, Head: c.Head, Time: timestamppb.New(c.Time), Signed: b,
		})
	}
	return res, nil
}

// checkpoint returns the newest signed checkpoint; nil before the first.
func (a *API) checkpoint() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.head
}

// SignCheckpoints signs the head of the audit log whenever it has grown by many
// entries or some time has passed, until ctx ends. Each is stored, and goes out
// with the bookmarks, so that every node is a witness.
func (a *API) SignCheckpoints(ctx context.Context) error {
	var last uint64
	if old, err := a.store.Checkpoints(ctx, 1); err == nil && len(old) == 1 {
		if c, err := audit.ParseCheckpoint(old[0]); err == nil && c.Epoch == a.store.Meta().Epoch {
			last = c.Seq
			a.setHead(old[0])
		}
	}
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	for due := true; ; {
		changed := a.store.AuditChanged()
		st, err := a.store.State(ctx)
		if err == nil && (due && st.AuditSeq > last || st.AuditSeq >= last+checkpointEntries) {
			if err = a.sign(ctx, st); err == nil {
				last = st.AuditSeq
			}
		}
		if err != nil && ctx.Err() == nil {
			a.log.ErrorContext(ctx, "sign audit checkpoint", "err", err)
		}
		select {
		case <-changed:
			due = false
		case <-tick.C:
			due = true
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *API) setHead(signed []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.head = signed
}

func (a *API) sign(ctx context.Context, st store.State) error {
	c := audit.Checkpoint{Epoch: a.store.Meta().Epoch, Seq: st.AuditSeq, Time: time.Now(), Head: st.AuditHead}
	signed := c.Sign(a.cfg.Audit)
	if err := a.store.SaveCheckpoint(ctx, c, signed); err != nil {
		return err
	}
	a.setHead(signed)
	return nil
}

// witness compares a checkpoint that a node has kept with the log. A log that is
// shorter, or other, than what this hub's own key has signed was tampered with or
// comes from a backup that nobody declared.
func (a *API) witness(ctx context.Context, id identity.PeerID, signed []byte) {
	if len(signed) == 0 {
		return
	}
	if err := a.testify(ctx, signed); err != nil {
		a.log.ErrorContext(ctx, "audit log contradicts a node's checkpoint", "node", id.Short(), "err", err)
	}
}

func (a *API) testify(ctx context.Context, signed []byte) error {
	c, err := audit.VerifyCheckpoint(signed, a.cfg.Audit.Public().(ed25519.PublicKey))
	if errors.Is(err, audit.ErrSignature) || err != nil {
		return nil // not ours: the node may have belonged to another mesh
	}
	if c.Epoch != a.store.Meta().Epoch || c.Seq == 0 {
		return nil
	}
	entries, err := a.store.Audit(ctx, store.AuditFilter{After: c.Seq - 1, Limit: 1})
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return fmt.Errorf("%w: entry %d is missing", audit.ErrTruncated, c.Seq)
	}
	if string(entries[0].Hash) != string(c.Head) {
		return fmt.Errorf("%w: entry %d is another", audit.ErrBroken, c.Seq)
	}
	return nil
}
