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

// TestAdmissionsForget: what was read before a write is not remembered after it.
func TestAdmissionsForget(t *testing.T) {
	var a admissions
	id := identity.PeerID{1}
	if _, ok := a.get(id, nil); ok {
		t.Error("an unknown node is known")
	}
	g := a.generation.Load()
	a.put(id, nil, g, Standing{Name: "n"})
	if st, ok := a.get(id, nil); !ok || st.Name != "n" {
		t.Errorf("get = %v, %v", st, ok)
	}
	a.put(id, []byte("s"), g, Standing{Name: "n"})
	a.put(id, nil, g, Standing{Name: "n"})
	if _, ok := a.get(id, []byte("s")); !ok {
		t.Error("the certificate that was admitted is forgotten")
	}
	if _, ok := a.get(id, []byte("other")); ok {
		t.Error("another certificate than the one that was admitted is known")
	}
	a.wrote()
	if _, ok := a.get(id, nil); ok {
		t.Error("a node is known after a write")
	}
	a.put(id, nil, g, Standing{}) // its query began before the write
	if _, ok := a.get(id, nil); ok {
		t.Error("what was read before the write is known after it")
	}
}

// TestAdmitAfterRevoke: from the moment at which RevokeNode returns nobody is
// admitted, however often he was looked up meanwhile.
func TestAdmitAfterRevoke(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s, err := Open(ctx, Config{Path: t.TempDir() + "/a.db", Init: testMeta})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.CreateToken(ctx, Token{ID: "k", MaxUses: 100, Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	var ids []identity.PeerID
	for range 40 {
		n, err := s.Enroll(ctx, newJoin("k", "robot", time.Now()))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, n.ID)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				for _, id := range ids {
					_, _ = s.Admit(ctx, id, nil)
				}
			}
		})
	}
	for _, id := range ids {
		if _, err := s.Admit(ctx, id, nil); err != nil {
			t.Fatalf("before: %v", err)
		}
		if err := s.RevokeNode(ctx, id, "test"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := s.Admit(ctx, id, nil); !errors.Is(err, ErrNodeRevoked) {
				t.Fatalf("admit after the revocation: %v", err)
			}
		}
	}
}
