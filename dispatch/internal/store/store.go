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
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the "sqlite" driver

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
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
	// ErrNodeLocked means that the node's identity seems to be in two places.
	ErrNodeLocked = errors.New("node is locked: its identity may have been copied")
	// ErrRekey means that the hub made the node's key and the node has not
	// replaced it yet.
	ErrRekey = errors.New("node must replace the key that the hub made")
	// ErrCSRRequired means that the token does not allow the hub to make the key.
	ErrCSRRequired = errors.New("join token requires a certificate request")
	// ErrNeedsPerson means that a token which needs approval would give a node that
	// is a member already more than it has.
	ErrNeedsPerson = errors.New("the token needs approval, and the node is a member already")
	// ErrRecoveryExhausted means that the node has used up its recoveries.
	ErrRecoveryExhausted = errors.New("node has used up its recoveries")
	// ErrConflict means that the object has changed since the caller read it.
	ErrConflict = errors.New("changed by somebody else meanwhile")
	// ErrNameTaken means that another node has the name.
	ErrNameTaken = errors.New("name is taken")
	// ErrAmbiguous means that a prefix stands for more than one node.
	ErrAmbiguous = errors.New("more than one node begins so")
	ErrExhausted = errors.New("mesh prefix has no free address")
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
	RV uint64
	// Scope is the site whose watchers get it, or ScopeAll.
	Scope string
	// Node is whom it is about; zero where about nobody in particular.
	Node identity.PeerID
	// Policy is the number of the newest activation.
	Policy  uint64
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
	// Observe is called after each commit with the number of operations in it, how
	// long they took together, and why nothing of it is kept. nil means nobody counts.
	Observe func(ops int, took time.Duration, err error)
	// Logger nil discards.
	Logger *slog.Logger
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	meta    Meta
	log     *slog.Logger
	publish func([]Event)
	observe func(int, time.Duration, error)
	encode  func(uint64, Change) ([]byte, error)
	path    string

	write, read *sql.DB
	// wq and rq are the prepared queries of the two.
	wq, rq *db.Queries

	auditWake  wake
	admissions admissions

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
		log: cfg.Logger, publish: cfg.Publish, observe: cfg.Observe, encode: cfg.Encode, path: cfg.Path,
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
		return nil, fmt.Errorf("open database: %w", classify(err))
	}
	_ = f.Close()
	// 16 MB hold the pages that a write touches also in a fleet of ten thousand, so
	// that a change there costs what it costs in a small one.
	if s.write, err = openDB(cfg.Path, "_txlock=immediate&_pragma=cache_size(-16384)", 1); err != nil {
		return nil, err
	}
	if err = s.prepare(ctx, cfg.Init); err == nil {
		s.read, err = openDB(cfg.Path, "_pragma=query_only(1)", readers)
	}
	if err == nil {
		s.rq, err = db.Prepare(ctx, s.read)
	}
	if err != nil {
		_ = s.write.Close()
		if s.read != nil {
			_ = s.read.Close()
		}
		return nil, s.fault(err)
	}
	go s.run()
	return s, nil
}

// dataSource is the start of a DSN, in which the path's special characters are
// escaped.
func dataSource(path string) string {
	u := url.URL{Path: filepath.ToSlash(path)}
	return "file:" + u.EscapedPath()
}

func openDB(path, opt string, conns int) (*sql.DB, error) {
	dsn := dataSource(path) + "?" + opt +
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

// SchemaVersion returns the version of the schema that this program wants.
func SchemaVersion() int64 {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return 0
	}
	names, err := fs.Glob(sub, "*.sql")
	if err != nil || len(names) == 0 {
		return 0
	}
	v, err := goose.NumericComponent(names[len(names)-1])
	if err != nil {
		return 0
	}
	return v
}

func (s *Store) prepare(ctx context.Context, ini Meta) error {
	if err := s.check(ctx); err != nil {
		return err
	}
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
		return s.newer(have, want)
	}
	if have > 0 && have < want {
		if err := backup(ctx, s.write, s.backupName(have)); err != nil {
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

func (s *Store) loadMeta(ctx context.Context, ini Meta) (err error) {
	if s.wq, err = db.Prepare(ctx, s.write); err != nil {
		return fmt.Errorf("read database %s: %w", s.path, err)
	}
	row, err := s.wq.GetMeta(ctx)
	if errors.Is(err, sql.ErrNoRows) {
		s.meta = ini
		if s.meta.Epoch, err = newEpoch(); err != nil {
			return err
		}
		err = s.wq.InsertMeta(ctx, db.InsertMetaParams{
			Epoch: int64(s.meta.Epoch), MeshID: ini.MeshID, MeshCidr: ini.CIDR.String(), MeshCidr6: ini.CIDR6.String(),
			Created: time.Now().UnixMicro(),
		})
		if err != nil {
			return fmt.Errorf("write mesh settings: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read mesh settings: %w", err)
	}
	s.meta.Epoch, s.meta.MeshID = uint64(row.Epoch), row.MeshID
	if s.meta.CIDR, err = netip.ParsePrefix(row.MeshCidr); err != nil {
		return fmt.Errorf("read mesh settings: %w", err)
	}
	if s.meta.CIDR6, err = netip.ParsePrefix(row.MeshCidr6); err != nil {
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
func (s *Store) view(ctx context.Context, f func(*db.Queries) error) error {
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return classify(err)
	}
	defer func() { _ = tx.Rollback() }()
	return classify(f(s.rq.WithTx(tx)))
}

// State is the row of meta that changes.
type State struct {
	RV uint64
	// Policy is the number of the newest activation.
	Policy   uint64
	PSKEpoch uint32
	// AuditSeq is the number of the newest audit entry and AuditHead its hash.
	AuditSeq  uint64
	AuditHead []byte
	Created   time.Time
}

// State returns where the mesh is now.
func (s *Store) State(ctx context.Context) (State, error) { return state(ctx, s.rq) }

func state(ctx context.Context, q *db.Queries) (State, error) {
	m, err := q.GetMeta(ctx)
	if err != nil {
		return State{}, fmt.Errorf("read mesh state: %w", err)
	}
	return State{
		RV: uint64(m.Rv), Policy: uint64(m.PolicyGeneration), PSKEpoch: uint32(m.PskEpoch),
		AuditSeq: uint64(m.AuditSeq), AuditHead: m.AuditHead, Created: time.UnixMicro(m.Created),
	}, nil
}

// Version returns the newest committed rv.
func (s *Store) Version(ctx context.Context) (uint64, error) {
	st, err := s.State(ctx)
	return st.RV, err
}

func peerID(b []byte) (id identity.PeerID, err error) {
	if len(b) != len(id) {
		return id, fmt.Errorf("database holds a node id of %d bytes", len(b))
	}
	copy(id[:], b)
	return id, nil
}
