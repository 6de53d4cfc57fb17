// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// copyFiles copies files and directories of one directory into another.
func copyFiles(t *testing.T, from, to string, names ...string) {
	t.Helper()
	for _, n := range names {
		err := filepath.WalkDir(filepath.Join(from, n), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, p)
			if err != nil {
				return err
			}
			if d.IsDir() {
				return os.MkdirAll(filepath.Join(to, rel), 0o700)
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o700); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(to, rel), b, 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRestoreInterrupted: wherever a restore was cut off, the next one knows who was
// revoked and which mesh key the nodes hold.
func TestRestoreInterrupted(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a := join(t, h, "stolen")
	archive := backup(ctx, t, h, false)
	if err := h.Revoke(ctx, a.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := hubOf(h).RotateMeshKey(ctx, &dispatchv1.RotateMeshKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	// As a killed hub leaves it, with its newest changes in the log.
	killed := t.TempDir()
	old := []string{"audit.key", "ca", "dispatch.db", "dispatch.db-wal", "psk", "psk.2"}
	copyFiles(t, h.Dir(), killed, old...)
	h.Stop()
	// What a restore puts into the directory.
	restored := t.TempDir()
	copyFiles(t, killed, restored, old...)
	if res, err := dispatch.Restore(ctx, restored, bytes.NewReader(archive)); err != nil || res.DenialsErr != nil || res.Denials != 2 {
		t.Fatalf("restore = %+v, %v", res, err)
	}
	const first, second = "before-restore-20260101T000000", "before-restore-20260101T000009"
	for name, c := range map[string]struct {
		mark                  string
		moved, fresh, freshIn []string // of the old files into first; of the new ones into the directory or second
		lost                  bool
	}{
		"nothing moved":           {mark: first},
		"keys moved":              {mark: first, moved: old[:2]},
		"database without log":    {mark: first, moved: old[:3]},
		"mesh keys not moved":     {mark: first, moved: old[:4]},
		"all moved":               {mark: first, moved: old},
		"some are new":            {mark: first, moved: old, fresh: []string{"audit.key", "ca"}},
		"database is new":         {mark: first, moved: old, fresh: []string{"audit.key", "ca", "dispatch.db"}},
		"all are new":             {mark: first, moved: old, fresh: []string{"audit.key", "ca", "dispatch.db", "psk", "psk.2"}},
		"twice":                   {mark: first + "\n" + second, moved: old, freshIn: []string{"audit.key", "ca"}},
		"twice, database is new":  {mark: first + "\n" + second, moved: old, freshIn: []string{"audit.key", "ca", "dispatch.db"}},
		"by an earlier version":   {mark: ".restore-123", moved: old},
		"and what was moved lost": {mark: first, moved: old, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			copyFiles(t, killed, dir, slices.DeleteFunc(slices.Clone(old), func(n string) bool { return slices.Contains(c.moved, n) })...)
			copyFiles(t, killed, filepath.Join(dir, first), c.moved...)
			copyFiles(t, restored, dir, c.fresh...)
			copyFiles(t, restored, filepath.Join(dir, second), c.freshIn...)
			if c.lost {
				if err := os.RemoveAll(filepath.Join(dir, first)); err != nil {
					t.Fatal(err)
				}
			}
			mark := filepath.Join(dir, "restore.unfinished")
			if err := os.WriteFile(mark, []byte(c.mark+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			res, err := dispatch.Restore(ctx, dir, bytes.NewReader(archive))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(mark); err == nil {
				t.Error("the mark is left")
			}
			if c.lost {
				if res.DenialsErr == nil {
					t.Error("nothing says that the revocations are lost")
				}
				return
			}
			if res.Denials != 2 || res.DenialsErr != nil {
				t.Errorf("%d denials kept, %v; want 2", res.Denials, res.DenialsErr)
			}
			for _, n := range []string{filepath.Join(dir, "psk.2"), filepath.Join(res.Aside, "psk.2")} {
				got, err := os.ReadFile(n)
				want, _ := os.ReadFile(filepath.Join(killed, "psk.2"))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %v, or another mesh key", n, err)
				}
			}
			if res.Aside != filepath.Join(dir, first) && !strings.HasPrefix(name, "nothing") {
				t.Errorf("aside = %s, want that of the first run", res.Aside)
			}
			for _, n := range old {
				if _, err := os.Stat(filepath.Join(res.Aside, n)); err != nil {
					t.Errorf("what was there before: %v", err)
				}
			}
		})
	}
}

// TestRestoreOtherMesh: a backup put in the place of another mesh takes over neither
// its revocations nor its key.
func TestRestoreOtherMesh(t *testing.T) {
	h, other, ctx := dispatchtest.Start(t), dispatchtest.Start(t), testContext(t)
	archive := backup(ctx, t, h, false)
	a := join(t, other, "a")
	if err := other.Revoke(ctx, a.id, "there"); err != nil {
		t.Fatal(err)
	}
	if _, err := hubOf(other).RotateMeshKey(ctx, &dispatchv1.RotateMeshKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	other.Stop()
	res, err := dispatch.Restore(ctx, other.Dir(), bytes.NewReader(archive))
	if err != nil || res.Denials != 0 || res.DenialsErr != nil {
		t.Errorf("restore = %+v, %v; want no denials", res, err)
	}
	if _, err := os.Stat(filepath.Join(other.Dir(), "psk.2")); err == nil {
		t.Error("the other mesh's key is taken over")
	}
	other.Start()
	join(t, other, "b")
}

// TestBackupStrayFiles: what else lies in the data directory does not spoil a
// backup, whatever that is called, and the keys that a crash left there go.
func TestBackupStrayFiles(t *testing.T) {
	parent, err := os.MkdirTemp("", "b[x") //nolint:usetesting // that one's path can be too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	h, ctx := dispatchtest.Start(t, func(c *dispatch.Config) { c.DataDir = filepath.Join(parent, "d") }), testContext(t)
	leave := func() (left []string) {
		for _, n := range []string{".backup-123", ".restore-123"} {
			n = filepath.Join(h.Dir(), n)
			if err := os.MkdirAll(n, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(n, "psk"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			left = append(left, n)
		}
		return left
	}
	gone := func(what string, left []string) {
		t.Helper()
		for _, n := range left {
			if _, err := os.Stat(n); err == nil {
				t.Errorf("%s leaves %s", what, n)
			}
		}
	}
	for _, n := range []string{"psk-old", "psk~", "ca/" + strings.Repeat("x", 70)} {
		if err := os.WriteFile(filepath.Join(h.Dir(), n), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(h.Dir(), "psk.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := hubOf(h).RotateMeshKey(ctx, &dispatchv1.RotateMeshKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	left := leave()
	archive := backup(ctx, t, h, false)
	gone("a backup", left)
	if f := names(t, archive); f["psk"] == nil || f["psk.2"] == nil {
		t.Error("a mesh key is missing from the backup")
	}
	if err := os.Remove(filepath.Join(h.Dir(), "psk.d")); err != nil {
		t.Fatal(err)
	}
	h.Stop()
	left = leave()
	if _, err := dispatch.Restore(ctx, h.Dir(), bytes.NewReader(archive)); err != nil {
		t.Errorf("restore: %v", err)
	}
	gone("a restore", left)
	h.Start()
}

// TestRecoverGeneration: a generation that no node can have reached is refused and
// changes nothing.
func TestRecoverGeneration(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a := join(t, h, "a")
	for _, g := range []uint64{1 << 62, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		if _, err := a.recover(ctx, h.Token(1), g, nil, a.keys.Ed25519); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("generation %d: %v, want InvalidArgument", g, err)
		}
	}
	if res, err := a.recover(ctx, h.Token(1), 0, nil, a.keys.Ed25519); err != nil || res.GetGeneration() != 1 {
		t.Errorf("recovery after that = %v, %v", res, err)
	}
}
