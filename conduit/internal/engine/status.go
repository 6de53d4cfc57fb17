// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
)

// PeerStatus is what the engine knows of one peer.
type PeerStatus struct {
	Info   *registry.Peer
	Online bool
	// State is idle, handshake, checking, connected or silent.
	State string
	// PathType is none, direct, turn, peer-relay or hub-relay.
	PathType string
	Remote   netip.AddrPort
	RTT      time.Duration
	Cipher   string
	// Reason says why there is no path; empty where none was tried.
	Reason   string
	Since    time.Time
	Counters dataplane.PeerCounters
	Paths    []PathStatus

	KeysSince          time.Time
	Rekeys, Handshakes uint64
}

// PathStatus is one way to a peer.
type PathStatus struct {
	path.Status
	// UplinkName is the interface's.
	UplinkName string
	Counters   dataplane.PathCounters
	// Pacing counts where Paced is set.
	Pacing dataplane.Pacing
	Paced  bool
}

// better: of the paths in use, the one to show.
func (s *PathStatus) better(o *PathStatus) bool {
	if valid := s.State == path.StateValid; valid != (o.State == path.StateValid) {
		return valid
	}
	return s.Kind < o.Kind || s.Kind == o.Kind && s.RTT < o.RTT
}

// Status returns all peers by name and the version of the policy in force.
func (e *Engine) Status(ctx context.Context) (peers []PeerStatus, policyVersion uint64, err error) {
	err = e.ask(ctx, func() {
		policyVersion = e.docSeq
		now := time.Now()
		for _, info := range e.cfg.Registry.All() {
			if p := e.peers[info.ID]; p != nil {
				peers = append(peers, p.status(now))
			}
		}
	})
	if err != nil {
		return nil, 0, err
	}
	return peers, policyVersion, nil
}

// ask runs f on the engine's goroutine and waits for it.
func (e *Engine) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	e.box.post(func() {
		f()
		close(done)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-e.box.closed:
		return net.ErrClosed
	}
}

func (p *peer) status(now time.Time) PeerStatus {
	st := PeerStatus{
		Info: p.info, Online: p.online, State: p.state(), PathType: "none", Counters: p.dp.Counters(),
		KeysSince: p.keysSince, Rekeys: p.rekeys, Handshakes: p.handshakes,
	}
	if s := p.speaker(); s != nil {
		st.Cipher = s.dp.Suite.String()
	}
	if !p.hasPaths() {
		if p.lastErr != nil {
			st.Reason = p.lastErr.Error()
		}
		return st
	}
	counters := make(map[dataplane.Path]dataplane.PathCounters)
	for _, c := range p.dp.Paths() {
		counters[c.Path] = c
	}
	var best *PathStatus
	for _, s := range p.paths.Status(now) {
		ps := PathStatus{Status: s, UplinkName: p.e.uplinkName(s.Uplink), Counters: counters[dataplane.Path(s.ID)]}
		ps.Pacing, ps.Paced = p.dp.Pacing(dataplane.Path(s.ID))
		st.Paths = append(st.Paths, ps)
	}
	for i := range st.Paths {
		if s := &st.Paths[i]; s.Lanes[packet.Critical] && (best == nil || s.better(best)) {
			best = s
		}
	}
	switch {
	case best != nil && p.connected():
		st.PathType, st.RTT, st.Since = best.Kind.String(), best.RTT, p.usableFrom
		if best.Kind == path.Direct || best.Kind == path.Turn {
			st.Remote = best.ID.Remote
		}
	case p.usable:
		st.Reason = "the peer has not confirmed the keys yet"
	case p.lastErr != nil:
		st.Reason = p.lastErr.Error()
	case p.newest().hadPath:
		st.Reason = fmt.Sprintf("no answer for %s", now.Sub(p.speaker().heard(now)).Round(time.Second))
	}
	return st
}
