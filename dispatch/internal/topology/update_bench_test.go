// SPDX-License-Identifier: Apache-2.0

package topology_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/topology"
)

// BenchmarkNodeUpdate is one change of one node, from the call to the last of the
// 200 watchers of its site, in a small fleet and in a large one: database, audit
// chain, encoding and rings. What is outside of the site costs nothing.
func BenchmarkNodeUpdate(b *testing.B) {
	for _, fleet := range []int{1000, 10_000} {
		b.Run(strconv.Itoa(fleet), func(b *testing.B) { benchmarkUpdate(b, fleet) })
	}
}

func benchmarkUpdate(b *testing.B, fleet int) {
	const site = 200
	ctx := context.Background()
	var feed *topology.Feed
	st, err := store.Open(ctx, store.Config{
		Path: b.TempDir() + "/bench.db", Encode: topology.EncodeChange, Publish: func(e []store.Event) { feed.Commit(e) },
		Init: store.Meta{MeshID: "m", CIDR: netip.MustParsePrefix("10.9.0.0/16"), CIDR6: netip.MustParsePrefix("fd00::/64")},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	feed = topology.NewFeed(st, st.Meta().Epoch, store.State{}, topology.Limits{})
	nodes := make([]store.Node, fleet)
	var joins sync.WaitGroup
	for s := range fleet / site {
		token := store.Token{ID: "k" + strconv.Itoa(s), MaxUses: site, Expires: time.Now().Add(time.Hour), Site: "site" + strconv.Itoa(s)}
		if err := st.CreateToken(ctx, token); err != nil {
			b.Fatal(err)
		}
		for i := range site {
			joins.Go(func() {
				n, err := st.Enroll(ctx, machine(token.ID))
				if err != nil {
					b.Error(err)
				}
				nodes[s*site+i] = n
			})
		}
		joins.Wait()
	}
	watches := make([]*topology.Watch, fleet)
	for i := range nodes {
		if watches[i], err = feed.Start(ctx, topology.Request{Node: nodes[i].ID, Site: nodes[i].Site}); err != nil {
			b.Fatal(err)
		}
	}
	var buf []topology.Event
	tags := [][]string{{"a"}, {"b"}}
	for i := 0; b.Loop(); i++ {
		if _, err := st.Update(ctx, nodes[0].ID, store.Edit{Tags: &tags[i%2]}); err != nil {
			b.Fatal(err)
		}
		for _, w := range watches[:site] {
			got, err := w.Next(ctx, buf, nil)
			if err != nil || len(got) != 1 {
				b.Fatal(errors.Join(err, errors.New("not the one change")))
			}
			buf = got[:0]
		}
	}
}

func machine(token string) store.Join {
	key := func(n int) []byte {
		k := make([]byte, n)
		_, _ = rand.Read(k)
		return k
	}
	now := time.Now()
	return store.Join{TokenID: token, Ed25519: key(32), X25519: key(32), Name: "robot", Serial: key(16), Now: now, NotAfter: now.Add(time.Hour)}
}
