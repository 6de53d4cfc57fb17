// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"context"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/engine"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/snapshot"
)

// loadState reads what the node knew when it ended. Without it, or where it cannot
// be read, the node waits for its hub.
func (n *Node) loadState() *snapshot.Snapshot {
	if n.cfg.StateFile == "" {
		return nil
	}
	s, err := snapshot.Load(n.cfg.StateFile, n.cert.MeshID, n.cert.ID)
	if err != nil {
		n.log.Error("state of before is not used", "err", err)
		return nil
	}
	return s
}

// restore puts into force what loadState read.
func (n *Node) restore(s *snapshot.Snapshot) {
	st := engine.State{PolicyVersion: s.PolicyVersion, Policy: s.Policy}
	for _, p := range s.Peers {
		k := engine.Known{Peer: p.Peer}
		for _, a := range p.Addrs {
			k.Addrs = append(k.Addrs, a.Addr)
		}
		st.Peers = append(st.Peers, k)
	}
	for _, d := range s.Denials {
		st.Denials = append(st.Denials, engine.Denial(d))
	}
	for _, u := range s.Spent {
		n.underlay.spent[u.Uplink] = &used{day: u.Day, bytes: u.Bytes}
	}
	n.rates.restore(s.Rates)
	n.engine.Restore(st)
	n.hub.FromSnapshot = true
	n.log.Info("starting from what was known before", "peers", len(st.Peers), "written", s.Written, "policy", s.PolicyVersion)
}

// takeState is what a restart should know.
func (n *Node) takeState(ctx context.Context) (*snapshot.Snapshot, error) {
	st, err := n.engine.State(ctx)
	if err != nil {
		return nil, err
	}
	if len(st.Peers) == 0 && st.Policy == nil && len(st.Denials) == 0 {
		return nil, nil // the hub has not told us yet
	}
	now := time.Now()
	s := &snapshot.Snapshot{
		MeshID: n.cert.MeshID, Self: n.cert.ID, Written: now, Port: uint16(n.port),
		PolicyVersion: st.PolicyVersion, Policy: st.Policy,
	}
	for _, k := range st.Peers {
		p := snapshot.Peer{Peer: k.Peer}
		for _, a := range k.Addrs {
			p.Addrs = append(p.Addrs, snapshot.Addr{Addr: a, Kind: path.Direct.String(), At: now})
		}
		s.Peers = append(s.Peers, p)
	}
	for _, d := range st.Denials {
		s.Denials = append(s.Denials, snapshot.Denial(d))
	}
	s.Rates = n.rates.take(now)
	n.underlay.mu.Lock()
	defer n.underlay.mu.Unlock()
	for name, bytes := range n.usedLocked(now) {
		s.Spent = append(s.Spent, snapshot.Spent{Uplink: name, Day: snapshot.Day(now), Bytes: bytes})
	}
	return s, nil
}

// lastPort is the port of before: peers look for us there.
func (n *Node) lastPort(s *snapshot.Snapshot) int {
	if n.cfg.Port != 0 || s == nil {
		return n.cfg.Port
	}
	return int(s.Port)
}
