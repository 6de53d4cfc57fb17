// SPDX-License-Identifier: Apache-2.0

package hubtest

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// relayInbox is how many messages wait for a node's relay stream.
const relayInbox = 1024

// relayStream is a node's open relay stream.
type relayStream struct {
	inbox chan *dispatchv1.RelayResponse
	end   context.CancelCauseFunc
}

// SetTurn sets the answer to GetTurnCredentials; nil means that there is no TURN
// server.
func (h *Hub) SetTurn(res *dispatchv1.GetTurnCredentialsResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.turn = res
}

// Relayed returns the sizes, in frames, of the messages that came on relay streams.
func (h *Hub) Relayed() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]int(nil), h.relayed...)
}

// EndRelays ends all relay streams, and nothing else.
func (h *Hub) EndRelays() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.relays {
		r.end(connect.NewError(connect.CodeUnavailable, errors.New("relay ends")))
	}
}

// GetTurnCredentials implements RelayService.
func (h *Hub) GetTurnCredentials(ctx context.Context, _ *dispatchv1.GetTurnCredentialsRequest) (*dispatchv1.GetTurnCredentialsResponse, error) {
	if _, err := callerID(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turn == nil {
		return &dispatchv1.GetTurnCredentialsResponse{}, nil
	}
	return proto.CloneOf(h.turn), nil
}

// Relay implements RelayService. It has no lanes: what fits no more is dropped.
func (h *Hub) Relay(ctx context.Context, stream *connect.BidiStream[dispatchv1.RelayRequest, dispatchv1.RelayResponse]) error {
	text, err := callerID(ctx)
	if err != nil {
		return err
	}
	self, err := identity.ParsePeerID(text)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	r := &relayStream{inbox: make(chan *dispatchv1.RelayResponse, relayInbox), end: end}
	r.inbox <- &dispatchv1.RelayResponse{Ready: true}
	h.mu.Lock()
	if old := h.relays[self]; old != nil {
		old.end(connect.NewError(connect.CodeAborted, errors.New("replaced")))
	}
	h.relays[self] = r
	h.mu.Unlock()
	defer func() {
		end(nil)
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.relays[self] == r {
			delete(h.relays, self)
		}
	}()
	// Reading ends with the stream, which ends with this function's return.
	go func() {
		for {
			m, err := stream.Receive()
			if err != nil {
				end(err)
				return
			}
			h.relay(self, r, m)
		}
	}()
	for {
		select {
		case m := <-r.inbox:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-ctx.Done():
			if err := context.Cause(ctx); connect.CodeOf(err) != connect.CodeUnknown {
				return err
			}
			return nil
		}
	}
}

func (h *Hub) relay(self identity.PeerID, from *relayStream, m *dispatchv1.RelayRequest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.relayed = append(h.relayed, len(m.GetFrames()))
	for _, f := range m.GetFrames() {
		if len(f.GetPeer()) != len(self) {
			continue
		}
		to, res := h.relays[identity.PeerID(f.GetPeer())], &dispatchv1.RelayResponse{
			Frames: []*dispatchv1.RelayFrame{{Peer: self[:], Packet: f.GetPacket()}},
		}
		if to == nil {
			to, res = from, &dispatchv1.RelayResponse{Gone: [][]byte{f.GetPeer()}}
		}
		select {
		case to.inbox <- res:
		default:
		}
	}
}
