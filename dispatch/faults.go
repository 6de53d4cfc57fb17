// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// Errors of the data directory that Serve returns at the start.
var (
	// ErrDiskFull is returned where there is no space for the database.
	ErrDiskFull = store.ErrDiskFull
	// ErrReadOnly is returned where the data directory cannot be written.
	ErrReadOnly = store.ErrReadOnly
	// ErrCorrupt is returned where the database is damaged. Nothing was changed.
	ErrCorrupt = store.ErrCorrupt
	// ErrForeign is returned where the file is a database of something else.
	// Nothing was changed.
	ErrForeign = store.ErrForeign
	// ErrNewerSchema is returned where a newer program has been at work. The
	// message names both schema versions, and the backup made before the migration.
	ErrNewerSchema = store.ErrNewerSchema
	// ErrStorageIO is returned where the disk or its file system failed.
	ErrStorageIO = store.ErrStorageIO
	// ErrMissing is returned where a file is gone that cannot be made anew without
	// shutting the mesh's nodes out: the database, the authority or the mesh key.
	ErrMissing = ca.ErrMissing
	// ErrClock is returned where the machine's clock shows a time before the mesh
	// was made.
	ErrClock = ca.ErrClock
)

// usedMark is a file that tells that the hub has made its database: it never makes
// another one in the same place, because that would forget all nodes.
const usedMark = "used"

// checkDatabase refuses to make a database where one is lost.
func checkDatabase(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, usedMark)); err != nil {
		return nil
	}
	name := filepath.Join(dir, databaseFile)
	fi, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && fi.Size() == 0 {
		return fmt.Errorf("open database: %w: %s is gone or empty, but this hub has run before", ErrMissing, name)
	}
	return nil
}

// markUsed makes the mark once the database is there.
func markUsed(dir string) error {
	name := filepath.Join(dir, usedMark)
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	return identity.WriteFile(name, nil, 0o600)
}

const (
	clockEvery = 10 * time.Second
	// clockJump is more than any time server corrects at once on a healthy machine.
	clockJump = time.Minute
)

// watchClock says when the machine's clock jumps: tokens and certificates expire by
// it. While it shows a time before the mesh was made, nothing is issued.
func (s *Server) watchClock(ctx context.Context, authority *ca.CA) error {
	t := time.NewTicker(clockEvery)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := time.Now()
		// Round drops the monotonic reading: the two differences differ by the jump.
		jump := now.Round(0).Sub(last.Round(0)) - now.Sub(last)
		last = now
		if jump.Abs() < clockJump {
			continue
		}
		s.log.Warn("the machine's clock jumped: tokens and certificates expire by it", "by", jump.Round(time.Second).String())
		if err := authority.CheckClock(now); err != nil {
			s.log.Error("no certificates are issued until the clock is right", "err", err)
		}
	}
}
