// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// BenchmarkEnroll is a join as the store sees it, with 64 machines at a time: what
// shares a commit shares its fsync.
func BenchmarkEnroll(b *testing.B) {
	ctx := context.Background()
	s, err := Open(ctx, Config{Path: b.TempDir() + "/bench.db", Init: testMeta})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.CreateToken(ctx, Token{ID: "k", MaxUses: 1 << 30, Expires: time.Now().Add(time.Hour), Tags: []string{"arm"}}); err != nil {
		b.Fatal(err)
	}
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range work {
				if _, err := s.Enroll(ctx, newJoin("k", "robot", time.Now())); err != nil && !errors.Is(err, ErrExhausted) {
					b.Error(err)
				}
			}
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
}

// BenchmarkAdmit is what the hub asks the store about a node at each call.
func BenchmarkAdmit(b *testing.B) {
	ctx := context.Background()
	s, err := Open(ctx, Config{Path: b.TempDir() + "/bench.db", Init: testMeta})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.CreateToken(ctx, Token{ID: "k", MaxUses: 1 << 30, Expires: time.Now().Add(time.Hour)}); err != nil {
		b.Fatal(err)
	}
	var id identity.PeerID
	for range 1000 {
		n, err := s.Enroll(ctx, newJoin("k", "robot", time.Now()))
		if err != nil {
			b.Fatal(err)
		}
		id = n.ID
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Admit(ctx, id, nil); err != nil {
			b.Fatal(err)
		}
	}
}
