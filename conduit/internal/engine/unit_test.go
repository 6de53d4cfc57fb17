// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"encoding/binary"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
)

func idOf(i int) (id identity.PeerID) {
	binary.BigEndian.PutUint64(id[:], uint64(i)) //nolint:gosec // any number
	id[31] = 1
	return id
}

func pathOf(bind int) dataplane.Path {
	return dataplane.Path{Bind: bind, Remote: netip.MustParseAddrPort("192.0.2.9:1")}
}

// TestDueHeap: whatever is scheduled, moved and removed, those that are due come
// out, the earliest first, and nobody is forgotten.
func TestDueHeap(t *testing.T) {
	start := time.Unix(1e9, 0)
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // reproducible
		e := &Engine{}
		peers := make([]*peer, 20)
		want := map[*peer]time.Time{}
		for i := range peers {
			peers[i] = &peer{e: e, dueIndex: -1}
		}
		now := start
		for range 300 {
			p := peers[r.IntN(len(peers))]
			switch at := now.Add(time.Duration(r.IntN(2000)-500) * time.Millisecond); r.IntN(8) {
			case 0:
				e.unschedule(p)
				delete(want, p)
			case 1:
				e.touch(p)
				want[p] = time.Time{}
			case 2:
				now = now.Add(time.Duration(r.IntN(400)) * time.Millisecond)
			default:
				e.schedule(p, at)
				if old, ok := want[p]; !ok || at.Before(old) {
					want[p] = at
				}
			}
			if len(e.due) != len(want) {
				t.Fatalf("seed %d: %d in the heap, want %d", seed, len(e.due), len(want))
			}
			var first time.Time
			for i, p := range e.due {
				if p.dueIndex != i || !p.dueAt.Equal(want[p]) {
					t.Fatalf("seed %d: place %d holds one of place %d, due %v, want %v", seed, i, p.dueIndex, p.dueAt, want[p])
				}
				if i == 0 || want[p].Before(first) {
					first = want[p]
				}
			}
			if len(e.due) > 0 && !e.due[0].dueAt.Equal(first) {
				t.Fatalf("seed %d: the first is due %v, want %v", seed, e.due[0].dueAt, first)
			}
		}
	}
}

// TestDenials: each kind counts, until it ends, and survives a restart.
func TestDenials(t *testing.T) {
	now := time.Unix(1e9, 0)
	key := func(b byte) []byte { return slices.Repeat([]byte{b}, 32) }
	list := []Denial{
		{ID: idOf(1)},
		{ID: idOf(2), Until: now.Add(time.Minute)},
		{ID: idOf(3), Until: now},
		{Ed25519: key(4)},
		{Ed25519: key(5), Until: now.Add(time.Minute)},
		{Serial: []byte{0, 0, 6}},
		{Serial: []byte{7}, Until: now.Add(time.Minute)},
		{},
	}
	var d denials
	if d.peer(idOf(1), key(4), now) || len(d.list(now)) != 0 {
		t.Error("the zero value denies")
	}
	d.add(list)
	check := func(what string, d *denials, now time.Time, timed bool) {
		t.Helper()
		for _, c := range []struct {
			name string
			got  bool
			want bool
		}{
			{"a node", d.peer(idOf(1), nil, now), true},
			{"a node for a time", d.peer(idOf(2), nil, now), timed},
			{"a node until now", d.peer(idOf(3), nil, now), false},
			{"a key", d.peer(idOf(9), key(4), now), true},
			{"a key for a time", d.peer(idOf(9), key(5), now), timed},
			{"another", d.peer(idOf(9), key(9), now), false},
			{"nobody", d.peer(identity.PeerID{}, nil, now), false},
		} {
			if c.got != c.want {
				t.Errorf("%s: %s: denied %v, want %v", what, c.name, c.got, c.want)
			}
		}
		for _, c := range []struct {
			serial int64
			want   bool
		}{{6, true}, {7, timed}, {8, false}} {
			cert := &identity.Certificate{ID: idOf(9), Ed25519: key(9), Serial: big.NewInt(c.serial)}
			if got := d.certificate(cert, now); got != c.want {
				t.Errorf("%s: serial %d: denied %v, want %v", what, c.serial, got, c.want)
			}
		}
	}
	check("fresh", &d, now, true)
	check("later", &d, now.Add(time.Minute), false)
	var restored denials
	restored.add(d.list(now))
	check("restored", &restored, now, true)
	check("restored, later", &restored, now.Add(time.Minute), false)
	if n := len(d.list(now.Add(time.Hour))); n != 3 {
		t.Errorf("%d denials are kept for good, want 3", n)
	}
}
