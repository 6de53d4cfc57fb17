// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/relay/lanequeue"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// relayQueue is how many packets wait for the relay stream.
	relayQueue = 32
	// relayFrames and relayBytes bound a message. What is in a message cannot be
	// overtaken any more, so it holds few bytes, but always one packet.
	relayFrames = 64
	relayBytes  = 4 << 10
	// minRelayed and maxRelayed are the sizes of packets that the hub relays.
	minRelayed = 16
	maxRelayed = 1500
	// maxTurnServers bounds what the hub may name, maxTurnText each text of it.
	maxTurnServers = 8
	maxTurnText    = 512
)

var _ conduit.PacketRelay = (*Connector)(nil)

var errRelaying = errors.New("relay stream is open already")

type relayClient = connect.BidiStreamForClientSimple[dispatchv1.RelayRequest, dispatchv1.RelayResponse]

// relayStream is the relay stream of one connection.
type relayStream struct {
	wake chan struct{} // holds a token where there may be something to send

	mu    sync.Mutex // guards the following
	queue *lanequeue.Queue[relayPacket]
	free  [][]byte
}

type relayPacket struct {
	to   identity.PeerID
	data []byte
}

func newRelayQueue() *lanequeue.Queue[relayPacket] { return lanequeue.New[relayPacket](relayQueue) }

// SendPacket implements conduit.PacketRelay.
func (c *Connector) SendPacket(to identity.PeerID, lane uint8, packet []byte) bool {
	r := c.relay.Load()
	if r == nil || len(packet) < minRelayed || len(packet) > maxRelayed {
		return false
	}
	r.mu.Lock()
	var b []byte
	if n := len(r.free); n > 0 {
		b, r.free = r.free[n-1], r.free[:n-1]
	}
	dropped, from := r.queue.Push(int(lane), relayPacket{to, append(b[:0], packet...)})
	if from >= 0 {
		r.free = append(r.free, dropped.data)
	}
	r.mu.Unlock()
	if from >= 0 {
		c.relayDropped[from].Add(1)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return true
}

// RelayDropped returns how many packets, by lane, had to give way to others before
// they could be sent to the hub.
func (c *Connector) RelayDropped() [lanequeue.Lanes]uint64 {
	var out [lanequeue.Lanes]uint64
	for l := range out {
		out[l] = c.relayDropped[l].Load()
	}
	return out
}

// take appends packets to a message: Critical first, few bytes.
func (r *relayStream) take(out []relayPacket) []relayPacket {
	r.mu.Lock()
	defer r.mu.Unlock()
	for size := 0; len(out) < relayFrames; {
		p, _, ok := r.queue.Peek()
		if size += len(p.data); !ok || len(out) > 0 && size > relayBytes {
			break
		}
		_, _, _ = r.queue.Pop()
		out = append(out, p)
	}
	return out
}

// give takes the room of sent packets back.
func (r *relayStream) give(sent []relayPacket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range sent {
		if len(r.free) < relayQueue {
			r.free = append(r.free, sent[i].data)
		}
	}
}

// RelayPackets implements conduit.PacketRelay. Without a connection it waits for
// one, and it ends with that.
func (c *Connector) RelayPackets(ctx context.Context, in func(from identity.PeerID, packet []byte), gone func(identity.PeerID)) error {
	if !c.relaying.CompareAndSwap(false, true) {
		return errRelaying
	}
	defer c.relaying.Store(false)
	s, err := c.waitSession(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })
	defer stop()
	stream, err := s.relays.Relay(ctx)
	if err != nil {
		return fmt.Errorf("open relay stream: %w", plain(err))
	}
	r := &relayStream{wake: make(chan struct{}, 1), queue: newRelayQueue()}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { r.send(ctx, stream) })
	defer c.relay.CompareAndSwap(r, nil)
	err = c.receiveRelay(stream, r, in, gone)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(err) // before the stream is closed, so that closing does not wait for the hub
	_ = stream.CloseResponse()
	return fmt.Errorf("relay stream: %w", plain(err))
}

