// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/internal/snapshot"
)

// loadState reads the state file of a node that has ended.
func loadState(t *testing.T, m *conduittest.Mesh, dir string, i int) *snapshot.Snapshot {
	t.Helper()
	c := m.Certificate(i)
	s, err := snapshot.Load(stateFile(dir, i), c.MeshID, c.ID)
	if err != nil || s == nil {
		t.Fatalf("state of node%d: %v, %v", i, s, err)
	}
	return s
}

// pacedPaths are node i's direct paths to node j that are paced.
func pacedPaths(t *testing.T, m *conduittest.Mesh, i, j int) (out []conduit.PathDetail) {
	t.Helper()
	id := m.Certificate(j).ID.String()
	for _, p := range status(t, m.Node(i)).Peers {
		for _, d := range p.Paths {
			if p.ID == id && d.Kind == "direct" && d.Pacing != nil {
				out = append(out, d)
			}
		}
	}
	return out
}

// TestRateOverRestart: a node that starts again begins with half of what a path had
// carried, and still looks for the rate.
func TestRateOverRestart(t *testing.T) {
	m, dir := stateMesh(t, 2)
	meet(t, m, 0, 1)
	// Both nodes have the same addresses, and which paths they use first is chance.
	networks := make(map[string][]netip.Prefix) // by uplink; "" has all
	for _, u := range status(t, m.Node(0)).Node.Uplinks {
		for _, text := range u.Addresses {
			a := netip.MustParseAddr(text)
			p, err := a.Prefix(map[bool]int{true: 24, false: 64}[a.Is4()])
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{u.Name, ""} {
				if !slices.Contains(networks[name], p) {
					networks[name] = append(networks[name], p)
				}
			}
		}
	}
	closeNodes(t, m, 0)
	s := loadState(t, m, dir, 0)
	s.Rates = nil
	for name, list := range networks {
		for _, own := range list {
			for _, remote := range networks[""] {
				if own.Bits() == remote.Bits() {
					s.Rates = append(s.Rates, snapshot.Rate{
						Peer: m.Certificate(1).ID, Uplink: name, Network: own, Remote: remote, Rate: 5e6, At: time.Now().Add(-time.Hour),
					})
				}
			}
		}
	}
	if err := snapshot.Save(stateFile(dir, 0), s); err != nil {
		t.Fatal(err)
	}
	m.Restart(t, 0, nil)
	exchange(t, m, 0, 1, "again")
	eventually(t, "a path that is paced", func() bool { return len(pacedPaths(t, m, 0, 1)) > 0 })
	for _, p := range pacedPaths(t, m, 0, 1) {
		if p.Pacing.Rate != 20e6 || p.Pacing.State != conduit.PaceStartUp { // half of 5e6 bytes/s
			t.Errorf("uplink %q to %s begins with %+v", p.Uplink, p.Remote, *p.Pacing)
		}
	}
	closeNodes(t, m, 0)
	if got := loadState(t, m, dir, 0).Rates; len(got) != len(s.Rates) {
		t.Errorf("%d rates are kept, want %d", len(got), len(s.Rates))
	}
}

// TestRateMeasured: what a path carried is in the file when the node ends.
func TestRateMeasured(t *testing.T) {
	m, dir := stateMesh(t, 2)
	meet(t, m, 0, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		p := bytes.Repeat([]byte("b"), 1150)
		for m.Send(ctx, 0, 1, p) == nil && ctx.Err() == nil {
			continue
		}
	})
	wg.Go(func() {
		for {
			if _, err := m.Recv(ctx, 1); err != nil {
				return
			}
		}
	})
	looks := 0
	eventually(t, "a rate that is steady for some reports", func() bool {
		for _, p := range pacedPaths(t, m, 0, 1) {
			if p.Pacing.State == conduit.PaceSteady || p.Pacing.State == conduit.PaceUnlimited {
				looks++
			}
		}
		return looks >= 40
	})
	cancel()
	wg.Wait()
	closeNodes(t, m, 0)
	got := loadState(t, m, dir, 0).Rates
	if len(got) == 0 || got[0].Peer != m.Certificate(1).ID || got[0].Rate < 1e4 || time.Since(got[0].At) > time.Minute {
		t.Errorf("the file has %+v", got)
	}
}
