// SPDX-License-Identifier: Apache-2.0

package store

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// filled makes a database with some content and returns its path.
func filled(t *testing.T) string {
	t.Helper()
	f := open(t, filepath.Join(t.TempDir(), "dispatch.db"), testMeta)
	f.token(t, "k", 1000, time.Hour, "a")
	for i := range 80 {
		if _, err := f.Enroll(t.Context(), newJoin("k", fmt.Sprintf("r%d", i), time.Now())); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.path
}

func overwrite(t *testing.T, path string, at int64, b []byte) {
	t.Helper()
	w, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func tryOpen(t *testing.T, path string) error {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, Init: testMeta})
	if err == nil {
		err = s.Close()
		if err == nil {
			return nil
		}
	}
	return err
}

// TestDamage opens what a broken disk, a foreign program or a newer one left.
func TestDamage(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, path string)
		want error
		text string
	}{
		"header zeroed": {func(t *testing.T, path string) { overwrite(t, path, 0, make([]byte, 100)) }, ErrCorrupt, ""},
		"no database":   {func(t *testing.T, path string) { overwrite(t, path, 0, []byte("#!/bin/sh\necho a script\n")) }, ErrCorrupt, ""},
		"pages in the middle": {func(t *testing.T, path string) {
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			for at := fi.Size() / 2 &^ 4095; at < fi.Size()/2+8*4096; at += 4096 {
				overwrite(t, path, at, []byte(strings.Repeat("damage! ", 512)))
			}
		}, ErrCorrupt, ""},
		"truncated": {func(t *testing.T, path string) {
			fi, err := os.Stat(path)
			if err == nil {
				err = os.Truncate(path, fi.Size()*2/3&^4095)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, ErrCorrupt, ""},
		"log of garbage": {func(t *testing.T, path string) {
			overwrite(t, path+"-wal", 0, []byte(strings.Repeat("garbage ", 9000)))
		}, nil, ""},
		"foreign": {func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			run(t, path, `CREATE TABLE recipes (name TEXT)`)
		}, ErrForeign, ""},
		"newer": {func(t *testing.T, path string) {
			run(t, path, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
		}, ErrNewerSchema, "schema version 999"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t)
			c.do(t, path)
			before, _ := os.ReadFile(path)
			err := tryOpen(t, path)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("Open = %v, want %v", err, c.want)
			}
			if err == nil {
				if have := present(t, path); !have["k"] {
					t.Error("token is lost")
				}
				return
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Open = %q, want one line with the path and %q", err, c.text)
			}
			if after, _ := os.ReadFile(path); !slices.Equal(before, after) {
				t.Error("Open changed a file that it refused")
			}
		})
	}
}

// TestDowngradeNamesBackup makes sure that whoever goes back learns from where.
func TestDowngradeNamesBackup(t *testing.T) {
	path := filled(t)
	backup := fmt.Sprintf("%s.v%d.bak", path, SchemaVersion())
	run(t, path, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
	if err := tryOpen(t, path); !errors.Is(err, ErrNewerSchema) || strings.Contains(err.Error(), backup) {
		t.Errorf("Open without a backup = %v", err)
	}
	if err := os.WriteFile(backup, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := tryOpen(t, path)
	for _, want := range []string{"999", fmt.Sprint(SchemaVersion()), backup} {
		if !errors.Is(err, ErrNewerSchema) || !strings.Contains(err.Error(), want) {
			t.Errorf("Open = %v, want it to name %s", err, want)
		}
	}
}

// TestCrashBeforeLog opens what a crash leaves before the database has a
// write-ahead log: a rollback journal, which only a writer can undo.
func TestCrashBeforeLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "first.db")
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(DELETE)&_pragma=cache_size(5)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, q := range []string{
		`CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL, is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')))`,
		`INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1)`, `BEGIN`, `CREATE TABLE x (b)`, `INSERT INTO x VALUES (zeroblob(1000000))`,
	} {
		if _, err := db.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	crashed := filepath.Join(t.TempDir(), "dispatch.db")
	for _, suffix := range []string{"", "-journal"} {
		b, err := os.ReadFile(path + suffix)
		if err == nil {
			err = os.WriteFile(crashed+suffix, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tryOpen(t, crashed); err != nil {
		t.Errorf("Open after a crash: %v", err)
	}
}

// run changes a database behind the store's back.
func run(t *testing.T, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}
