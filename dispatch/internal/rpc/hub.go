// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type hubService struct {
	*API
	dispatchv1connect.UnimplementedHubServiceHandler
}

func (h hubService) GetHubStatus(ctx context.Context, _ *dispatchv1.GetHubStatusRequest) (*dispatchv1.GetHubStatusResponse, error) {
	st, err := h.store.State(ctx)
	if err != nil {
		return nil, wireError(ctx, h.log, "hub status", err)
	}
	n, err := h.store.CountNodes(ctx)
	if err != nil {
		return nil, wireError(ctx, h.log, "hub status", err)
	}
	v, _, err := h.store.Policy(ctx, 0)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, wireError(ctx, h.log, "hub status", err)
	}
	m := h.store.Meta()
	_, epoch := h.cfg.MeshKey()
	res := &dispatchv1.GetHubStatusResponse{
		Version: h.cfg.Version, Url: h.cfg.URL(), MeshId: m.MeshID, MeshCidr: m.CIDR.String(), MeshCidr6: m.CIDR6.String(),
		Epoch: m.Epoch, Rv: st.RV, Nodes: uint32(n[store.Active]), Pending: uint32(n[store.Pending]),
		Online: uint32(h.cfg.Registry.Count()), AuditSeq: st.AuditSeq, PolicyVersion: v, PskEpoch: epoch,
		Started: timestamppb.New(h.started), IntermediateExpires: timestamppb.New(h.cfg.CA.Intermediate().NotAfter),
		RootKeyPresent: h.cfg.CA.RootKeyPresent(), SchemaVersion: store.SchemaVersion(),
	}
	file, wal := h.store.Size()
	res.DatabaseBytes = uint64(file + wal)
	return res, nil
}

// backupChunk is how many bytes of the archive go into one message.
const backupChunk = 256 << 10

func (h hubService) CreateBackup(ctx context.Context, req *dispatchv1.CreateBackupRequest, stream *connect.ServerStream[dispatchv1.CreateBackupResponse]) error {
	// Before it begins: what leaves the hub is on record even if the caller hangs up.
	with := ""
	if req.GetWithRootKey() {
		with = "yes"
	}
	if err := h.store.Note(ctx, "hub.backup", "", "root_key", with); err != nil {
		return wireError(ctx, h.log, "back up", err)
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(writerFunc(func(b []byte) (int, error) {
		sum.Write(b)
		return len(b), stream.Send(&dispatchv1.CreateBackupResponse{Chunk: b})
	}), backupChunk)
	err := h.cfg.Backup(ctx, out, req.GetWithRootKey())
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return wireError(ctx, h.log, "back up", err)
	}
	h.log.InfoContext(ctx, "backup sent", "by", store.ActorOf(ctx))
	return stream.Send(&dispatchv1.CreateBackupResponse{Sha256: sum.Sum(nil)})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

var _ io.Writer = writerFunc(nil)

func (h hubService) BeginIntermediateRotation(ctx context.Context, _ *dispatchv1.BeginIntermediateRotationRequest) (*dispatchv1.BeginIntermediateRotationResponse, error) {
	csr, err := h.cfg.CA.BeginRotation()
	if err != nil {
		return nil, wireError(ctx, h.log, "rotate intermediate", err)
	}
	if err := h.store.Note(ctx, "ca.begin-rotation", ""); err != nil {
		return nil, wireError(ctx, h.log, "rotate intermediate", err)
	}
	return &dispatchv1.BeginIntermediateRotationResponse{Csr: csr}, nil
}

func (h hubService) InstallIntermediate(ctx context.Context, req *dispatchv1.InstallIntermediateRequest) (*dispatchv1.InstallIntermediateResponse, error) {
	cert, err := h.cfg.CA.CheckIntermediate(req.GetCertificate())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if err := h.store.Note(ctx, "ca.rotate", cert.SerialNumber.Text(16), "expires", cert.NotAfter.UTC().Format("2006-01-02")); err != nil {
		return nil, wireError(ctx, h.log, "rotate intermediate", err)
	}
	if err := h.cfg.CA.Install(cert); err != nil {
		return nil, wireError(ctx, h.log, "rotate intermediate", err)
	}
	h.log.InfoContext(ctx, "intermediate rotated", "expires", cert.NotAfter, "by", store.ActorOf(ctx))
	return &dispatchv1.InstallIntermediateResponse{Expires: timestamppb.New(cert.NotAfter)}, nil
}

func (h hubService) RotateMeshKey(ctx context.Context, _ *dispatchv1.RotateMeshKeyRequest) (*dispatchv1.RotateMeshKeyResponse, error) {
	if h.cfg.RotateMeshKey == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the operator keeps the mesh key: rotate it where it is kept"))
	}
	epoch, err := h.cfg.RotateMeshKey(ctx)
	if err != nil {
		return nil, wireError(ctx, h.log, "rotate mesh key", err)
	}
	h.log.InfoContext(ctx, "mesh key rotated", "psk_epoch", epoch, "by", store.ActorOf(ctx))
	return &dispatchv1.RotateMeshKeyResponse{PskEpoch: epoch}, nil
}
