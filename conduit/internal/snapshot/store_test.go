// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestSaveAndLoad(t *testing.T) {
	name := filepath.Join(t.TempDir(), "state.cbor")
	if s, err := Load(name, "m1", self); s != nil || err != nil {
		t.Fatalf("no file: %v, %v", s, err)
	}
	want := sample(3)
	if err := Save(name, want); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	got, err := Load(name, "m1", self)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, same); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestLoadDamaged(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "state.cbor")
	if err := os.WriteFile(name, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{".state.cbor.123", ".state.cbor.9"} {
		if err := os.WriteFile(filepath.Join(dir, left), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Load(name, "m1", self)
	if s != nil || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
		t.Errorf("Load = %v, %v", s, err)
	}
	if b, err := os.ReadFile(name + DamagedSuffix); err != nil || string(b) != "half" {
		t.Errorf("kept aside: %q, %v", b, err)
	}
	if s, err := Load(name, "m1", self); s != nil || err != nil {
		t.Errorf("second start: %v, %v", s, err)
	}
	files, _ := os.ReadDir(dir)
	if len(files) != 1 {
		t.Errorf("files left: %v", files)
	}
}

// TestLoadLeaves: what is not damaged may be of use to another program.
func TestLoadLeaves(t *testing.T) {
	good := encoded(t, sample(1))
	for name, tc := range map[string]struct {
		write func(name string) error
		mesh  string
		want  error
	}{
		"Foreign": {func(n string) error { return os.WriteFile(n, good, 0o600) }, "m2", ErrForeign},
		"Exposed": {func(n string) error { return os.WriteFile(n, good, 0o644) }, "m1", identity.ErrExposed},
		"Folder":  {func(n string) error { return os.Mkdir(n, 0o700) }, "m1", nil},
		"Newer": {func(n string) error {
			b := bytes.Replace(good, []byte{0xa4, 1, Major}, []byte{0xa4, 1, Major + 1}, 1)
			return os.WriteFile(n, b, 0o600)
		}, "m1", ErrVersion},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "Exposed" && runtime.GOOS == "windows" {
				t.Skip("Windows has no such modes")
			}
			file := filepath.Join(t.TempDir(), "state.cbor")
			if err := tc.write(file); err != nil {
				t.Fatal(err)
			}
			s, err := Load(file, tc.mesh, self)
			if s != nil || err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("Load = %v, %v; want %v", s, err, tc.want)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("the file is gone: %v", err)
			}
		})
	}
}

func TestSaveErrors(t *testing.T) {
	name := filepath.Join(t.TempDir(), "none", "state.cbor")
	if err := Save(name, sample(1)); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("Save = %v", err)
	}
	name = filepath.Join(t.TempDir(), "state.cbor")
	if err := Save(name, sample(1)); err != nil {
		t.Fatal(err)
	}
	bad := sample(1)
	bad.MeshID = ""
	if err := Save(name, bad); !errors.Is(err, ErrLimit) {
		t.Errorf("Save = %v", err)
	}
	if s, err := Load(name, "m1", self); err != nil || len(s.Peers) != 1 {
		t.Errorf("the old file is gone: %v", err)
	}
}
