// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func hubOf(h *dispatchtest.Hub) dispatchv1connect.HubServiceClient {
	return dispatchv1connect.NewHubServiceClient(h.Admin(), "http://hub")
}

// backup returns the archive that the hub sends.
func backup(ctx context.Context, t *testing.T, h *dispatchtest.Hub, rootKey bool) []byte {
	t.Helper()
	st, err := hubOf(h).CreateBackup(ctx, &dispatchv1.CreateBackupRequest{WithRootKey: rootKey})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var b, sum []byte
	for st.Receive() {
		b = append(b, st.Msg().GetChunk()...)
		sum = append(sum, st.Msg().GetSha256()...)
	}
	if err := st.Err(); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:]) {
		t.Fatalf("digest = %x, want %x", sum, want)
	}
	return b
}

func names(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	out := make(map[string][]byte)
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRestore: a hub comes back from a backup; no node joins again, each of them
// learns all anew, and who was revoked after the backup stays out.
func TestRestore(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a, b, c := join(t, h, "a"), join(t, h, "b"), join(t, h, "c")
	if err := h.Revoke(ctx, b.id, "before"); err != nil {
		t.Fatal(err)
	}
	w := a.watch(ctx, nil)
	w.until("sync", func() bool { return w.epoch != 0 })
	epoch := w.epoch
	archive := backup(ctx, t, h, false)
	late := join(t, h, "late") // not in the backup
	if err := h.Revoke(ctx, c.id, "stolen after the backup"); err != nil {
		t.Fatal(err)
	}
	if _, err := hubOf(h).RotateMeshKey(ctx, &dispatchv1.RotateMeshKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	rotated, err := a.provisioning().GetMeshKey(ctx, &dispatchv1.GetMeshKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	h.Stop()
	res, err := dispatch.Restore(ctx, h.Dir(), bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	if res.Denials != 4 || res.Aside == "" {
		t.Errorf("restored = %+v, want 4 denials kept and the old files aside", res)
	}
	h.Start()
	// One that has recovered since the backup is ahead of it, and no copy.
	if rec, err := a.recover(ctx, h.Token(1), 5, nil, a.keys.Ed25519); err != nil || rec.GetGeneration() != 6 {
		t.Errorf("recovery with a later generation = %v, %v", rec, err)
	}
	w.denials = 0
	w = a.watch(ctx, w)
	w.until("new epoch", func() bool { return w.epoch != epoch })
	if w.chunks == 0 || w.denials != 4 {
		t.Errorf("%d chunks, %d denials; want a snapshot that shuts out both", w.chunks, w.denials)
	}
	a.signal(ctx)
	// Nodes hold the new mesh key already.
	if k, err := a.provisioning().GetMeshKey(ctx, &dispatchv1.GetMeshKeyRequest{}); err != nil ||
		k.GetPskEpoch() != 2 || !bytes.Equal(k.GetPsk(), rotated.GetPsk()) {
		t.Errorf("mesh key of epoch %d after the restore, %v; want the rotated one", k.GetPskEpoch(), err)
	}
	for name, m := range map[string]*machine{"revoked before": b, "revoked after": c, "joined after": late} {
		if _, err := m.renew(m.keys); err == nil {
			t.Errorf("%s: renews", name)
		}
	}
	token := h.Token(5)
	_, err = c.provision(token, "c")
	wantReason(t, "rejoin of a revoked node", err, dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED)
	_, err = c.recover(ctx, token, 0, nil, c.keys.Ed25519)
	wantReason(t, "recovery of a revoked node", err, dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED)
	if _, err := late.provision(token, "late"); err != nil {
		t.Errorf("what joined after the backup joins again: %v", err)
	}
	// The restore is on record, in a chain that goes on from the backup's.
	list, err := dispatchv1connect.NewAuditServiceClient(h.Admin(), "http://hub").
		ListAuditEntries(ctx, &dispatchv1.ListAuditEntriesRequest{Action: "hub.restore"})
	if err != nil || len(list.GetEntries()) != 1 {
		t.Errorf("audit entries of the restore = %v, %v", list, err)
	}
}

// TestRestoreElsewhere: a backup is all that a new machine needs.
func TestRestoreElsewhere(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a := join(t, h, "a")
	if _, err := hubOf(h).RotateMeshKey(ctx, &dispatchv1.RotateMeshKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	archive := backup(ctx, t, h, true)
	files := names(t, archive)
	if files["ca/root.key"] == nil || names(t, backup(ctx, t, h, false))["ca/root.key"] != nil {
		t.Error("the root's key is in a backup if and only if it was asked for")
	}
	addr := h.NodeAddr().String()
	h.Stop()
	dir := filepath.Join(t.TempDir(), "new")
	if _, err := dispatch.Restore(ctx, dir, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	n := dispatchtest.Start(t, func(c *dispatch.Config) { c.DataDir, c.Listen = dir, addr })
	a.hub = n
	key, err := a.provisioning().GetMeshKey(ctx, &dispatchv1.GetMeshKeyRequest{})
	if err != nil || key.GetPskEpoch() != 2 || len(key.GetPsk()) != 32 {
		t.Errorf("mesh key = epoch %d, %d bytes, %v", key.GetPskEpoch(), len(key.GetPsk()), err)
	}
	if _, err := a.renew(a.keys); err != nil {
		t.Errorf("renew: %v", err)
	}
}

// TestRestoreRefused: whatever is not a good backup leaves the hub as it was.
func TestRestoreRefused(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a := join(t, h, "a")
	good := backup(ctx, t, h, false)
	if _, err := dispatch.Restore(ctx, h.Dir(), bytes.NewReader(good)); !errors.Is(err, dispatch.ErrInUse) {
		t.Errorf("under a running hub = %v, want ErrInUse", err)
	}
	h.Stop()
	repack := func(change func(map[string][]byte)) []byte {
		files := names(t, good)
		change(files)
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for n, text := range files {
			if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o600, Size: int64(len(text))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(text); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, archive := range map[string][]byte{
		"empty":         {},
		"noise":         bytes.Repeat([]byte("x"), 4096),
		"cut":           good[:len(good)/2],
		"escapes":       repack(func(f map[string][]byte) { f["../evil"] = []byte("x") }),
		"unknown file":  repack(func(f map[string][]byte) { f["evil"] = []byte("x") }),
		"no database":   repack(func(f map[string][]byte) { delete(f, "dispatch.db") }),
		"bad database":  repack(func(f map[string][]byte) { f["dispatch.db"] = bytes.Repeat([]byte("x"), 8192) }),
		"newer schema":  repack(func(f map[string][]byte) { f["manifest.json"] = []byte(`{"format":1,"schema":999}`) }),
		"other format":  repack(func(f map[string][]byte) { f["manifest.json"] = []byte(`{"format":2}`) }),
		"no CA":         repack(func(f map[string][]byte) { delete(f, "ca/root.crt") }),
		"lost CA key":   repack(func(f map[string][]byte) { delete(f, "ca/intermediate.key") }),
		"other CA cert": repack(func(f map[string][]byte) { f["ca/intermediate.crt"] = f["ca/root.crt"] }),
	} {
		if _, err := dispatch.Restore(ctx, h.Dir(), bytes.NewReader(archive)); !errors.Is(err, dispatch.ErrBackup) {
			t.Errorf("%s = %v, want ErrBackup", name, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(h.Dir(), ".restore-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	h.Start()
	if _, err := a.renew(a.keys); err != nil {
		t.Errorf("renew after the refusals: %v", err)
	}
	h.Stop()
	// A restore that was cut off is not taken for a hub.
	if err := os.WriteFile(filepath.Join(h.Dir(), "restore.unfinished"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := dispatch.New(dispatch.Config{DataDir: h.Dir(), Listen: "127.0.0.1:0", AdminListen: dispatch.Off, STUNListen: dispatch.Off})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(ctx); !errors.Is(err, dispatch.ErrUnfinished) {
		t.Errorf("serve = %v, want ErrUnfinished", err)
	}
	// A database that cannot be read any more is no reason not to restore, but one
	// to say that its revocations are lost.
	if err := os.WriteFile(filepath.Join(h.Dir(), "dispatch.db"), bytes.Repeat([]byte("x"), 9000), 0o600); err != nil {
		t.Fatal(err)
	}
	if res, err := dispatch.Restore(ctx, h.Dir(), bytes.NewReader(good)); err != nil || res.DenialsErr == nil {
		t.Errorf("restore again = %+v, %v", res, err)
	}
}

// signIntermediate is what the person with the root's key does.
func signIntermediate(rootCrt, rootKey string, request []byte) ([]byte, error) {
	root, err := ca.ReadRoot(rootCrt)
	if err != nil {
		return nil, err
	}
	key, err := ca.ReadKey(rootKey)
	if err != nil {
		return nil, err
	}
	return ca.SignIntermediate(root, key, request, time.Now())
}

func TestRotateIntermediate(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a := join(t, h, "a")
	hub := hubOf(h)
	begin, err := hub.BeginIntermediateRotation(ctx, &dispatchv1.BeginIntermediateRotationRequest{})
	if err != nil {
		t.Fatal(err)
	}
	crt, err := signIntermediate(filepath.Join(h.Dir(), "ca", "root.crt"), filepath.Join(h.Dir(), "ca", "root.key"), begin.GetCsr())
	if err != nil {
		t.Fatal(err)
	}
	other := dispatchtest.Start(t)
	ob, err := hubOf(other).BeginIntermediateRotation(ctx, &dispatchv1.BeginIntermediateRotationRequest{})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := signIntermediate(filepath.Join(other.Dir(), "ca", "root.crt"), filepath.Join(other.Dir(), "ca", "root.key"), ob.GetCsr())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hub.InstallIntermediate(ctx, &dispatchv1.InstallIntermediateRequest{Certificate: foreign}); err == nil {
		t.Error("another mesh's intermediate is installed")
	}
	if _, err := hub.InstallIntermediate(ctx, &dispatchv1.InstallIntermediateRequest{Certificate: crt}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.Dir(), "ca", "intermediate.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old intermediate's key: %v, want it gone", err)
	}
	// The old certificate is good, what it renews to is of the new intermediate.
	res, err := a.renew(a.keys)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(parseCert(t, res.GetNodeCrt()).Chain[1], parseCert(t, a.res.GetNodeCrt()).Chain[1]) {
		t.Error("the renewed certificate is of the old intermediate")
	}
	h.Restart()
	a.useCert(h.Token(1), res.GetNodeCrt())
	a.signal(ctx)
	join(t, h, "b").signal(ctx)
}
