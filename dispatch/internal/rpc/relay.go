// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/relay"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

const (
	// maxRelayFrames is how many packets one message may carry.
	maxRelayFrames = 64
	// maxRelayMessage holds that many of the largest packets.
	maxRelayMessage = maxRelayFrames * (relay.MaxPacket + 64)
	// relayBatch is how many packets the hub puts into a message. What is written
	// cannot be overtaken, so it is few.
	relayBatch = 8
)

type relayService struct {
	*API
	dispatchv1connect.UnimplementedRelayServiceHandler
}

type relayStream = connect.BidiStream[dispatchv1.RelayRequest, dispatchv1.RelayResponse]

func (s relayService) GetTurnCredentials(ctx context.Context, _ *dispatchv1.GetTurnCredentialsRequest) (*dispatchv1.GetTurnCredentialsResponse, error) {
	if s.cfg.TURN == nil {
		return &dispatchv1.GetTurnCredentialsResponse{}, nil
	}
	c := s.cfg.TURN(callerOf(ctx).id)
	if len(c.URLs) == 0 {
		return &dispatchv1.GetTurnCredentialsResponse{}, nil
	}
	return &dispatchv1.GetTurnCredentialsResponse{
		Urls: c.URLs, Username: c.Username, Password: c.Password, Expires: timestamppb.New(c.Expires),
	}, nil
}

func (s relayService) Relay(ctx context.Context, stream *relayStream) error {
	if s.cfg.Relay == nil {
		return connect.NewError(connect.CodeUnimplemented, errors.New("this hub relays no packets"))
	}
	me := callerOf(ctx)
	c := s.cfg.Relay.Open(me.id)
	defer c.Close()
	if err := stream.Send(&dispatchv1.RelayResponse{Ready: true}); err != nil {
		return err
	}
	s.log.DebugContext(ctx, "relay stream opened", "node", me.id.Short())
	defer s.log.DebugContext(ctx, "relay stream closed", "node", me.id.Short())

	// Only this goroutine sends. It may stand in Send for as long as the node does
	// not read, which is no fault until the stream has to end.
	finished := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		cutStuck(c, me.cut, finished)
	}()
	done := make(chan error, 1)
	go func() { done <- s.receive(ctx, c, stream) }()
	read, err := s.send(ctx, c, stream, done)
	close(finished)
	<-watched
	if !read {
		me.unblock()
		if rerr := <-done; err == nil {
			err = rerr
		}
	}
	return err
}

// cutStuck cuts a stream whose place another has taken, and which does not end. The
// gate cuts those whose context ends.
func cutStuck(c *relay.Client, cut func(), finished <-chan struct{}) {
	select {
	case <-c.Gone():
	case <-finished:
		return
	}
	t := time.NewTimer(cutAfter)
	defer t.Stop()
	select {
	case <-t.C:
		cut()
	case <-finished:
	}
}

// send writes until the stream, the node's place or the hub ends. read tells that
// the reader has ended.
func (s relayService) send(ctx context.Context, c *relay.Client, stream *relayStream, done <-chan error) (read bool, err error) {
	var (
		packets = make([]relay.Packet, 0, relayBatch)
		gone    []identity.PeerID
		frames  [relayBatch]dispatchv1.RelayFrame
		peers   [relayBatch]identity.PeerID
		m       dispatchv1.RelayResponse
	)
	for {
		select {
		case <-c.Wake():
		case err := <-done:
			return true, err
		case <-c.Gone():
			if ctx.Err() != nil {
				return false, ended(ctx)
			}
			return false, fail(connect.CodeAborted, dispatchv1.ErrorReason_ERROR_REASON_REPLACED,
				"another stream of this node took the place of this one", "")
		case <-ctx.Done():
			return false, ended(ctx)
		}
		packets, gone = c.Take(packets[:0], gone[:0], relayBatch)
		if len(packets) == 0 && len(gone) == 0 {
			continue
		}
		m.Frames, m.Gone = m.Frames[:0], m.Gone[:0]
		for i, p := range packets {
			peers[i] = p.From
			frames[i].Peer, frames[i].Packet = peers[i][:], p.Data
			m.Frames = append(m.Frames, &frames[i])
		}
		for i := range gone {
			m.Gone = append(m.Gone, gone[i][:])
		}
		if err := stream.Send(&m); err != nil {
			return false, err
		}
		clear(packets) // the collector's
	}
}

// receive passes on what the node sends, until its half of the stream ends. It
// never waits for another node.
func (s relayService) receive(ctx context.Context, c *relay.Client, stream *relayStream) error {
	for {
		m, err := stream.Receive()
		if err != nil {
			var ce *connect.Error
			if errors.As(err, &ce) && ce.Code() == connect.CodeResourceExhausted {
				return err
			}
			return nil // the node hung up
		}
		if ctx.Err() != nil {
			return nil // revoked: send says so
		}
		if len(m.GetFrames()) > maxRelayFrames {
			return fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "too many frames in a message", "")
		}
		for _, f := range m.GetFrames() {
			var to identity.PeerID // zero, which nobody has, where it is none
			if len(f.GetPeer()) == len(to) {
				to = identity.PeerID(f.GetPeer())
			}
			c.Send(to, f.GetPacket())
		}
	}
}
