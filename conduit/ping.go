// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
)

// Errors of Ping. ErrPingCaps and ErrPingSize do not pass by themselves.
var (
	ErrPingCaps    = dataplane.ErrEchoCaps
	ErrPingSize    = dataplane.ErrEchoSize
	ErrPingSession = dataplane.ErrEchoSession
)

// The sizes that Ping takes, in bytes. What the paths to a peer carry may be less
// than MaxPing.
const (
	MinPing     = dataplane.MinEcho
	MaxPing     = packet.MaxInner
	DefaultPing = 64
)

// PingOptions say what Ping sends. The zero value is DefaultPing bytes in critical.
type PingOptions struct {
	// Lane is critical, telemetry or bulk; empty means critical.
	Lane string
	// Size is as that of an inner packet, in bytes; 0 means DefaultPing.
	Size int
}

// PingResult is the answer to a ping.
type PingResult struct {
	Lane string
	Size int
	// RTT is the whole round trip. Wait is the part that went by in this node's lane,
	// Hold in the peer's, between the arrival there and the leaving; the rest is the
	// network's. Wait and Hold are told by who measures them, in microseconds.
	RTT, Wait, Hold time.Duration
	// Kind, Uplink and Remote are those of the path that the answer came on, as in
	// PathDetail. Kind is empty where the path is not known any more.
	Kind, Uplink, Remote string
}

// Ping sends a peer one sealed packet, which waits in the queues of its lane at both
// ends as an application's would, and awaits the answer until ctx ends. Where there
// is no path to the peer it sets one up first, which is not part of RTT. The policy is
// not asked: who is in the mesh answers, in each lane and at most 200 times a second.
func (n *Node) Ping(ctx context.Context, id identity.PeerID, o PingOptions) (PingResult, error) {
	lane := packet.Critical
	if o.Lane != "" {
		l, err := packet.ParseLane(o.Lane)
		if err != nil {
			return PingResult{}, err
		}
		lane = l
	}
	if o.Size == 0 {
		o.Size = DefaultPing
	}
	if o.Size < MinPing || o.Size > MaxPing {
		return PingResult{}, fmt.Errorf("%w: %d bytes, want %d to %d", ErrPingSize, o.Size, MinPing, MaxPing)
	}
	n.mu.Lock()
	running := n.state == stateRunning
	n.mu.Unlock()
	if !running {
		return PingResult{}, fmt.Errorf("ping: %w", net.ErrClosed)
	}
	p, connected, err := n.engine.Peer(ctx, id)
	if errors.Is(err, ErrUnknownPeer) || err == nil && !connected {
		if err := n.engine.Connect(ctx, id, nil); err != nil {
			return PingResult{}, err
		}
		p, _, err = n.engine.Peer(ctx, id)
	}
	if err != nil {
		return PingResult{}, err
	}
	answer := make(chan dataplane.EchoReply, 1)
	cancel, err := n.plane.Echo(p, lane, o.Size, func(r dataplane.EchoReply) { answer <- r })
	if errors.Is(err, ErrPingSize) {
		err = fmt.Errorf("%w: %d bytes, and the paths to the peer carry %d", err, o.Size, n.plane.EchoRoom(p))
	}
	if err != nil {
		return PingResult{}, err
	}
	defer cancel()
	select {
	case r := <-answer:
		return n.pingResult(ctx, id, lane, o.Size, r), nil
	case <-ctx.Done():
		return PingResult{}, ctx.Err()
	case <-n.closed:
		return PingResult{}, fmt.Errorf("ping: %w", net.ErrClosed)
	}
}

func (n *Node) pingResult(ctx context.Context, id identity.PeerID, lane packet.Lane, size int, r dataplane.EchoReply) PingResult {
	res := PingResult{Lane: lane.String(), Size: size, RTT: r.RTT, Wait: r.Wait, Hold: r.Hold}
	if kind, uplink, ok := n.engine.DescribePath(context.WithoutCancel(ctx), id, r.Path); ok {
		res.Kind, res.Uplink = kind.String(), uplink
		if kind == path.Direct || kind == path.Turn {
			res.Remote = r.Path.Remote.String()
		}
	}
	return res
}
