// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// Names in the data directory and in a backup.
const (
	databaseFile = "dispatch.db"
	caDir        = "ca"
	auditKeyFile = ca.AuditKeyFile
	manifestFile = "manifest.json"
	// restoreMark is there while a restore moves files, and names the directories
	// where it puts what was there.
	restoreMark = "restore.unfinished"
	asidePrefix = "before-restore-"
)

// process is in the names of this process's temporary directories, which hold keys:
// others are what a crash has left.
var process = rand.Text()

// Limits of an archive, in bytes.
const (
	maxBackupFile = 1 << 20 // of each file but the database
	maxDatabase   = 64 << 30
)

var (
	// ErrBackup is returned for an archive that is no backup of a hub, or damaged.
	ErrBackup = errors.New("not a usable backup")
	// ErrUnfinished is returned by Serve after a restore that was interrupted.
	ErrUnfinished = errors.New("a restore was interrupted: run it again")
)

// manifest describes a backup.
type manifest struct {
	Format  int       `json:"format"`
	Created time.Time `json:"created"`
	MeshID  string    `json:"mesh_id"`
	Schema  int64     `json:"schema"`
	RV      uint64    `json:"rv"`
	Audit   uint64    `json:"audit_seq"`
}

// backup writes a tar archive of all state, consistent as of one moment, while the
// hub runs.
func (s *Server) backup(ctx context.Context, st *store.Store, w io.Writer, withRootKey bool) (err error) {
	dir := s.cfg.DataDir
	if err := sweep(dir); err != nil { // a backup is worth more than a tidy directory
		s.log.WarnContext(ctx, "leftovers of a crash hold keys and cannot be removed", "error", err)
	}
	tmp, err := os.MkdirTemp(dir, ".backup-"+process+"-*")
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	// Keys first: a rotation meanwhile leaves a key too many rather than too few.
	names, err := keyFiles(dir, withRootKey)
	if err != nil {
		return err
	}
	files := make(map[string][]byte, len(names))
	for _, n := range names {
		if files[n], err = os.ReadFile(filepath.Join(dir, n)); err != nil {
			return fmt.Errorf("back up: %w", err)
		}
	}
	db := filepath.Join(tmp, databaseFile)
	if err := st.CopyTo(ctx, db); err != nil {
		return err
	}
	state, err := st.State(ctx)
	if err != nil {
		return err
	}
	_, epoch := s.meshKeyOf()
	if f := pskFile(dir, state.PSKEpoch); !s.cfg.ExternalPSK && epoch == state.PSKEpoch {
		if files[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			return fmt.Errorf("back up: %w", err)
		}
	}
	m, err := json.Marshal(manifest{
		Format: 1, Created: time.Now().UTC(), MeshID: st.Meta().MeshID, Schema: store.SchemaVersion(), RV: state.RV, Audit: state.AuditSeq,
	})
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	files[manifestFile] = m
	t := tar.NewWriter(w)
	for _, n := range sortedKeys(files) {
		if err := addFile(t, n, int64(len(files[n])), bytes.NewReader(files[n])); err != nil {
			return err
		}
	}
	f, err := os.Open(db)
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	if err := addFile(t, databaseFile, fi.Size(), f); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	return nil
}

// sweep removes what backups and restores of other processes have left in dir. The
// caller has the directory's lock, so none of those lives.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		n := e.Name()
		rest, ours := strings.CutPrefix(n, ".backup-")
		if !ours {
			rest, ours = strings.CutPrefix(n, ".restore-")
		}
		if ours && !strings.HasPrefix(rest, process) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, n)))
		}
	}
	return err
}

// meshKeyOf returns the key in force; nil where the operator keeps it.
func (s *Server) meshKeyOf() ([]byte, uint32) {
	if s.meshKey == nil {
		return nil, 0
	}
	return s.meshKey.current()
}

