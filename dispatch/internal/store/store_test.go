// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testMeta = Meta{
	MeshID: "m", CIDR: netip.MustParsePrefix("10.9.0.0/16"), CIDR6: netip.MustParsePrefix("fd00::/64"),
}

func all(*Event) bool { return true }

type fixture struct {
	*Store
	path string

	mu     sync.Mutex
	events []Event
}

func open(t *testing.T, path string, m Meta) *fixture {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "a b?#%.db") // characters that a DSN could trip over
	}
	f := &fixture{path: path}
	var err error
	f.Store, err = Open(context.Background(), Config{
		Path: path, Init: m,
		Encode: func(rv uint64, c Change) ([]byte, error) { return fmt.Appendf(nil, "%d/%d", rv, c.Policy), nil },
		Publish: func(e []Event) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.events = append(f.events, e...)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func (f *fixture) token(t *testing.T, id string, uses uint32, life time.Duration, tags ...string) {
	t.Helper()
	err := f.CreateToken(context.Background(), Token{ID: id, MaxUses: uses, Expires: time.Now().Add(life), Tags: tags, CreatedBy: "test"})
	if err != nil {
		t.Fatal(err)
	}
}

func newJoin(token, name string, now time.Time) Join {
	key := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return b
	}
	return Join{TokenID: token, Ed25519: key(32), X25519: key(32), Name: name, Serial: key(16), Now: now, NotAfter: now.Add(time.Hour)}
}

func testReopen(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 9, time.Hour, "b", "a")
	n, err := f.Enroll(ctx, newJoin("k", "x", time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(n.Tags, []string{"a", "b"}) {
		t.Errorf("tags = %v, want them sorted", n.Tags)
	}
	fi, err := os.Stat(f.path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("database file: %v, %v; want mode 0600", fi.Mode(), err)
	}
	meta := f.Meta()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := f.RevokeToken(ctx, "k"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close = %v, want net.ErrClosed", err)
	}
	f = open(t, f.path, Meta{MeshID: "ignored"})
	if f.Meta() != meta || meta.Epoch == 0 {
		t.Errorf("meta = %+v, want %+v", f.Meta(), meta)
	}
	snap, err := f.Snapshot(ctx, "", nil)
	if err != nil || snap.RV != 1 || len(snap.Nodes) != 1 || snap.Nodes[0].ID != n.ID || !slices.Equal(snap.Nodes[0].Tags, n.Tags) {
		t.Errorf("snapshot = %+v, %v", snap, err)
	}
}

func testEnroll(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	now := time.Now()
	f.token(t, "one", 1, time.Hour)
	f.token(t, "two", 2, time.Hour, "late")
	f.token(t, "old", 1, -time.Second)
	f.token(t, "gone", 1, time.Hour)
	if err := f.RevokeToken(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	first := newJoin("one", "bot", now)
	want, err := f.Enroll(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	with := func(j Join, change func(*Join)) Join {
		j.Serial = newJoin("", "", now).Serial
		change(&j)
		return j
	}
	for _, tt := range []struct {
		name string
		join Join
		want error
	}{
		{"again", with(first, func(*Join) {}), nil},
		{"again_later", with(first, func(j *Join) { j.Now = now.Add(2 * time.Hour) }), ErrTokenExpired},
		{"again_wrong_secret", with(first, func(j *Join) { j.SecretHash[0] = 1 }), ErrTokenInvalid},
		{"used_up", newJoin("one", "bot", now), ErrTokenUsedUp},
		{"expired", newJoin("old", "bot", now), ErrTokenExpired},
		{"revoked", newJoin("gone", "bot", now), ErrTokenRevoked},
		{"unknown", newJoin("none", "bot", now), ErrTokenInvalid},
		{"ed25519_in_use", with(newJoin("two", "bot", now), func(j *Join) { j.Ed25519 = first.Ed25519 }), ErrKeyInUse},
		{"x25519_in_use", with(newJoin("two", "bot", now), func(j *Join) { j.X25519 = first.X25519 }), ErrKeyInUse},
		{"other_token", with(first, func(j *Join) { j.TokenID = "two" }), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := f.Enroll(ctx, tt.join)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error = %v, want %v", err, tt.want)
			}
			if err == nil && (n.ID != want.ID || n.Virtual4 != want.Virtual4 || n.Name != want.Name) {
				t.Errorf("node = %+v, want %+v", n, want)
			}
		})
	}
	nodes, err := f.ListNodes(ctx)
	if err != nil || len(nodes) != 1 || !slices.Equal(nodes[0].Tags, []string{"late"}) {
		t.Errorf("nodes = %+v, %v; want one with the tag of its second token", nodes, err)
	}
	// Refused joins left the second token with one use.
	if _, err := f.Enroll(ctx, newJoin("two", "bot", now)); err != nil {
		t.Errorf("second use: %v", err)
	}
	if err := f.RevokeNode(ctx, want.ID, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enroll(ctx, with(first, func(*Join) {})); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("revoked node = %v, want ErrNodeRevoked", err)
	}
	if _, err := f.Admit(ctx, want.ID, first.Serial); !errors.Is(err, ErrNodeRevoked) {
		t.Errorf("admit = %v, want ErrNodeRevoked", err)
	}
}

func testNames(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 100, time.Hour)
	long := "a123456789b123456789c123456789d123456789e123456789f123456789xyz"
	for _, tt := range []struct{ ask, want string }{
		{"bot", "bot"},
		{"bot-2", "bot-2"},
		{"bot", "bot-3"},
		{"bot", "bot-4"},
		{"hub", "hub-2"},
		{long, long},
		{long, long[:61] + "-2"},
	} {
		n, err := f.Enroll(ctx, newJoin("k", tt.ask, time.Now()))
		if err != nil || n.Name != tt.want || !identity.ValidName(n.Name) {
			t.Errorf("name for %q = %q, %v; want %q", tt.ask, n.Name, err, tt.want)
		}
	}
}

// TestIPAM compares the allocator with a plain set of addresses.
func testIPAM(t *testing.T, open opener) {
	ctx := context.Background()
	m := testMeta
	m.CIDR = netip.MustParsePrefix("10.9.9.32/28")
	f := open(t, "", m)
	f.token(t, "k", 100_000, 1000*time.Hour)
	const first, last = 2, 14 // .32 is the network, .33 the hub, .47 the broadcast address
	type held struct {
		id    identity.PeerID
		index int
	}
	var nodes []held
	freeAt := make(map[int]time.Time)
	now := time.Now()
	rng := mrand.New(mrand.NewPCG(1, 2))
	for step := range 400 {
		now = now.Add(time.Duration(rng.IntN(4)) * time.Hour)
		if rng.IntN(3) == 0 && len(nodes) > 0 {
			i := rng.IntN(len(nodes))
			if err := f.Delete(ctx, nodes[i].id, "delete", now); err != nil {
				t.Fatal(err)
			}
			freeAt[nodes[i].index] = now.Add(quarantine)
			nodes = slices.Delete(nodes, i, i+1)
			continue
		}
		want := 0
		for i := first; i <= last && want == 0; i++ {
			taken := slices.ContainsFunc(nodes, func(h held) bool { return h.index == i })
			if !taken && !freeAt[i].After(now) {
				want = i
			}
		}
		n, err := f.Enroll(ctx, newJoin("k", "n", now))
		if want == 0 {
			if !errors.Is(err, ErrExhausted) {
				t.Fatalf("step %d: error = %v, want ErrExhausted", step, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		w4, w6 := m.Addresses(uint32(want))
		if n.Virtual4 != w4 || n.Virtual6 != w6 {
			t.Fatalf("step %d: address = %v %v, want %v %v", step, n.Virtual4, n.Virtual6, w4, w6)
		}
		nodes = append(nodes, held{n.ID, want})
	}
}

func TestCheckPrefixes(t *testing.T) {
	for _, tt := range []struct {
		v4, v6 string
		ok     bool
	}{
		{"10.66.0.0/16", "fd00::/64", true},
		{"10.0.0.0/8", "fd00::/104", true},
		{"10.0.0.0/8", "fd00::/105", false},
		{"10.66.0.1/16", "fd00::/64", false},
		{"10.66.0.0/29", "fd00::/64", false},
		{"fd00::/64", "fd00::/64", false},
		{"10.66.0.0/16", "10.66.0.0/16", false},
		{"10.66.0.0/16", "fd00::1/64", false},
	} {
		err := CheckPrefixes(netip.MustParsePrefix(tt.v4), netip.MustParsePrefix(tt.v6))
		if (err == nil) != tt.ok {
			t.Errorf("CheckPrefixes(%s, %s) = %v", tt.v4, tt.v6, err)
		}
	}
}

// TestWriter shows that a failed operation leaves no trace in a batch of good
// ones, and that rv has no gaps and is published in order.
func testWriter(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	f.token(t, "k", 1000, time.Hour)
	bad := errors.New("bad")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if i%4 == 0 {
				err := f.update(ctx, func(tx *tx) error {
					if _, err := tx.addPolicy([]byte("x")); err != nil {
						return err
					}
					return bad
				})
				if !errors.Is(err, bad) {
					t.Errorf("error = %v, want bad", err)
				}
				return
			}
			if _, err := f.Enroll(ctx, newJoin("k", "n", time.Now())); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, _, err := f.Policy(ctx, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("policy = %v, want none", err)
	}
	f.mu.Lock()
	events := slices.Clone(f.events)
	f.mu.Unlock()
	if len(events) != 150 {
		t.Fatalf("%d events, want 150", len(events))
	}
	stored, _, err := f.Since(ctx, 0, all)
	if err != nil || len(stored) != len(events) {
		t.Fatalf("%d stored events, %v", len(stored), err)
	}
	for i := range events {
		if events[i].RV != uint64(i+1) || stored[i].RV != events[i].RV || string(stored[i].Encoded) != string(events[i].Encoded) {
			t.Fatalf("event %d = %v, stored %v", i, events[i], stored[i])
		}
	}
	nodes, err := f.ListNodes(ctx)
	if err != nil || len(nodes) != 150 {
		t.Errorf("%d nodes, %v", len(nodes), err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.Enroll(canceled, newJoin("k", "n", time.Now())); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled = %v", err)
	}
}

func testCompact(t *testing.T, open opener) {
	ctx := context.Background()
	f := open(t, "", testMeta)
	for range 10 {
		if _, err := f.AddPolicy(ctx, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Compact(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if e, st, err := f.Since(ctx, 7, all); err != nil || len(e) != 3 || st.Policy != 10 || string(e[2].Encoded) != "10/10" {
		t.Errorf("since 7 = %v, %+v, %v", e, st, err)
	}
	for _, rv := range []uint64{0, 6, 11} {
		if _, _, err := f.Since(ctx, rv, all); !errors.Is(err, ErrCompacted) {
			t.Errorf("since %d = %v, want ErrCompacted", rv, err)
		}
	}
	if err := f.Compact(ctx, 100); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Since(ctx, 7, all); err != nil {
		t.Errorf("compacting less must not take anything back: %v", err)
	}
	if err := f.InitPolicy(ctx, []byte("other")); err != nil {
		t.Fatal(err)
	}
	if v, doc, err := f.Policy(ctx, 0); err != nil || v != 10 || string(doc) != "{}" {
		t.Errorf("policy = %d %q, %v", v, doc, err)
	}
}
