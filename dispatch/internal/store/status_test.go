// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// enrollMany enrols n nodes, many in a commit.
func enrollMany(t *testing.T, f *fixture, n int) []identity.PeerID {
	t.Helper()
	f.token(t, "many", uint32(n), time.Hour)
	ids := make([]identity.PeerID, n)
	var wg sync.WaitGroup
	gate := make(chan struct{}, 64)
	for i := range n {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			node, err := f.Enroll(context.Background(), newJoin("many", "n", time.Now()))
			if err != nil {
				t.Error(err)
			}
			ids[i] = node.ID
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return ids
}

func TestStatuses(t *testing.T) {
	ctx := t.Context()
	f := open(t, "", testMeta)
	ids := enrollMany(t, f, statusPage+3)
	before, err := f.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	published := len(f.events)
	at := time.UnixMicro(1_700_000_000_000_001)
	save := func(text string, n int) {
		t.Helper()
		var batch []Status
		for i, id := range ids[:n] {
			batch = append(batch, Status{id, at, fmt.Appendf(nil, "%s-%d", text, i)})
		}
		batch = append(batch, Status{identity.PeerID{1}, at, []byte("nobody")})
		if err := f.SaveStatuses(ctx, batch); err != nil {
			t.Fatal(err)
		}
	}
	save("first", len(ids))
	save("second", 2)
	if err := f.Delete(ctx, ids[1], "delete", time.Now()); err != nil {
		t.Fatal(err)
	}
	got := map[identity.PeerID]Status{}
	err = f.Statuses(ctx, func(st Status) error {
		if _, twice := got[st.Node]; twice {
			t.Errorf("%s comes twice", st.Node.Short())
		}
		got[st.Node] = st
		return nil
	})
	if err != nil || len(got) != len(ids)-1 {
		t.Fatalf("%d statuses, want %d: %v", len(got), len(ids)-1, err)
	}
	for i, want := range map[int]string{0: "second-0", 2: "first-2", len(ids) - 1: fmt.Sprintf("first-%d", len(ids)-1)} {
		if st := got[ids[i]]; string(st.Report) != want || !st.Sampled.Equal(at) {
			t.Errorf("status %d is %q of %v, want %q", i, st.Report, st.Sampled, want)
		}
	}
	stop := errors.New("enough")
	if err := f.Statuses(ctx, func(Status) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Statuses returned %v", err)
	}
	after, err := f.State(ctx)
	// Only the deletion is a change, and only it is audited.
	if err != nil || after.RV != before.RV+1 || after.AuditSeq != before.AuditSeq+1 || len(f.events) != published+1 {
		t.Errorf("rv %d, audit %d after %d, %d: %v", after.RV, after.AuditSeq, before.RV, before.AuditSeq, err)
	}
}

func TestStoreChecks(t *testing.T) {
	ctx := t.Context()
	f := open(t, "", testMeta)
	for _, check := range []func(context.Context) error{f.CheckWritable, f.CheckWriter} {
		if err := check(ctx); err != nil {
			t.Error(err)
		}
	}
	if file, wal := f.Size(); file <= 0 || wal <= 0 {
		t.Errorf("the database has %d bytes, its log %d", file, wal)
	}
	if _, err := f.write.ExecContext(ctx, "PRAGMA query_only = 1"); err != nil {
		t.Fatal(err)
	}
	if err := f.CheckWritable(ctx); !errors.Is(err, ErrReadOnly) {
		t.Errorf("CheckWritable on what cannot be written: %v", err)
	}
	if err := f.CheckWriter(ctx); err != nil {
		t.Errorf("CheckWriter where the disk is to blame: %v", err)
	}
	dead, cancel := context.WithCancel(ctx)
	cancel()
	if err := f.CheckWriter(dead); !errors.Is(err, context.Canceled) {
		t.Errorf("CheckWriter: %v, want the context's error", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, check := range []func(context.Context) error{f.CheckWritable, f.CheckWriter} {
		if err := check(ctx); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// BenchmarkSaveStatuses is one transaction of a sampling of the fleet.
func BenchmarkSaveStatuses(b *testing.B) {
	s, err := Open(b.Context(), Config{Path: filepath.Join(b.TempDir(), "db"), Init: testMeta})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.CreateToken(b.Context(), Token{ID: "many", MaxUses: statusPage, Expires: time.Now().Add(time.Hour)}); err != nil {
		b.Fatal(err)
	}
	batch := make([]Status, statusPage)
	for i := range batch {
		n, err := s.Enroll(b.Context(), newJoin("many", "n", time.Now()))
		if err != nil {
			b.Fatal(err)
		}
		batch[i] = Status{Node: n.ID, Sampled: time.Now(), Report: make([]byte, 200)}
	}
	for b.Loop() {
		if err := s.SaveStatuses(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
}