func sortedKeys(m map[string][]byte) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	// The manifest comes first, so that a reader knows at once what it has.
	slices.SortFunc(out, func(a, b string) int {
		if (a == manifestFile) != (b == manifestFile) {
			if a == manifestFile {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return out
}

func addFile(t *tar.Writer, name string, size int64, r io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: time.Now()}); err != nil {
		return fmt.Errorf("back up %s: %w", name, err)
	}
	if _, err := io.Copy(t, r); err != nil {
		return fmt.Errorf("back up %s: %w", name, err)
	}
	return nil
}

// keyFiles names the files of a data directory that are no database.
func keyFiles(dir string, withRootKey bool) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, caDir))
	if err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	names := []string{auditKeyFile}
	for _, e := range entries {
		n := caDir + "/" + e.Name()
		if e.Type().IsRegular() && backupName(n) && (e.Name() != "root.key" || withRootKey) {
			names = append(names, n)
		}
	}
	if entries, err = os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() && isPSK(e.Name()) && backupName(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// isPSK reports whether name can be that of a mesh key.
func isPSK(name string) bool { return name == "psk" || strings.HasPrefix(name, "psk.") }

// backupName reports whether name may be in a backup.
func backupName(name string) bool {
	base, inCA := strings.CutPrefix(name, caDir+"/")
	switch {
	case base == "" || base == "." || base == ".." || strings.ContainsAny(base, "/\\\x00") || len(base) > 64:
		return false
	case inCA:
		return true
	}
	return base == databaseFile || base == auditKeyFile || base == manifestFile || isPSK(base)
}

// Restored tells what Restore has done.
type Restored struct {
	MeshID  string
	Created time.Time
	// Aside is where the files are that were there before; empty where there were
	// none.
	Aside string
	// Denials is how many revocations were taken over from them, because the backup
	// is older.
	Denials int
	// DenialsErr tells why those could not be read; the restore was done all the
	// same, since a database that cannot be read may be why somebody restores.
	DenialsErr error
}

// Restore puts a backup into dir, which must not be in use. The mesh gets a new
// epoch, so every node fetches all anew and none has to join again. What was in dir
// is moved aside, and the revocations in it are kept: a backup from before a robot
// was stolen does not let it in again. Where it is a later state of the backup, nodes
// that it has locked stay locked, and nodes that it lacks are deleted. A node that
// has taken new keys since the backup is one of these: its old keys are denied for
// good, and with its new ones it must join again. Nothing is taken from the files of
// another mesh. After an interruption Restore is run again, and finds what the first
// run has moved aside. Errors: ErrBackup, ErrInUse.
func Restore(ctx context.Context, dir string, archive io.Reader) (res Restored, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return res, fmt.Errorf("restore: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return res, err
	}
	defer lock.Close()
	if err := sweep(dir); err != nil {
		return res, fmt.Errorf("restore: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, ".restore-"+process+"-*")
	if err != nil {
		return res, fmt.Errorf("restore: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	m, err := unpack(tmp, archive)
	if err != nil {
		return res, err
	}
	res.MeshID, res.Created = m.MeshID, m.Created
	if err := rebase(ctx, dir, tmp, m, &res); err != nil {
		return res, err
	}
	// An intermediate key or a mesh key that is missing shows now, not at the start.
	if err := checkRestored(ctx, tmp); err != nil {
		return res, err
	}
	res.Aside, err = swap(dir, tmp)
	return res, err
}

// unpack writes the archive's files into tmp. Nothing but files of known names is
// accepted.
func unpack(tmp string, archive io.Reader) (m manifest, err error) {
	bad := func(format string, a ...any) (manifest, error) {
		return m, fmt.Errorf("%w: %s", ErrBackup, fmt.Sprintf(format, a...))
	}
	if err := os.Mkdir(filepath.Join(tmp, caDir), 0o700); err != nil {
		return m, fmt.Errorf("restore: %w", err)
	}
	seen := make(map[string]bool)
	t := tar.NewReader(archive)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return bad("%v", err)
		}
		most := int64(maxBackupFile)
		if h.Name == databaseFile {
			most = maxDatabase
		}
		if h.Typeflag != tar.TypeReg || !backupName(h.Name) || seen[h.Name] || h.Size > most {
			return bad("unexpected entry %.80q", h.Name)
		}
		seen[h.Name] = true
		if err := writeEntry(filepath.Join(tmp, filepath.FromSlash(h.Name)), t); err != nil {
			return m, err
		}
	}
	for _, n := range []string{manifestFile, databaseFile, caDir + "/root.crt"} {
		if !seen[n] {
			return bad("it has no %s", n)
		}
	}
	text, err := os.ReadFile(filepath.Join(tmp, manifestFile))
	if err != nil {
		return m, fmt.Errorf("restore: %w", err)
	}
	if err := json.Unmarshal(text, &m); err != nil || m.Format != 1 {
		return bad("its manifest is of another format")
	}
	return m, os.Remove(filepath.Join(tmp, manifestFile))
}

func writeEntry(name string, r io.Reader) (err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil {
		return fmt.Errorf("%w: %w", ErrBackup, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}
