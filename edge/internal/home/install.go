// SPDX-License-Identifier: Apache-2.0

package home

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// An identity is a set of files, and a set cannot be renamed into a directory
// that exists. So it is made whole in pendingDir, which then becomes commitDir
// by one rename: from there on it is in force. Moving its files to their places
// can be cut off anywhere, and whoever opens the home next goes on with it.
const (
	pendingDir = ".join.pending"
	commitDir  = ".join.commit"
	oldDir     = "old" // inside commitDir: what was replaced
	// purposeFile tells what the keys in pendingDir were made for.
	purposeFile = "purpose"
)

// entries are moved in this order; config.toml last, because it makes a home.
var entries = []string{CertsDir, PSKFile, ConfigFile}

// Files is the content of an identity.
type Files struct {
	CA, Certificate []byte // PEM
	PSK             []byte // 32 bytes
	Config          []byte
	State           State
}

// Staging is an identity that is being made in a home that this process holds.
type Staging struct {
	Keys *identity.Keys

	dir     string
	lock    *Lock
	made    []string // directories that did not exist, outermost first
	crashAt func(step string) error
}

// Stage prepares dir for a new identity: it takes the lock, checks that nothing
// is there unless force, and writes fresh keys, so that a home that cannot be
// written is known before a token is spent. Keys of a join that was cut off are
// taken up again by a join of the same purpose, which names the token: the hub
// answers the same keys with the same node.
func Stage(dir, purpose string, force bool) (_ *Staging, err error) {
	s := &Staging{dir: dir}
	if s.made, err = mkdir(dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnwritable, err)
	}
	defer func() {
		if err != nil {
			s.unmake()
		}
	}()
	if s.lock, err = TakeLock(dir); err != nil {
		return nil, err
	}
	if err := recoverCommit(dir, nil); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnwritable, err)
	}
	if Joined(dir) && !force {
		return nil, fmt.Errorf("%w in %s", ErrExists, dir)
	}
	pending := filepath.Join(dir, pendingDir)
	certs := filepath.Join(pending, CertsDir)
	mark := filepath.Join(pending, purposeFile)
	if was, rerr := os.ReadFile(mark); rerr == nil && string(was) == purpose {
		s.Keys, err = identity.LoadKeys(filepath.Join(pending, KeyFile), filepath.Join(pending, X25519File))
		if err == nil {
			return s, nil
		}
	}
	if err := os.RemoveAll(pending); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnwritable, err)
	}
	if s.Keys, err = identity.GenerateKeys(); err != nil {
		return nil, err
	}
	ed, x, err := s.Keys.MarshalPEM()
	if err != nil {
		return nil, err
	}
	err = os.MkdirAll(certs, 0o700)
	if err == nil {
		err = identity.WriteFile(filepath.Join(pending, KeyFile), ed, 0o600)
	}
	if err == nil {
		err = identity.WriteFile(filepath.Join(pending, X25519File), x, 0o600)
	}
	if err == nil {
		err = identity.WriteFile(mark, []byte(purpose), 0o600)
	}
	if err != nil {
		_ = os.RemoveAll(pending)
		return nil, fmt.Errorf("%w: %w", ErrUnwritable, err)
	}
	return s, nil
}

// Commit puts the identity in force. After an error the home is as it was before
// or holds the new identity, never a part of it.
func (s *Staging) Commit(f Files) error {
	pending, commit := filepath.Join(s.dir, pendingDir), filepath.Join(s.dir, commitDir)
	for _, w := range []struct {
		name string
		data []byte
	}{{CAFile, f.CA}, {CertFile, f.Certificate}, {PSKFile, formatPSK(f.PSK)}, {ConfigFile, f.Config}} {
		if err := s.step("write " + w.name); err != nil {
			return err
		}
		if err := identity.WriteFile(filepath.Join(pending, w.name), w.data, 0o600); err != nil {
			return err
		}
	}
	if err := f.State.Store(pending); err != nil {
		return err
	}
	if err := s.step("commit"); err != nil {
		return err
	}
	if err := os.Rename(pending, commit); err != nil {
		return fmt.Errorf("commit identity: %w", err)
	}
	if err := identity.SyncDir(s.dir); err != nil {
		return fmt.Errorf("commit identity: %w", err)
	}
	return recoverCommit(s.dir, s.crashAt)
}

// Close lets go of the home. keep leaves the keys for another try; otherwise
// nothing of an identity that was not committed remains.
func (s *Staging) Close(keep bool) error {
	var err error
	if !keep {
		err = os.RemoveAll(filepath.Join(s.dir, pendingDir))
	}
	s.unmake()
	return err
}

// unmake releases the lock and removes the directories that Stage made, where
// they are empty.
func (s *Staging) unmake() {
	for _, d := range slices.Backward(s.made) {
		if os.Remove(d) != nil {
			break
		}
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

func (s *Staging) step(name string) error {
	if s.crashAt == nil {
		return nil
	}
	return s.crashAt(name)
}

// recoverCommit moves what commitDir holds to its place. Doing it twice, or from
// the middle, ends the same.
func recoverCommit(dir string, crashAt func(string) error) error {
	commit := filepath.Join(dir, commitDir)
	if _, err := os.Lstat(commit); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	old := filepath.Join(commit, oldDir)
	for _, name := range entries {
		from, to := filepath.Join(commit, name), filepath.Join(dir, name)
		if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
			continue // moved already
		}
		if crashAt != nil {
			if err := crashAt("move " + name); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(old, 0o700); err != nil {
			return fmt.Errorf("finish join: %w", err)
		}
		// A directory cannot be renamed over one that is not empty.
		if err := os.Rename(to, filepath.Join(old, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("finish join: %w", err)
		}
		if crashAt != nil {
			if err := crashAt("replace " + name); err != nil {
				return err
			}
		}
		if err := os.Rename(from, to); err != nil {
			return fmt.Errorf("finish join: %w", err)
		}
	}
	if err := identity.SyncDir(dir); err != nil {
		return fmt.Errorf("finish join: %w", err)
	}
	if crashAt != nil {
		if err := crashAt("clean"); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(commit); err != nil {
		return fmt.Errorf("finish join: %w", err)
	}
	return identity.SyncDir(dir)
}

// Remove deletes the identity in dir, the configuration first, and leaves what
// is not ours.
func Remove(dir string) error {
	l, err := TakeLock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s does not exist", ErrNotJoined, dir)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	if !Joined(dir) {
		return fmt.Errorf("%w: no %s in %s", ErrNotJoined, ConfigFile, dir)
	}
	for _, name := range []string{commitDir, ConfigFile, PSKFile, CertsDir, pendingDir, SocketFile, SnapshotFile, SnapshotFile + ".damaged"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove identity: %w", err)
		}
		if err := identity.SyncDir(dir); err != nil {
			return fmt.Errorf("remove identity: %w", err)
		}
	}
	_ = os.Remove(dir) // only where it is empty now
	return nil
}

// mkdir makes dir and its parents, each 0700, and returns those that were missing.
func mkdir(dir string) (made []string, err error) {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil || !errors.Is(err, fs.ErrNotExist) || d == filepath.Dir(d) {
			break
		}
		made = append([]string{d}, made...)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		for _, d := range slices.Backward(made) {
			_ = os.Remove(d)
		}
		return nil, err
	}
	return made, nil
}
