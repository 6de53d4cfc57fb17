// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// DamagedSuffix is added to the name of a file that could not be read, so that
// somebody may look at it.
const DamagedSuffix = ".damaged"

// Load reads a snapshot of the node self of a mesh. Without a file it returns nil
// and no error. Every error names the file and leaves the caller to go on without:
// a damaged file is put aside under DamagedSuffix, any other stays. A file that
// others may read or write is an error that Is identity.ErrExposed.
func Load(name, meshID string, self identity.PeerID) (*Snapshot, error) {
	sweep(name)
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err) // names the file
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	switch perm := fi.Mode().Perm(); {
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("load state: %s is no regular file", name)
	case runtime.GOOS != "windows" && perm&0o077 != 0:
		return nil, fmt.Errorf("load state: %w: %s has mode %04o, want 0600", identity.ErrExposed, name, perm)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("load state: %w", err)
	}
	s, err := Decode(b, meshID, self)
	if errors.Is(err, ErrDamaged) {
		_ = f.Close() // Windows renames no open file
		err = errors.Join(err, os.Rename(name, name+DamagedSuffix))
	}
	if err != nil {
		return nil, fmt.Errorf("load state from %s: %w", name, err)
	}
	return s, nil
}

// Save replaces the file by s so that a crash leaves the old one or the new one,
// whole. Its mode is 0600.
func Save(name string, s *Snapshot) error {
	b, err := s.Encode()
	if err != nil {
		return err
	}
	return identity.WriteFile(name, b, 0o600)
}

// sweep removes what a crash in the middle of Save left: a robot whose battery is
// pulled every day would fill its disk with them.
func sweep(name string) {
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".*"))
	for _, f := range left {
		_ = os.Remove(f)
	}
}
