// SPDX-License-Identifier: Apache-2.0

package home

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/config"
)

var errCrash = errors.New("power cut")

// filesFor returns an identity for the keys in s.
func filesFor(t *testing.T, ca *hubtest.CA, s *Staging, name string, notAfter time.Time) Files {
	t.Helper()
	c := identity.Certificate{Name: name, Virtual4: netip.MustParseAddr("10.66.0.2"), NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter}
	c.Ed25519, c.X25519 = hubtest.Public(s.Keys)
	cfg := config.Config{
		Hub: config.Hub{URL: "https://hub.example"},
		Node: config.Node{
			Name: name, ID: s.Keys.ID(), MeshID: ca.MeshID, VirtualIP: c.Virtual4,
			MeshCIDRs: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16")},
		},
	}
	text, err := cfg.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return Files{
		CA:          identity.MarshalChainPEM([][]byte{ca.Root.Raw}),
		Certificate: identity.MarshalChainPEM(ca.Node(t, c)),
		PSK:         bytes.Repeat([]byte{7}, 32), Config: text,
	}
}

func stage(t *testing.T, dir string, force bool) *Staging {
	t.Helper()
	s, err := Stage(dir, "test", force)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func join(t *testing.T, ca *hubtest.CA, dir, name string, force bool) {
	t.Helper()
	s := stage(t, dir, force)
	if err := s.Commit(filesFor(t, ca, s, name, time.Now().Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(false); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	out := make(map[string]fs.FileMode)
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if rel, _ := filepath.Rel(dir, p); rel != "." {
			out[rel] = fi.Mode()
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

func TestJoinAndLoad(t *testing.T) {
	ca := hubtest.NewCA(t, "m")
	dir := filepath.Join(t.TempDir(), "a", "home")
	join(t, ca, dir, "n1", false)
	files := list(t, dir)
	if len(files) != 8 {
		t.Errorf("home holds %v, want 7 files and one directory", files)
	}
	for name, mode := range files {
		want := fs.FileMode(0o600)
		if mode.IsDir() {
			want = 0o700
		}
		if runtime.GOOS != "windows" && mode.Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", name, mode.Perm(), want)
		}
	}
	n, err := Load(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if n.Certificate.Name != "n1" || n.PSK[31] != 7 || n.Keys.ID() != n.Certificate.ID {
		t.Errorf("loaded %+v", n.Certificate)
	}
	if _, err := Stage(dir, "test", false); !errors.Is(err, ErrExists) {
		t.Errorf("second Stage = %v, want ErrExists", err)
	}
	join(t, ca, dir, "n2", true)
	if n, err = Load(dir, time.Now()); err != nil || n.Certificate.Name != "n2" {
		t.Errorf("after force: %v, %v", n, err)
	}
	if got := list(t, dir); len(got) != 8 {
		t.Errorf("home holds %v after force", got)
	}
	for _, name := range []string{SnapshotFile, SnapshotFile + ".damaged"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("home is still there: %v", list(t, dir))
	}
}

// A power cut at any step leaves the old identity, or the new one, and never
// parts of both.
func TestCrash(t *testing.T) {
	ca := hubtest.NewCA(t, "m")
	for _, old := range []string{"", "old"} {
		for at := range 100 {
			dir := filepath.Join(t.TempDir(), "home")
			if old != "" {
				join(t, ca, dir, old, false)
			}
			s := stage(t, dir, true)
			n, stepName := 0, ""
			s.crashAt = func(step string) error {
				if n++; n > at {
					stepName = step
					return errCrash
				}
				return nil
			}
			err := s.Commit(filesFor(t, ca, s, "new", time.Now().Add(time.Hour)))
			_ = s.lock.Close() // a dead process holds no lock
			if err == nil {
				if at < 10 {
					t.Fatalf("only %d steps", at)
				}
				break
			}
			if !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
			node, err := Load(dir, time.Now())
			got := ""
			if err == nil {
				got = node.Certificate.Name
			} else if !errors.Is(err, ErrNotJoined) {
				t.Errorf("crash at %q: %v", stepName, err)
			}
			committed := stepName != "commit" && stepName[:5] != "write"
			if want := map[bool]string{true: "new", false: old}[committed]; got != want {
				t.Errorf("crash at %q: identity %q, want %q", stepName, got, want)
			}
			// The next join finds its way, and the keys of the cut one.
			again := stage(t, dir, true)
			if !committed && again.Keys.ID() != s.Keys.ID() {
				t.Errorf("crash at %q: keys are lost", stepName)
			}
			if err := again.Close(false); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	root := t.TempDir()
	s := stage(t, filepath.Join(root, "a", "home"), false)
	if err := s.Close(false); err != nil {
		t.Fatal(err)
	}
	if got := list(t, root); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestKeysOfAnotherPurposeAreDropped(t *testing.T) {
	dir := t.TempDir()
	a := stage(t, dir, false)
	if err := a.Close(true); err != nil {
		t.Fatal(err)
	}
	b, err := Stage(dir, "another", false)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(false)
	if a.Keys.ID() == b.Keys.ID() {
		t.Error("keys went to another token")
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	s := stage(t, dir, false)
	if _, err := Stage(dir, "test", false); !errors.Is(err, ErrInUse) {
		t.Errorf("Stage in a held home = %v, want ErrInUse", err)
	}
	if err := Remove(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("Remove of a held home = %v, want ErrInUse", err)
	}
	if err := s.Close(false); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); !errors.Is(err, ErrNotJoined) {
		t.Errorf("Remove of an empty home = %v, want ErrNotJoined", err)
	}
}

func TestUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Stage(filepath.Join(file, "home"), "test", false); !errors.Is(err, ErrUnwritable) {
		t.Errorf("Stage below a file = %v, want ErrUnwritable", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	ca := hubtest.NewCA(t, "m")
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  error
	}{
		{"Nothing", func(t *testing.T, dir string) { must(t, Remove(dir)) }, ErrNotJoined},
		{"ExposedKey", func(t *testing.T, dir string) { must(t, os.Chmod(filepath.Join(dir, KeyFile), 0o640)) }, identity.ErrExposed},
		{"ExposedPSK", func(t *testing.T, dir string) { must(t, os.Chmod(filepath.Join(dir, PSKFile), 0o604)) }, identity.ErrExposed},
		{"ShortPSK", func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, PSKFile), []byte("abcd"), 0o600))
		}, ErrPSK},
		{"OtherRoot", func(t *testing.T, dir string) {
			pem := identity.MarshalChainPEM([][]byte{hubtest.NewCA(t, "m").Root.Raw})
			must(t, os.WriteFile(filepath.Join(dir, CAFile), pem, 0o600))
		}, ErrIdentity},
		{"OtherKeys", func(t *testing.T, dir string) {
			k, err := identity.GenerateKeys()
			must(t, err)
			ed, _, err := k.MarshalPEM()
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, KeyFile), ed, 0o600))
		}, ErrIdentity},
		{"BadConfig", func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, ConfigFile), []byte("x = 1"), 0o600))
		}, config.ErrConfig},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "home")
			join(t, ca, dir, "n", false)
			tc.spoil(t, dir)
			if _, err := Load(dir, time.Now()); !errors.Is(err, tc.want) {
				t.Errorf("Load = %v, want %v", err, tc.want)
			}
		})
	}
	t.Run("Expired", func(t *testing.T) {
		dir := t.TempDir()
		join(t, ca, dir, "n", false)
		n, err := Load(dir, time.Now().Add(2*time.Hour))
		if n == nil || !errors.Is(err, ErrExpired) {
			t.Errorf("Load = %v, %v, want the node and ErrExpired", n, err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
