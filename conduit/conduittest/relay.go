// SPDX-License-Identifier: Apache-2.0

package conduittest

import (
	"bytes"
	"context"
	"errors"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// relayQueue bounds what waits in a relay stream in each lane, as at a hub.
const relayQueue = 32

// ErrReplaced is what RelayPackets returns when the node has opened another stream.
var ErrReplaced = errors.New("another relay stream took over")

// SetRelay lets the hub carry packets for nodes that start from now on, in both
// directions. It has no TURN servers.
func (h *Hub) SetRelay(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.relay = on
}

// RelayStreams returns how many nodes have a relay stream open.
func (h *Hub) RelayStreams() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.streams)
}

func (h *Hub) breakStreamsLocked() {
	for id, s := range h.streams {
		delete(h.streams, id)
		s.end(ErrHubDown)
	}
}

// stream is a node's open relay stream.
type stream struct {
	lanes [3]chan relayed
	gone  chan identity.PeerID
	lost  chan struct{}
	why   error // set before lost is closed
}

type relayed struct {
	from   identity.PeerID
	packet []byte
}

func newStream() *stream {
	s := &stream{gone: make(chan identity.PeerID, relayQueue), lost: make(chan struct{})}
	for i := range s.lanes {
		s.lanes[i] = make(chan relayed, relayQueue)
	}
	return s
}

func (s *stream) end(why error) {
	s.why = why
	close(s.lost)
}

// next returns the next packet, Critical first; false where there is none.
func (s *stream) next() (relayed, bool) {
	for _, l := range s.lanes {
		select {
		case p := <-l:
			return p, true
		default:
		}
	}
	return relayed{}, false
}

// relayConnector is a connector that implements conduit.PacketRelay, too.
type relayConnector struct{ *connector }

var _ conduit.PacketRelay = relayConnector{}

// RelayPackets implements conduit.PacketRelay.
func (c relayConnector) RelayPackets(ctx context.Context, in func(identity.PeerID, []byte), gone func(identity.PeerID)) error {
	s, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		c.h.mu.Lock()
		defer c.h.mu.Unlock()
		if c.h.streams[c.id] == s {
			delete(c.h.streams, c.id)
		}
	}()
	in(identity.PeerID{}, nil)
	for {
		for p, ok := s.next(); ok; p, ok = s.next() {
			in(p.from, p.packet)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.lost:
			return s.why
		case id := <-s.gone:
			gone(id)
		case p := <-s.lanes[0]:
			in(p.from, p.packet)
		case p := <-s.lanes[1]:
			in(p.from, p.packet)
		case p := <-s.lanes[2]:
			in(p.from, p.packet)
		}
	}
}

// open waits for the hub and registers a stream.
func (c relayConnector) open(ctx context.Context) (*stream, error) {
	for {
		c.h.mu.Lock()
		if !c.h.down {
			s := newStream()
			if old := c.h.streams[c.id]; old != nil {
				old.end(ErrReplaced)
			}
			c.h.streams[c.id] = s
			c.h.mu.Unlock()
			return s, nil
		}
		turned := c.h.turned
		c.h.mu.Unlock()
		select {
		case <-turned:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// SendPacket implements conduit.PacketRelay.
func (c relayConnector) SendPacket(to identity.PeerID, lane uint8, packet []byte) bool {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	own := c.h.streams[c.id]
	if own == nil {
		return false
	}
	s := c.h.streams[to]
	if s == nil {
		select {
		case own.gone <- to:
		default:
		}
		return true
	}
	p := relayed{c.id, bytes.Clone(packet)}
	l := s.lanes[min(int(lane), len(s.lanes)-1)]
	select {
	case l <- p:
		return true
	default:
	}
	select { // the oldest makes room
	case <-l:
	default:
	}
	select {
	case l <- p:
	default:
	}
	return true
}

// TurnServers implements conduit.PacketRelay.
func (c relayConnector) TurnServers(context.Context) ([]conduit.TurnServer, error) { return nil, nil }
