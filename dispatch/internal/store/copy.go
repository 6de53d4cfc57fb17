// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// CopyTo writes a consistent copy of the database to a new file, mode 0600, while
// writes go on.
func (s *Store) CopyTo(ctx context.Context, name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("copy database: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("copy database: %w", err)
	}
	// A connection of its own: those for reading refuse to write, also elsewhere.
	d, err := openDB(s.path, "mode=rw", 1)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := d.ExecContext(ctx, "VACUUM INTO ?", name); err != nil {
		return fmt.Errorf("copy database to %s: %w", name, err)
	}
	return nil
}

// Kept is what a restore takes over from the database that it replaces.
type Kept struct {
	Denials []Denial
	// PSKEpoch is that of the mesh key, which nodes may hold already; zero leaves
	// that of the backup.
	PSKEpoch uint32
	access   *keptAccess
}

// Rebase gives the mesh a new epoch, takes over what is newer than the backup made
// at created, and records the restore.
func (s *Store) Rebase(ctx context.Context, kept Kept, created string) error {
	epoch, err := newEpoch()
	if err != nil {
		return err
	}
	err = s.update(ctx, func(t *tx) error {
		if err := t.importDenials(s.meta, kept.Denials, "revoked before the restore"); err != nil {
			return err
		}
		if err := t.q.SetEpoch(bg, int64(epoch)); err != nil {
			return fmt.Errorf("set epoch: %w", err)
		}
		// Nodes may have recovered since: theirs are ahead.
		if err := t.q.ForgetGenerations(bg); err != nil {
			return fmt.Errorf("forget generations: %w", err)
		}
		if err := t.q.RaisePSKEpoch(bg, int64(kept.PSKEpoch)); err != nil {
			return fmt.Errorf("set epoch of the mesh key: %w", err)
		}
		if err := t.takeAway(s.meta, kept.access); err != nil {
			return err
		}
		t.audit("hub.restore", "", detail("backup_created", created, "denials_kept", fmt.Sprint(len(kept.Denials))))
		return nil
	})
	if err == nil {
		s.meta.Epoch = epoch
	}
	return err
}

// ErrOtherMesh is returned for a database of which a restore keeps nothing, because
// it is another mesh's.
var ErrOtherMesh = errors.New("database is of another mesh")

// ReadKept reads a database that nobody has open, for the restore of s in its place.
// Errors: ErrOtherMesh.
func (s *Store) ReadKept(ctx context.Context, name string) (k Kept, err error) {
	here, err := s.State(ctx)
	if err != nil {
		return k, err
	}
	d, err := openDB(name, "mode=ro", 1)
	if err != nil {
		return k, err
	}
	defer d.Close()
	q := db.New(d)
	m, err := q.GetMeta(ctx)
	if err != nil {
		return k, fmt.Errorf("read mesh state: %w", err)
	}
	if m.MeshID != s.meta.MeshID {
		return k, fmt.Errorf("%w: %s, not %s", ErrOtherMesh, m.MeshID, s.meta.MeshID)
	}
	access, err := readAccess(ctx, q)
	if err != nil {
		return k, err
	}
	if access.newer, err = descends(ctx, q, here); err != nil {
		return k, err
	}
	ds, err := denials(ctx, q, time.Now())
	if err != nil {
		return k, err
	}
	return Kept{Denials: ds, PSKEpoch: uint32(m.PskEpoch), access: access}, nil
}

// descends reports whether a database is a later state of the one that is at from:
// its audit log has the entry that is the last one there. Two that went on from the
// same backup apart do not descend from each other, whatever their numbers are.
func descends(ctx context.Context, q *db.Queries, from State) (bool, error) {
	if from.AuditSeq == 0 {
		return true, nil
	}
	hash, err := q.AuditHashAt(ctx, int64(from.AuditSeq))
	if isNoRows(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read audit entry: %w", err)
	}
	return bytes.Equal(hash, from.AuditHead), nil
}
