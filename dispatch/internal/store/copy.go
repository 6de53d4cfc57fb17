// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
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
	// PSKEpoch is that of the mesh key, which nodes may hold already.
	PSKEpoch uint32
	meshID   string
	access   *keptAccess
}

// Rebase gives the mesh a new epoch, takes over what is newer than the backup made
// at created, and records the restore.
func (s *Store) Rebase(ctx context.Context, kept Kept, created string) error {
	epoch, err := newEpoch()
	if err != nil {
		return err
	}
	if err := s.ImportDenials(ctx, kept.Denials, "revoked before the restore"); err != nil {
		return err
	}
	err = s.update(ctx, func(t *tx) error {
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
		access := kept.access
		if kept.meshID != s.meta.MeshID {
			access = nil
		}
		if err := t.takeAway(access); err != nil {
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

// ReadKept reads a database that nobody has open.
func ReadKept(ctx context.Context, name string) (k Kept, err error) {
	d, err := openDB(name, "mode=ro", 1)
	if err != nil {
		return k, err
	}
	defer d.Close()
	q := db.New(d)
	st, err := state(ctx, q)
	if err != nil {
		return k, err
	}
	k.PSKEpoch = st.PSKEpoch
	m, err := q.GetMeta(ctx)
	if err != nil {
		return k, fmt.Errorf("read mesh state: %w", err)
	}
	k.meshID = m.MeshID
	if k.access, err = readAccess(ctx, q); err != nil {
		return k, err
	}
	k.Denials, err = denials(ctx, q, time.Now())
	return k, err
}
