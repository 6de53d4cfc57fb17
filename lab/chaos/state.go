// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	_ "modernc.org/sqlite" // the "sqlite" driver
)

const database = "dispatch.db"

// idEncoding is that of PeerIDs.
var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// nodeRow, like tokenRow, is one object of the database: what checks need of it,
// and all of it as text. Comparing texts finds every change, in whatever column.
type nodeRow struct {
	id, name, ip, index, token, state, site, tags string
	served                                        bool   // watchers see it
	version                                       int64  // of the row
	text                                          string // of all columns but the volatile ones
	certs                                         []string
	revoked                                       int // of certs
}

type tokenRow struct {
	id, tags, text string
	uses, max      int64
	revoked        bool
}

type auditRow struct{ actor, action, target, detail string }

// state is the whole database at one moment.
type state struct {
	epoch           uint64
	rv, compact     int64
	psk, generation int64
	auditSeq        int64
	auditHead       []byte
	nodes           map[string]*nodeRow // by hex of the Ed25519 key
	byID            map[string]*nodeRow
	tokens          map[string]*tokenRow // by id
	byTag           map[string]*tokenRow
	quarantine      map[string]bool
	denials         map[string]string // subject to text
	policies        map[int64]string  // version to text
	sources         map[int64]string
	active          int64

	newAudit []auditRow         // since the state before
	changed  map[string][]int64 // subject to the rv of its changes since then
	problems []string
}

// readState reads a copy of the database in dir, as the next hub will find it:
// the file itself stays as the kill left it. What came before prev, which may be
// nil, is not verified again.
func readState(ctx context.Context, dir, scratch string, prev *state) (*state, error) {
	tmp, err := os.MkdirTemp(scratch, "copy")
	if err != nil {
		return nil, fmt.Errorf("copy database: %w", err)
	}
	defer os.RemoveAll(tmp)
	for _, suffix := range []string{"", "-wal"} {
		err := copyFile(filepath.Join(dir, database+suffix), filepath.Join(tmp, database+suffix))
		if err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
			return nil, fmt.Errorf("copy database: %w", err)
		}
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(tmp, database))
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	defer db.Close()
	s := &state{
		nodes: make(map[string]*nodeRow), byID: make(map[string]*nodeRow), tokens: make(map[string]*tokenRow),
		byTag: make(map[string]*tokenRow), quarantine: make(map[string]bool), denials: make(map[string]string),
		policies: make(map[int64]string), sources: make(map[int64]string), changed: make(map[string][]int64),
	}
	for _, read := range []func(context.Context, *sql.DB, *state) error{
		s.readMeta, s.readNodes, s.readTokens, s.readDenials, s.readPolicies, s.readChanges, s.readAudit,
	} {
		if err := read(ctx, db, prev); err != nil {
			return nil, fmt.Errorf("read database: %w", err)
		}
	}
	return s, nil
}

