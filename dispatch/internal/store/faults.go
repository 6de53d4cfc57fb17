// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Errors of the storage below the database. After each of them nothing of the
// operation is kept, and the store stays open: what was lost for want of space
// succeeds once there is some.
var (
	ErrDiskFull = errors.New("no space left for the database")
	ErrReadOnly = errors.New("database cannot be written")
	// ErrCorrupt means that the file is damaged, or is not a database of the hub.
	ErrCorrupt = errors.New("database is damaged")
	// ErrStorageIO means that the disk or its file system failed.
	ErrStorageIO = errors.New("disk failed")
	// ErrForeign means that the file is a database, but not one of a hub.
	ErrForeign = errors.New("not a database of a hub")
	// ErrNewerSchema means that a newer program has been at work here.
	ErrNewerSchema = errors.New("database was written by a newer program")
)

// checkTime bounds the check at the start. It suffices for several hundred
// thousand nodes: 10,000 with 100,000 changes and as many audit entries, 58 MB,
// take 0.15 s.
const checkTime = time.Second

// IsStorage reports whether err is one that only the operator of the machine can
// help: the four of the storage.
func IsStorage(err error) bool {
	return errors.Is(err, ErrDiskFull) || errors.Is(err, ErrReadOnly) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrStorageIO)
}

// classify adds the sentinel that stands for what the engine or the operating
// system says. nil stays nil.
func classify(err error) error {
	if err == nil || IsStorage(err) {
		return err
	}
	if e := new(sqlite.Error); errors.As(err, &e) {
		switch e.Code() & 0xff { // the rest is detail
		case sqlite3.SQLITE_FULL:
			return fmt.Errorf("%w: %w", ErrDiskFull, err)
		case sqlite3.SQLITE_READONLY:
			return fmt.Errorf("%w: %w", ErrReadOnly, err)
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN:
			return fmt.Errorf("%w: %w", ErrStorageIO, err)
		}
		return err
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("%w: %w", ErrStorageIO, err)
	}
	return err
}

// fault is classify for this database. The engine says of a full disk now and then
// that it failed, so that is tried.
func (s *Store) fault(err error) error {
	if err = classify(err); !errors.Is(err, ErrStorageIO) {
		return err
	}
	f, perr := os.CreateTemp(filepath.Dir(s.path), "probe-")
	if perr == nil {
		_, perr = f.Write(make([]byte, 64<<10)) // more than the engine wants at a time
		_ = f.Close()
		_ = os.Remove(f.Name())
	}
	if perr = classify(perr); errors.Is(perr, ErrDiskFull) || errors.Is(perr, ErrReadOnly) {
		return fmt.Errorf("%w: %w", perr, err)
	}
	return err
}

// backupName is where the database of a schema version is kept before a migration.
func (s *Store) backupName(schema int64) string { return fmt.Sprintf("%s.v%d.bak", s.path, schema) }

// newer is the error for a database that this program is too old for.
func (s *Store) newer(have, want int64) error {
	err := fmt.Errorf("open database %s: %w: schema version %d, this one knows %d", s.path, ErrNewerSchema, have, want)
	if _, serr := os.Stat(s.backupName(want)); serr == nil {
		err = fmt.Errorf("%w; before the migration it was kept as %s", err, s.backupName(want))
	}
	return err
}

// check refuses what is not a hub's database, and looks for damage, for checkTime
// at most: a hub that answers from half a database would hand out what others have.
// It reads over a connection of its own that cannot write, so that what is refused
// stays as it is, but where a crash has left a transaction to roll back first.
func (s *Store) check(ctx context.Context) error {
	err := s.checkMode(ctx, "ro")
	if errors.Is(err, ErrReadOnly) {
		err = s.checkMode(ctx, "rw")
	}
	return err
}

func (s *Store) checkMode(ctx context.Context, mode string) error {
	fail := func(err error) error { return fmt.Errorf("check database %s: %w", s.path, s.fault(err)) }
	db, err := sql.Open("sqlite", dataSource(s.path)+"?mode="+mode+"&_pragma=busy_timeout(5000)")
	if err != nil {
		return fail(err)
	}
	defer db.Close()
	var tables, ours int
	err = db.QueryRowContext(ctx, `SELECT count(*), coalesce(sum(name = 'goose_db_version'), 0)
		FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`).Scan(&tables, &ours)
	if err != nil {
		return fail(err)
	}
	if tables > 0 && ours == 0 {
		return fail(ErrForeign)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	var found string
	err = db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&found)
	switch {
	case ctx.Err() != nil:
		s.log.Warn("the check of the database did not end in time", "limit", checkTime)
	case err != nil:
		return fail(err)
	case found != "ok":
		return fail(fmt.Errorf("%w: %s", ErrCorrupt, strings.Join(strings.Fields(found), " ")))
	}
	return nil
}
