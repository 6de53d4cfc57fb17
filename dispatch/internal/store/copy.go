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

// Rebase gives the mesh a new epoch, takes over further denials, and records the
// restore of a backup made at created.
func (s *Store) Rebase(ctx context.Context, kept []Denial, created string) error {
	epoch, err := newEpoch()
	if err != nil {
		return err
	}
	if err := s.ImportDenials(ctx, kept, "revoked before the restore"); err != nil {
		return err
	}
	err = s.update(ctx, func(t *tx) error {
		if err := t.q.SetEpoch(bg, int64(epoch)); err != nil {
			return fmt.Errorf("set epoch: %w", err)
		}
		t.audit("hub.restore", "", detail("backup_created", created, "denials_kept", fmt.Sprint(len(kept))))
		return nil
	})
	if err == nil {
		s.meta.Epoch = epoch
	}
	return err
}

// ReadDenials reads the denials of a database that nobody has open.
func ReadDenials(ctx context.Context, name string) ([]Denial, error) {
	d, err := openDB(name, "mode=ro", 1)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return denials(ctx, db.New(d), time.Now())
}
