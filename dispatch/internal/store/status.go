// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store/internal/db"
)

// statusPage is how many rows of statuses are read at once.
const statusPage = 512

// Status is the newest report of a node as it was sampled.
type Status struct {
	Node    identity.PeerID
	Sampled time.Time
	// Report is whatever the caller wants to find again.
	Report []byte
}

// SaveStatuses keeps all of batch, in one transaction, in place of what it has of
// the same nodes. Nodes that are no more are left out. Nobody asked for this, so it
// is not audited, and watchers hear nothing of it.
func (s *Store) SaveStatuses(ctx context.Context, batch []Status) error {
	return s.update(ctx, func(t *tx) error {
		for i := range batch {
			b := &batch[i]
			err := t.q.SaveStatus(bg, db.SaveStatusParams{NodeID: b.Node[:], Sampled: b.Sampled.UnixMicro(), Report: b.Report})
			if err != nil {
				return fmt.Errorf("keep node status: %w", err)
			}
		}
		return nil
	})
}

// Statuses calls f for each status that is kept, until it returns an error, which
// it returns.
func (s *Store) Statuses(ctx context.Context, f func(Status) error) error {
	after := []byte{}
	for {
		rows, err := s.rq.StatusesAfter(ctx, db.StatusesAfterParams{NodeID: after, Limit: statusPage})
		if err != nil {
			return fmt.Errorf("read node statuses: %w", classify(err))
		}
		for _, r := range rows {
			id, err := peerID(r.NodeID)
			if err != nil {
				return err
			}
			if err := f(Status{Node: id, Sampled: time.UnixMicro(r.Sampled), Report: r.Report}); err != nil {
				return err
			}
		}
		if len(rows) < statusPage {
			return nil
		}
		after = rows[len(rows)-1].NodeID
	}
}

// CheckWritable writes a row, with what it holds already, and waits until it is on
// disk. It may take as long as the disk does, whatever ctx says.
func (s *Store) CheckWritable(ctx context.Context) error {
	return s.update(ctx, func(t *tx) error { return t.q.TouchMeta(bg) })
}

// CheckWriter waits for the writer goroutine to answer, be it with an error of the
// disk. Like CheckWritable it may outlast ctx.
func (s *Store) CheckWriter(ctx context.Context) error {
	err := s.update(ctx, func(*tx) error { return nil })
	if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
		return err
	}
	return nil
}

// Size returns the bytes of the database file and of its write-ahead log.
func (s *Store) Size() (file, wal int64) {
	size := func(name string) int64 {
		fi, err := os.Stat(name)
		if err != nil {
			return 0
		}
		return fi.Size()
	}
	return size(s.path), size(s.path + "-wal")
}
