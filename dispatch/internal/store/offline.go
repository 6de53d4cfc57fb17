// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/audit"
)

// ReadAuditLog reads the audit log of the database at path without a hub, and
// while one runs as well: it changes nothing. It calls checkpoint for each signed
// checkpoint, then entry for each entry, both in order, until one returns an error,
// which it returns.
func ReadAuditLog(ctx context.Context, path string, checkpoint func([]byte) error, entry func(*audit.Entry) error) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	u := url.URL{Path: filepath.ToSlash(path)}
	db, err := sql.Open("sqlite", "file:"+u.EscapedPath()+"?_pragma=query_only(1)&_pragma=busy_timeout(5000)")
	if err != nil {
		return fmt.Errorf("open database %s: %w", path, err)
	}
	defer db.Close()
	// One transaction: what a running hub appends meanwhile is not half in it.
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("read audit log: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	signed, err := tx.QueryContext(ctx, `SELECT signed FROM audit_checkpoints ORDER BY seq`)
	if err != nil {
		return fmt.Errorf("read audit checkpoints: %w", err)
	}
	defer signed.Close()
	for signed.Next() {
		var b []byte
		if err := signed.Scan(&b); err != nil {
			return fmt.Errorf("read audit checkpoints: %w", err)
		}
		if err := checkpoint(b); err != nil {
			return err
		}
	}
	if err := signed.Err(); err != nil {
		return fmt.Errorf("read audit checkpoints: %w", err)
	}
	rows, err := tx.QueryContext(ctx, `SELECT seq, ts, actor, action, target, detail, prev, hash FROM audit ORDER BY seq`)
	if err != nil {
		return fmt.Errorf("read audit log: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e audit.Entry
		var ts int64
		if err := rows.Scan(&e.Seq, &ts, &e.Actor, &e.Action, &e.Target, &e.Detail, &e.Prev, &e.Hash); err != nil {
			return fmt.Errorf("read audit log: %w", err)
		}
		e.Time = time.UnixMicro(ts)
		if err := entry(&e); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read audit log: %w", err)
	}
	return nil
}