func (s *state) problem(format string, args ...any) {
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// each calls f for each row of a query.
func each(ctx context.Context, db *sql.DB, query string, args []any, f func(*sql.Rows) error) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (s *state) readMeta(ctx context.Context, db *sql.DB, prev *state) error {
	var check string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check`).Scan(&check); err != nil || check != "ok" {
		s.problem("database is damaged: %s %v", check, err)
	}
	var epoch int64
	err := db.QueryRowContext(ctx, `SELECT epoch, rv, compact_rv, psk_epoch, policy_generation, audit_seq, audit_head FROM meta`).
		Scan(&epoch, &s.rv, &s.compact, &s.psk, &s.generation, &s.auditSeq, &s.auditHead)
	s.epoch = uint64(epoch)
	if err == nil && prev != nil {
		if s.epoch != prev.epoch {
			s.problem("epoch changed from %d to %d", prev.epoch, s.epoch)
		}
		if s.rv < prev.rv || s.generation < prev.generation || s.auditSeq < prev.auditSeq {
			s.problem("a counter went back: rv %d to %d, policy %d to %d, audit %d to %d",
				prev.rv, s.rv, prev.generation, s.generation, prev.auditSeq, s.auditSeq)
		}
	}
	return err
}

func (s *state) readNodes(ctx context.Context, db *sql.DB, _ *state) error {
	var cidr string
	if err := db.QueryRowContext(ctx, `SELECT mesh_cidr FROM meta`).Scan(&cidr); err != nil {
		return err
	}
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return err
	}
	base := p.Addr().As4()
	address := func(index uint32) string {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(base[:])+index)
		return netip.AddrFrom4(a).String()
	}
	// last_seen is presence, which is written in batches and may be lost.
	err = each(ctx, db, `SELECT id, name, ip, ed25519, x25519, key_origin, state, token_id, hostname, os, arch, version, created,
		site, row_version, ephemeral, locked, generation, hex(recovery_id), recover_left, approved_by,
		coalesce((SELECT group_concat(tag) FROM (SELECT tag FROM node_tags WHERE node_id = id ORDER BY tag)), '') FROM nodes`, nil,
		func(rows *sql.Rows) error {
			var (
				n                                          nodeRow
				id, ed, x                                  []byte
				index                                      uint32
				origin, host, os, arch, version, rec, appr string
				created, eph, locked, gen, left            int64
			)
			err := rows.Scan(&id, &n.name, &index, &ed, &x, &origin, &n.state, &n.token, &host, &os, &arch, &version, &created,
				&n.site, &n.version, &eph, &locked, &gen, &rec, &left, &appr, &n.tags)
			if err != nil {
				return err
			}
			n.id, n.ip, n.index = idEncoding.EncodeToString(id), address(index), fmt.Sprint(index)
			n.served = n.state == "active" && locked == 0 && origin == "node"
			n.text = fmt.Sprint(n.id, n.name, n.ip, hex.EncodeToString(x), origin, n.state, n.token, host, os, arch, version,
				created, n.site, n.version, eph, locked, gen, rec, left, appr, n.tags)
			s.nodes[hex.EncodeToString(ed)], s.byID[n.id] = &n, &n
			return nil
		})
	if err != nil {
		return err
	}
	return each(ctx, db, `SELECT node_id, hex(serial), revoked_at FROM certs ORDER BY node_id, serial`, nil, func(rows *sql.Rows) error {
		var id []byte
		var serial string
		var revoked int64
		if err := rows.Scan(&id, &serial, &revoked); err != nil {
			return err
		}
		n := s.byID[idEncoding.EncodeToString(id)]
		if n == nil {
			s.problem("certificate %s is of no node", serial)
			return nil
		}
		n.certs = append(n.certs, strings.ToLower(serial))
		if revoked != 0 {
			n.revoked++
		}
		return nil
	})
}

func (s *state) readTokens(ctx context.Context, db *sql.DB, _ *state) error {
	err := each(ctx, db, `SELECT id, hex(secret_sha256), max_uses, uses, expires, revoked_at, tags, created_by, created, site, ephemeral,
		needs_approval, require_csr, note FROM join_tokens`, nil, func(rows *sql.Rows) error {
		var (
			k                                         tokenRow
			hash, by, site, note                      string
			expires, revoked, created, eph, appr, csr int64
		)
		err := rows.Scan(&k.id, &hash, &k.max, &k.uses, &expires, &revoked, &k.tags, &by, &created, &site, &eph, &appr, &csr, &note)
		if err != nil {
			return err
		}
		k.revoked = revoked != 0
		k.text = fmt.Sprint(k.id, hash, k.max, expires, revoked, k.tags, by, created, site, eph, appr, csr, note)
		s.tokens[k.id], s.byTag[k.tags] = &k, &k
		return nil
	})
	if err != nil {
		return err
	}
	return each(ctx, db, `SELECT ip FROM ip_quarantine`, nil, func(rows *sql.Rows) error {
		var ip string
		err := rows.Scan(&ip)
		s.quarantine[ip] = true
		return err
	})
}

func (s *state) readDenials(ctx context.Context, db *sql.DB, _ *state) error {
	return each(ctx, db, `SELECT kind, value, until, reason, created FROM denials`, nil, func(rows *sql.Rows) error {
		var kind, reason string
		var value []byte
		var until, created int64
		if err := rows.Scan(&kind, &value, &until, &reason, &created); err != nil {
			return err
		}
		s.denials[denialKey(kind, value)] = fmt.Sprint(until, reason, created)
		return nil
	})
}

func denialKey(kind string, value []byte) string { return kind + ":" + hex.EncodeToString(value) }

func (s *state) readPolicies(ctx context.Context, db *sql.DB, _ *state) error {
	err := each(ctx, db, `SELECT version, document, hex(sha256), author, created, parent, source, note FROM policies`, nil, func(rows *sql.Rows) error {
		var version, created, parent int64
		var doc, sum, author, source, note string
		if err := rows.Scan(&version, &doc, &sum, &author, &created, &parent, &source, &note); err != nil {
			return err
		}
		s.policies[version] = fmt.Sprint(doc, sum, author, created, parent, source, note)
		s.sources[version] = source
		return nil
	})
	if err != nil {
		return err
	}
	return db.QueryRowContext(ctx, `SELECT version FROM policy_active WHERE scope = ''`).Scan(&s.active)
}

// readChanges checks that the numbers of the changes have no gap.
func (s *state) readChanges(ctx context.Context, db *sql.DB, prev *state) error {
	var n, low, high int64
	err := db.QueryRowContext(ctx, `SELECT count(*), coalesce(min(rv), 0), coalesce(max(rv), 0) FROM changes`).Scan(&n, &low, &high)
	if err != nil {
		return err
	}
	if n != s.rv-s.compact || n > 0 && (low != s.compact+1 || high != s.rv) {
		s.problem("rv has a gap: %d changes from %d to %d, want all from %d to %d", n, low, high, s.compact+1, s.rv)
	}
	since := int64(0)
	if prev != nil {
		since = prev.rv
	}
	return each(ctx, db, `SELECT rv, kind, key FROM changes WHERE rv > ? ORDER BY rv`, []any{since}, func(rows *sql.Rows) error {
		var rv int64
		var kind string
		var key []byte
		if err := rows.Scan(&rv, &kind, &key); err != nil {
			return err
		}
		subject := kind
		if len(key) > 0 {
			subject = idEncoding.EncodeToString(key)
		}
		s.changed[subject] = append(s.changed[subject], rv)
		return nil
	})
}

// readAudit checks the chain from where prev ended, with code of its own.
func (s *state) readAudit(ctx context.Context, db *sql.DB, prev *state) error {
	seq, head := int64(0), []byte(nil)
	if prev != nil {
		seq, head = prev.auditSeq, prev.auditHead
	}
	if seq > 0 {
		var have []byte
		err := db.QueryRowContext(ctx, `SELECT hash FROM audit WHERE seq = ?`, seq).Scan(&have)
		if err != nil || !slices.Equal(have, head) {
			s.problem("audit entry %d is not what it was: %v", seq, err)
		}
	}
	err := each(ctx, db, `SELECT seq, ts, actor, action, target, detail, prev, hash FROM audit WHERE seq > ? ORDER BY seq`, []any{seq}, func(rows *sql.Rows) error {
		var n, ts int64
		var a auditRow
		var before, hash []byte
		if err := rows.Scan(&n, &ts, &a.actor, &a.action, &a.target, &a.detail, &before, &hash); err != nil {
			return err
		}
		if len(head) == 0 {
			head = make([]byte, sha256.Size)
		}
		if n != seq+1 || !slices.Equal(before, head) || !slices.Equal(hash, auditHash(before, n, ts, a)) {
			s.problem("audit chain is broken at entry %d", n)
		}
		seq, head = n, hash
		s.newAudit = append(s.newAudit, a)
		return nil
	})
	if err != nil {
		return err
	}
	if seq != s.auditSeq || !slices.Equal(head, s.auditHead) {
		s.problem("audit log ends at %d, its head is %d", seq, s.auditSeq)
	}
	return nil
}

// auditHash is the formula of docs and of the hub's package audit, written anew.
func auditHash(prev []byte, seq, ts int64, a auditRow) []byte {
	h := sha256.New()
	h.Write([]byte("bauxite audit v1\x00"))
	h.Write(prev)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(seq)))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(ts)))
	for _, f := range []string{a.actor, a.action, a.target, a.detail} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(f))))
		h.Write([]byte(f))
	}
	return h.Sum(nil)
}

// digest is what a watcher in site sees of the mesh, other than itself.
func (s *state) digest(site, self string) string {
	var lines []string
	for _, n := range s.byID {
		if n.served && n.site == site && n.id != self {
			lines = append(lines, peerLine(n.id, n.name, n.ip, n.tags))
		}
	}
	return digest(lines, slices.Collect(maps.Keys(s.denials)), uint64(s.generation), uint64(s.psk))
}

func peerLine(id, name, ip, tags string) string {
	return strings.Join([]string{id, name, ip, tags}, " ")
}

func digest(peers, denials []string, policy, psk uint64) string {
	slices.Sort(peers)
	slices.Sort(denials)
	h := sha256.New()
	for _, l := range append(peers, denials...) {
		fmt.Fprintln(h, l)
	}
	return fmt.Sprintf("%d peers, %d denials (%x), policy %d, mesh key %d", len(peers), len(denials), h.Sum(nil)[:8], policy, psk)
}
