// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"context"
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
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

// Matrix is a hub, and two nodes behind each kind of NAT.
type Matrix struct {
	w     *world
	nodes [2]map[string]*fleet.Node
}

// NewMatrix makes the hosts behind the named NATs, and makes them members.
func NewMatrix(ctx context.Context, lab *netns.Lab, sys System, kinds ...string) (*Matrix, error) {
	w, err := newWorld(ctx, lab, sys, leg)
	if err != nil {
		return nil, err
	}
	m := &Matrix{w: w}
	short := map[string]string{NATs[0]: "none", NATs[1]: "full", NATs[2]: "port", NATs[3]: "sym"}
	natKind := map[string]netns.NATKind{
		NATs[1]: netns.EndpointIndependent, NATs[2]: netns.PortRestricted, NATs[3]: netns.Symmetric,
	}
	for side := range m.nodes {
		m.nodes[side] = map[string]*fleet.Node{}
		for _, kind := range kinds {
			name := fmt.Sprintf("%s-%c", short[kind], 'a'+side)
			var h *netns.Host
			if kind == "none" {
				h = w.wan.Host(name, leg)
			} else {
				box := lab.NAT(name+"-box", netns.NATConfig{Kind: natKind[kind], Upstream: w.wan, Link: leg})
				h = box.Host(name, netns.Link{PerPacket: true})
			}
			n, err := w.join(ctx, h)
			if err == nil {
				err = copyHome(n.Home, n.Home+".new")
			}
			if err != nil {
				return nil, err
			}
			m.nodes[side][kind] = n
		}
	}
	return m, nil
}

// Cell is one meeting of the matrix.
type Cell struct {
	A, B string // kinds of NAT
	// Cold is the time from the first packet to its answer when neither has heard
	// of the other before; First is the kind of path then.
	Cold  time.Duration
	First string
	// Path is the kind that it came to, Settled when, counted from the first
	// answer. A direct path is waited for where there can be one.
	Path    string
	Settled time.Duration
	// Known is the same as Cold when the second was restarted, and when the first
	// was.
	Known []time.Duration
}

// Meet measures a cell. The first of the pair sends.
func (m *Matrix) Meet(ctx context.Context, a, b string) (Cell, error) {
	c := Cell{A: a, B: b}
	p := &pair{nodes: [2]*fleet.Node{m.nodes[0][a], m.nodes[1][b]}}
	defer p.close()
	for i, n := range p.nodes {
		p.hosts[i] = n.Host
		if err := copyHome(n.Home+".new", n.Home); err != nil {
			return c, err
		}
		if err := n.Start(ctx); err != nil {
			return c, err
		}
		defer n.Stop()
	}
	if err := p.ready(ctx); err != nil {
		return c, err
	}
	if err := p.echo(); err != nil {
		return c, err
	}
	var err error
	if c.Cold, err = m.first(ctx, p); err != nil {
		return c, err
	}
	answered := time.Now()
	if c.First, err = p.pathTo(ctx, append(relays, fleet.PathDirect)...); err != nil {
		return c, err
	}
	want := relays
	if Direct(a, b) {
		want = []string{fleet.PathDirect}
	}
	settle, cancel := context.WithTimeout(ctx, 10*time.Second)
	c.Path, err = p.pathTo(settle, want...)
	cancel()
	if err != nil && ctx.Err() != nil {
		return c, err
	}
	c.Settled = time.Since(answered)
	for _, again := range []int{1, 0} {
		n := p.nodes[again]
		n.Stop()
		if err := n.Start(ctx); err != nil {
			return c, err
		}
		if err := p.ready(ctx); err != nil {
			return c, err
		}
		took, err := m.first(ctx, p)
		if err != nil {
			return c, err
		}
		c.Known = append(c.Known, took)
	}
	return c, nil
}

func (m *Matrix) first(ctx context.Context, p *pair) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	took, err := p.answer(ctx)
	if err != nil {
		return took, fmt.Errorf("%w\n%s", err, p.tails())
	}
	return took, nil
}
