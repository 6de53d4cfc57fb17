// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// rebase makes the database in tmp one of a new epoch, with what the one that is to
// be replaced knows better.
func rebase(ctx context.Context, dir, tmp string, m manifest, res *Restored) (err error) {
	if m.Schema > store.SchemaVersion() {
		return fmt.Errorf("%w: its schema version %d is newer than this program's %d", ErrBackup, m.Schema, store.SchemaVersion())
	}
	st, err := store.Open(ctx, store.Config{Path: filepath.Join(tmp, databaseFile)})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBackup, err)
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	kept, err := takeOver(ctx, st, dir, tmp)
	res.Denials, res.DenialsErr = len(kept.Denials), err
	return st.Rebase(ctx, kept, m.Created.Format(time.RFC3339))
}

// takeOver reads what the database that is to be replaced knows and the backup may
// not: revocations, and a mesh key that nodes hold already.
func takeOver(ctx context.Context, st *store.Store, dir, tmp string) (store.Kept, error) {
	places, err := replaced(dir)
	if err != nil {
		return store.Kept{}, err
	}
	var errs []error
	found := false
	for _, p := range places {
		name := filepath.Join(p, databaseFile)
		if !exists(name) {
			continue
		}
		found = true
		k, err := st.ReadKept(ctx, name)
		switch {
		case err == nil:
			if !keepPSK(places, tmp, k.PSKEpoch) {
				k.PSKEpoch = 0
			}
			return k, nil
		case !errors.Is(err, store.ErrOtherMesh):
			errs = append(errs, err)
		}
	}
	if !found && len(places) > 1 {
		return store.Kept{}, fmt.Errorf("the restore that was interrupted has left no database in %s", strings.Join(places[1:], " or "))
	}
	return store.Kept{}, errors.Join(errs...)
}

// keepPSK copies the key of an epoch into tmp, unless the backup has it. It is not
// found where the operator keeps it.
func keepPSK(places []string, tmp string, epoch uint32) bool {
	to := pskFile(tmp, epoch)
	if exists(to) {
		return true
	}
	for _, p := range places {
		if b, err := identity.ReadSecret(pskFile(p, epoch)); err == nil && len(b) == pskLen {
			return identity.WriteFile(to, b, 0o600) == nil
		}
	}
	return false
}

// exists reports whether there is a file; one that cannot be looked at counts.
func exists(name string) bool {
	_, err := os.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// replaced returns where the files that a restore replaces can be, what was there
// last first: in dir, and where a restore that was interrupted has put them.
func replaced(dir string) ([]string, error) {
	names, err := asides(dir)
	if err != nil {
		return nil, err
	}
	places := []string{dir}
	for _, n := range slices.Backward(names) {
		places = append(places, filepath.Join(dir, n))
	}
	// The newest changes are in a file beside the database. If the interruption has
	// parted them, they come together again.
	if exists(filepath.Join(dir, databaseFile)) {
		return places, nil
	}
	for _, p := range places[1:] {
		if !exists(filepath.Join(p, databaseFile)) {
			continue
		}
		for _, n := range []string{databaseFile + "-wal", databaseFile + "-shm"} {
			from, to := filepath.Join(dir, n), filepath.Join(p, n)
			if exists(from) && !exists(to) {
				if err := os.Rename(from, to); err != nil {
					return nil, fmt.Errorf("restore: %w", err)
				}
			}
		}
		break
	}
	return places, nil
}

// asides names the directories of a restore that was interrupted, in the order in
// which they were made; none where there was no such restore, or nothing to replace.
func asides(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, restoreMark))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	var names []string
	for n := range strings.Lines(string(text)) {
		if n = strings.TrimSpace(n); strings.HasPrefix(n, asidePrefix) && filepath.Base(n) == n {
			names = append(names, n)
		}
	}
	if len(names) > 0 || exists(filepath.Join(dir, databaseFile)) {
		return names, nil
	}
	// Earlier versions did not write the name: it is the last one.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), asidePrefix) {
			names = []string{e.Name()}
		}
	}
	return names, nil
}

// swap moves what is in dir aside and what is in tmp into dir. A crash between
// leaves the mark, which Serve refuses and the next Restore overcomes: it completes
// the directory that the first one began, and what that one had put into dir already
// goes into another.
func swap(dir, tmp string) (aside string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("restore: %w", err)
	}
	var names []string // to be moved
	for _, e := range entries {
		if n := e.Name(); backupName(n) || n == caDir || n == databaseFile+"-wal" || n == databaseFile+"-shm" {
			names = append(names, n)
		}
	}
	to, err := asides(dir)
	if err != nil {
		return "", err
	}
	if len(names) > 0 {
		to = append(to, freshAside(dir))
	}
	mark := strings.Join(to, "\n") + "\n"
	if err := identity.WriteFile(filepath.Join(dir, restoreMark), []byte(mark), 0o600); err != nil {
		return "", err
	}
	if len(to) > 0 {
		aside = filepath.Join(dir, to[0])
		if err := moveAside(dir, names, aside, filepath.Join(dir, to[len(to)-1])); err != nil {
			return aside, err
		}
	}
	fresh, err := os.ReadDir(tmp)
	if err != nil {
		return aside, fmt.Errorf("restore: %w", err)
	}
	for _, e := range fresh {
		if err := os.Rename(filepath.Join(tmp, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return aside, fmt.Errorf("restore: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(dir, restoreMark)); err != nil {
		return aside, fmt.Errorf("restore: %w", err)
	}
	return aside, nil
}

// freshAside returns a name that nothing has, and that sorts after those before.
func freshAside(dir string) string {
	base := asidePrefix + time.Now().UTC().Format("20060102T150405")
	name := base
	for i := 2; exists(filepath.Join(dir, name)); i++ {
		name = base + "-" + strconv.Itoa(i)
	}
	return name
}

// moveAside moves files of dir into first, and those that are there already into
// second. A database and its log stay together.
func moveAside(dir string, names []string, first, second string) error {
	database := first
	if slices.Contains(names, databaseFile) && exists(filepath.Join(first, databaseFile)) {
		database = second
	}
	for _, n := range names {
		to := first
		switch {
		case strings.HasPrefix(n, databaseFile):
			to = database
		case exists(filepath.Join(first, n)):
			to = second
		}
		if err := os.MkdirAll(to, 0o700); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		if err := os.Rename(filepath.Join(dir, n), filepath.Join(to, n)); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
	}
	return nil
}
