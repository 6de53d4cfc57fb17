// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// NATs are the kinds of the matrix, by name; "none" is a public host.
var NATs = []string{"none", netns.EndpointIndependent.String(), netns.PortRestricted.String(), netns.Symmetric.String()}

// Direct tells whether two peers behind such NATs can reach each other directly:
// a symmetric one cannot be foretold, so the other must let strangers in.
func Direct(a, b string) bool {
	hard := func(k string) bool { return k == netns.Symmetric.String() || k == netns.PortRestricted.String() }
	sym := netns.Symmetric.String()
	return (a != sym || !hard(b)) && (b != sym || !hard(a))
}

// Matrix is a hub with pairs of robots behind NATs.
type Matrix struct {
	w     *world.World
	pairs int
}

// NewMatrix makes the hub.
func NewMatrix(ctx context.Context, lab *netns.Lab, sys System) (*Matrix, error) {
	w, err := world.New(ctx, lab, sys, leg)
	return &Matrix{w: w}, err
}

// Meeting is a pair of robots that are members and have not run yet.
type Meeting struct {
	a, b  string
	nodes [2]*fleet.Node
}

// Prepare makes two robots behind such NATs. Each meeting has its own: a node that
// starts again and again is asked by the hub to wait.
func (m *Matrix) Prepare(ctx context.Context, a, b string) (Meeting, error) {
	t := Meeting{a: a, b: b}
	m.pairs++
	for side, kind := range []string{a, b} {
		name := fmt.Sprintf("robot%d%c", m.pairs, 'a'+side)
		var h *netns.Host
		if kind == NATs[0] {
			h = m.w.WAN.Host(name, leg)
		} else {
			box := m.w.Lab.NAT(name+"-nat", netns.NATConfig{Kind: natKinds[kind], Upstream: m.w.WAN, Link: leg})
			h = box.Host(name, netns.Link{PerPacket: true})
		}
		var err error
		if t.nodes[side], err = m.w.Join(ctx, h); err != nil {
			return t, err
		}
	}
	return t, nil
}

var natKinds = map[string]netns.NATKind{
	NATs[1]: netns.EndpointIndependent, NATs[2]: netns.PortRestricted, NATs[3]: netns.Symmetric,
}

// Cell is one meeting of the matrix.
type Cell struct {
	A, B string // kinds of NAT
	// Cold is the time from the first packet to its answer when neither has heard
	// of the other before; First is the kind of path then.
	Cold  time.Duration
	First string
	// Path is the kind that it came to, Settled when, counted from the first
	// answer: a direct path is waited for where there can be one, else TURN.
	Path    string
	Settled time.Duration
	// Known is the same as Cold when the second was restarted, and when the first
	// was.
	Known []time.Duration
}

// rest is how long a session stands before one end is restarted.
const rest = 1500 * time.Millisecond

// Meet measures a cell. The first of the pair sends.
func (t Meeting) Meet(ctx context.Context) (Cell, error) {
	c := Cell{A: t.a, B: t.b}
	p := &world.Pair{Nodes: t.nodes}
	defer p.Close()
	for i, n := range p.Nodes {
		p.Hosts[i] = n.Host
		if err := n.Start(ctx); err != nil {
			return c, err
		}
		defer n.Stop()
	}
	if err := p.Ready(ctx); err != nil {
		return c, err
	}
	if err := p.Echo(); err != nil {
		return c, err
	}
	var err error
	if c.Cold, err = p.First(ctx); err != nil {
		return c, err
	}
	answered := time.Now()
	if c.First, err = p.PathTo(ctx, append(world.Relays, fleet.PathDirect)...); err != nil {
		return c, err
	}
	want := fleet.PathTurn // ranks before the hub's stream
	if Direct(t.a, t.b) {
		want = fleet.PathDirect
	}
	settle, cancel := context.WithTimeout(ctx, 8*time.Second)
	c.Path, err = p.PathTo(settle, want)
	cancel()
	if err != nil && ctx.Err() != nil {
		return c, err
	}
	c.Settled = time.Since(answered)
	for _, again := range []int{1, 0} {
		if err := world.Pause(ctx, rest); err != nil {
			return c, err
		}
		n := p.Nodes[again]
		n.Stop()
		if err := n.Start(ctx); err != nil {
			return c, err
		}
		if err := p.Ready(ctx); err != nil {
			return c, err
		}
		took, err := p.First(ctx)
		if err != nil {
			return c, err
		}
		c.Known = append(c.Known, took)
	}
	return c, nil
}
