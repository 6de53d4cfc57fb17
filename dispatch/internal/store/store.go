// SPDX-License-Identifier: Apache-2.0

// Package store keeps the hub's state in SQLite: nodes and their addresses,
// certificates, join tokens, policies, and the log of changes that watchers
// resume from.
//
// All writes go through one goroutine that batches them into transactions, so
// there is no lost update and no SQLITE_BUSY; a write is answered only after its
// commit, and what it changed is published between the two. Reads use
// connections of their own. Secrets are stored as hashes only, private keys
// never.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the "sqlite" driver

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

//go:embed migrations/*.sql
var migrations embed.FS

const readers = 4

// Errors that callers branch on.
var (
	ErrNotFound     = errors.New("not found")
	ErrTokenInvalid = errors.New("join token is not valid")
	ErrTokenExpired = errors.New("join token has expired")
	ErrTokenUsedUp  = errors.New("join token is used up")
	ErrTokenRevoked = errors.New("join token is revoked")
	ErrKeyInUse     = errors.New("key belongs to another node")
	// ErrKeyMismatch means that a node asked to renew with another key than its own.
	ErrKeyMismatch = errors.New("key is not the one that the node joined with")
	ErrNodeRevoked = errors.New("node is revoked")
	ErrExhausted   = errors.New("mesh prefix has no free address")
)

// Meta is the one row that describes the whole mesh.
type Meta struct {
	// Epoch is random and never 0. A restored backup gets a new one.
	Epoch  uint64
	MeshID string
	CIDR   netip.Prefix
	CIDR6  netip.Prefix
}

// Event is one committed change, encoded as watchers get it.
type Event struct {
	RV      uint64
	Encoded []byte
}

// Config is how Open behaves.
type Config struct {
	// Path is the database file; it is made with mode 0600.
	Path string
	// Init supplies the meta row of a new database. Epoch is set by Open.
	Init Meta
	// Encode turns a change into what watchers get. nil stores empty bytes.
	Encode func(rv uint64, c Change) ([]byte, error)
	// Publish is called after each commit that changed something, in the order of
	// rv, before the writers are answered. It must not block. nil means nobody
	// listens.
	Publish func([]Event)
	// Logger nil discards.
	Logger *slog.Logger
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	meta    Meta
	log     *slog.Logger
	publish func([]Event)
	encode  func(uint64, Change) ([]byte, error)
	path    string

	write *sql.DB
	read  *sql.DB

	ops     chan *op
	closing chan struct{}
	done    chan struct{}
	once    sync.Once
	cerr    error
}

// Open opens or makes the database, brings its schema up to date and starts the
// writer. Close it after use.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := &Store{
		log: cfg.Logger, publish: cfg.Publish, encode: cfg.Encode, path: cfg.Path,
		ops: make(chan *op), closing: make(chan struct{}), done: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.encode == nil {
		s.encode = func(uint64, Change) ([]byte, error) { return []byte{}, nil }
	}
	f, err := os.OpenFile(cfg.Path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	_ = f.Close()
	if s.write, err = openDB(cfg.Path, "_txlock=immediate", 1); err != nil {
		return nil, err
	}
	if err = s.prepare(ctx, cfg.Init); err == nil {
		s.read, err = openDB(cfg.Path, "_pragma=query_only(1)", readers)
	}
	if err != nil {
		_ = s.write.Close()
		return nil, err
	}
	go s.run()
	return s, nil
}

func openDB(path, opt string, conns int) (*sql.DB, error) {
	u := url.URL{Path: filepath.ToSlash(path)}
	dsn := "file:" + u.EscapedPath() + "?" + opt +
		"&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" +
		"&_pragma=foreign_keys(1)&_pragma=wal_autocheckpoint(1000)"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func (s *Store) prepare(ctx context.Context, ini Meta) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.write, sub, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read schema version of %s: %w", s.path, err)
	}
	if have > want {
		return fmt.Errorf("open database %s: schema version %d is newer than this program's %d", s.path, have, want)
	}
	if have > 0 && have < want {
		if err := backup(ctx, s.write, s.path+".v"+strconv.FormatInt(have, 10)+".bak"); err != nil {
			return err
		}
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate database %s: %w", s.path, err)
	}
	return s.loadMeta(ctx, ini)
}

// backup copies the database before its schema changes.
func backup(ctx context.Context, db *sql.DB, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("back up database: %w", err)
	}
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", to); err != nil {
		return fmt.Errorf("back up database to %s: %w", to, err)
	}
	return os.Chmod(to, 0o600)
}

func (s *Store) loadMeta(ctx context.Context, ini Meta) error {
	var cidr, cidr6 string
	row := s.write.QueryRowContext(ctx, `SELECT epoch, mesh_id, mesh_cidr, mesh_cidr6 FROM meta WHERE id = 1`)
	err := row.Scan(&s.meta.Epoch, &s.meta.MeshID, &cidr, &cidr6)
	if errors.Is(err, sql.ErrNoRows) {
		s.meta = ini
		if s.meta.Epoch, err = newEpoch(); err != nil {
			return err
		}
		_, err = s.write.ExecContext(ctx,
			`INSERT INTO meta (id, epoch, mesh_id, mesh_cidr, mesh_cidr6, created) VALUES (1, ?, ?, ?, ?, ?)`,
			s.meta.Epoch, ini.MeshID, ini.CIDR.String(), ini.CIDR6.String(), time.Now().UnixMicro())
		if err != nil {
			return fmt.Errorf("write mesh settings: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read mesh settings: %w", err)
	}
	if s.meta.CIDR, err = netip.ParsePrefix(cidr); err != nil {
		return fmt.Errorf("read mesh settings: %w", err)
	}
	if s.meta.CIDR6, err = netip.ParsePrefix(cidr6); err != nil {
		return fmt.Errorf("read mesh settings: %w", err)
	}
	return nil
}

func newEpoch() (uint64, error) {
	for {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return 0, fmt.Errorf("generate epoch: %w", err)
		}
		// SQLite integers are signed.
		if e := binary.BigEndian.Uint64(b[:]) >> 1; e != 0 {
			return e, nil
		}
	}
}

// Meta returns the mesh's settings, which never change while the store is open.
func (s *Store) Meta() Meta { return s.meta }

// Close waits for the writer and closes the database. Later calls return
// errors; Close may be called again.
func (s *Store) Close() error {
	s.once.Do(func() {
		close(s.closing)
		<-s.done
		s.cerr = errors.Join(s.read.Close(), s.write.Close())
	})
	return s.cerr
}

// view runs f with a consistent read-only view of the database.
func (s *Store) view(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	return f(tx)
}

// Version returns the newest committed rv.
func (s *Store) Version(ctx context.Context) (rv uint64, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT rv FROM meta WHERE id = 1`).Scan(&rv)
	return rv, err
}

func peerID(b []byte) (id identity.PeerID, err error) {
	if len(b) != len(id) {
		return id, fmt.Errorf("database holds a node id of %d bytes", len(b))
	}
	copy(id[:], b)
	return id, nil
}
