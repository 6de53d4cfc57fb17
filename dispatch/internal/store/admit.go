// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// maxAdmitted bounds how many nodes are remembered.
const maxAdmitted = 1 << 17

// admissions remembers who was admitted since the last write. A node that connects
// is looked up four times within moments, and where a whole fleet comes back these
// queries are most of what the database has to do.
type admissions struct {
	// generation counts the commits. What was read before one of them says nothing
	// after it.
	generation atomic.Uint64

	mu    sync.Mutex // guards known
	known map[identity.PeerID]admitted
}

type admitted struct {
	generation uint64
	standing   Standing
	serial     string // of the certificate; empty where none was asked for
}

// wrote forgets everybody. The writer calls it after each commit and before it
// answers, so that whoever was told of a revocation finds nothing older.
func (a *admissions) wrote() { a.generation.Add(1) }

// get returns what is known of the bearer of a certificate; a nil serial asks for
// the node alone.
func (a *admissions) get(id identity.PeerID, serial []byte) (Standing, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.known[id]
	return k.standing, ok && k.generation == a.generation.Load() && (len(serial) == 0 || k.serial == string(serial))
}

// put remembers what was read after generation was.
func (a *admissions) put(id identity.PeerID, serial []byte, generation uint64, st Standing) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil || len(a.known) >= maxAdmitted {
		a.known = make(map[identity.PeerID]admitted)
	}
	if k, ok := a.known[id]; ok && k.generation == generation && len(serial) == 0 {
		return // it knows more already
	}
	a.known[id] = admitted{generation, st, string(serial)}
}

// Admit reports whether the bearer of a certificate is a node in good standing. A
// nil serial asks for the node alone. Errors: ErrNotFound, ErrNodeRevoked,
// ErrNodeLocked.
func (s *Store) Admit(ctx context.Context, id identity.PeerID, serial []byte) (Standing, error) {
	if st, ok := s.admissions.get(id, serial); ok {
		return st, nil
	}
	generation := s.admissions.generation.Load()
	st, err := s.admit(ctx, id, serial)
	if err == nil {
		s.admissions.put(id, serial, generation, st)
	}
	return st, err
}

func (s *Store) admit(ctx context.Context, id identity.PeerID, serial []byte) (Standing, error) {
	if serial == nil {
		serial = []byte{}
	}
	r, err := s.rq.Admit(ctx, db.AdmitParams{ID: id[:], Serial: serial})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Standing{}, fmt.Errorf("node %s: %w", id.Short(), ErrNotFound)
	case err != nil:
		return Standing{}, fmt.Errorf("look up node: %w", err)
	case r.State != string(Active) || r.RevokedAt != 0 || r.Denied != 0:
		return Standing{}, ErrNodeRevoked
	case r.Locked != 0:
		return Standing{}, ErrNodeLocked
	}
	return Standing{Name: r.Name, Site: r.Site, ServerKey: r.KeyOrigin == "server"}, nil
}