// receiveRelay reads the stream until it ends, and says why it did.
func (c *Connector) receiveRelay(stream *relayClient, r *relayStream, in func(identity.PeerID, []byte), gone func(identity.PeerID)) error {
	ready := false
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return errStopped
		}
		if err != nil {
			return err
		}
		if !ready && m.GetReady() {
			ready = true
			c.relay.Store(r)
			in(identity.PeerID{}, nil)
		}
		deliverRelayed(m, in, gone)
	}
}

// deliverRelayed passes on what a message of the hub holds and leaves out what is
// malformed: the hub is trusted with no more than being there.
func deliverRelayed(m *dispatchv1.RelayResponse, in func(identity.PeerID, []byte), gone func(identity.PeerID)) {
	for _, f := range m.GetFrames() {
		b := f.GetPacket()
		if id, ok := rawPeerID(f.GetPeer()); ok && len(b) >= minRelayed && len(b) <= maxRelayed && b[0] == 0x80 {
			in(id, b)
		}
	}
	for _, raw := range m.GetGone() {
		if id, ok := rawPeerID(raw); ok {
			gone(id)
		}
	}
}

func rawPeerID(b []byte) (id identity.PeerID, ok bool) {
	if len(b) != len(id) {
		return id, false
	}
	copy(id[:], b)
	return id, !id.IsZero()
}

// send empties the queue into the stream. A message leaves at once, and the next is
// put together only when that one is on its way, so Critical waits for no more than
// one message and what stands unsent in the socket.
func (r *relayStream) send(ctx context.Context, stream *relayClient) {
	defer func() { _ = stream.CloseRequest() }()
	// The first message opens the stream at the hub.
	if stream.Send(&dispatchv1.RelayRequest{}) != nil {
		return // Receive tells why
	}
	packets := make([]relayPacket, 0, relayFrames)
	m := &dispatchv1.RelayRequest{Frames: make([]*dispatchv1.RelayFrame, 0, relayFrames)}
	for {
		if packets = r.take(packets[:0]); len(packets) == 0 {
			select {
			case <-r.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		m.Frames = m.Frames[:0]
		for i := range packets {
			m.Frames = append(m.Frames, &dispatchv1.RelayFrame{Peer: packets[i].to[:], Packet: packets[i].data})
		}
		if stream.Send(m) != nil {
			return
		}
		r.give(packets)
	}
}

// waitSession returns the connection there is, or the next one.
func (c *Connector) waitSession(ctx context.Context) (*session, error) {
	for {
		c.mu.Lock()
		s, changed := c.session, c.sessionChanged
		c.mu.Unlock()
		if s != nil && s.ctx.Err() == nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// TurnServers implements conduit.PacketRelay.
func (c *Connector) TurnServers(ctx context.Context) (servers []conduit.TurnServer, err error) {
	err = c.call(ctx, func(ctx context.Context, s *session) error {
		res, err := s.relays.GetTurnCredentials(ctx, &dispatchv1.GetTurnCredentialsRequest{})
		if err != nil {
			return fmt.Errorf("fetch TURN credentials: %w", plain(err))
		}
		servers = turnServers(res)
		return nil
	})
	return servers, err
}

func turnServers(res *dispatchv1.GetTurnCredentialsResponse) []conduit.TurnServer {
	if len(res.GetUsername()) > maxTurnText || len(res.GetPassword()) > maxTurnText {
		return nil
	}
	var out []conduit.TurnServer
	for _, u := range res.GetUrls() {
		if u == "" || len(u) > maxTurnText || len(out) == maxTurnServers {
			continue
		}
		t := conduit.TurnServer{URL: u, Username: res.GetUsername(), Password: res.GetPassword()}
		if e := res.GetExpires(); e.IsValid() {
			t.Expires = e.AsTime()
		}
		out = append(out, t)
	}
	return out
}

// dialShort opens connections on which little waits in the kernel; see shortQueue.
func dialShort(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err == nil {
			shortQueue(conn)
		}
		return conn, err
	}
}
