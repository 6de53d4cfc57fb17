// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1/edgev1connect"
)

// Errors of a Client.
var (
	// ErrNotRunning tells that no daemon listens on the socket.
	ErrNotRunning = errors.New("bauxite run is not running here")
	// ErrDenied tells that the daemon, or the system, refuses this user.
	ErrDenied = errors.New("not allowed to talk to bauxite run")
	// ErrNoPath tells that a peer that is to be pinged cannot be reached.
	ErrNoPath = errors.New("no path")
	// ErrRequest tells that the daemon does not take what was asked for.
	ErrRequest = errors.New("bad request")
)

// Client talks to the daemon of one home.
type Client struct {
	path string
	tr   *http.Transport
	rpc  edgev1connect.LocalServiceClient
}

// NewClient returns a client of the socket at path. It does no I/O.
func NewClient(path string) *Client {
	c := &Client{path: path}
	c.tr = &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 2 * time.Second}
			return d.DialContext(ctx, "unix", path)
		},
	}
	c.rpc = edgev1connect.NewLocalServiceClient(&http.Client{Transport: c.tr}, "http://local", connect.WithReadMaxBytes(16<<20))
	return c
}

// Close drops the connections.
func (c *Client) Close() { c.tr.CloseIdleConnections() }

// StatusJSON returns the status document.
func (c *Client) StatusJSON(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := c.rpc.GetStatus(ctx, &edgev1.GetStatusRequest{})
	if err != nil {
		return nil, c.explain(err)
	}
	return res.GetStatusJson(), nil
}

// CheckHub asks the hub, through the daemon, what it offers for paths.
func (c *Client) CheckHub(ctx context.Context) (HubOffer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*checkTime)
	defer cancel()
	res, err := c.rpc.CheckHub(ctx, &edgev1.CheckHubRequest{})
	if err != nil {
		return HubOffer{}, c.explain(err)
	}
	return HubOffer{
		Connected: res.GetConnected(), Error: res.GetError(), RelayOpen: res.GetRelayOpen(),
		TurnServers: res.GetTurnServers(), TurnError: res.GetTurnError(),
	}, nil
}

// Connect asks for a path to a peer and calls step with each state, in order.
func (c *Client) Connect(ctx context.Context, peer string, step func(*edgev1.ConnectResponse)) error {
	stream, err := c.rpc.Connect(ctx, &edgev1.ConnectRequest{Peer: peer})
	if err != nil {
		return c.explain(err)
	}
	defer stream.Close()
	for stream.Receive() {
		step(stream.Msg())
	}
	if err := stream.Err(); err != nil {
		return c.explain(err)
	}
	return nil
}

// Ping sends echoes and calls each with what became of them: first once with Seq 0, to
// say who is asked. It returns when all are told of, or ctx has ended.
func (c *Client) Ping(ctx context.Context, req *edgev1.PingRequest, each func(*edgev1.PingResponse) error) error {
	stream, err := c.rpc.Ping(ctx, req)
	if err != nil {
		return c.explain(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if err := each(stream.Msg()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return c.explain(err)
	}
	return nil
}

func (c *Client) explain(err error) error {
	var ce *connect.Error
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTSOCK):
		return fmt.Errorf("%w: nobody listens on %s", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s", ErrDenied, c.path)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: it closed the connection", ErrDenied)
	case errors.As(err, &ce) && connect.IsWireError(err):
		switch ce.Code() {
		case connect.CodeNotFound:
			return &remoteError{ErrNoPeer, ce.Message()}
		case connect.CodeFailedPrecondition:
			return &remoteError{ErrAmbiguous, ce.Message()}
		case connect.CodeInvalidArgument:
			return &remoteError{ErrRequest, ce.Message()}
		case connect.CodeUnavailable:
			if strings.HasPrefix(ce.Message(), ErrNoPath.Error()) {
				return &remoteError{ErrNoPath, ce.Message()}
			}
			return errors.New(ce.Message())
		default:
			return errors.New(ce.Message())
		}
	}
	return err
}

// remoteError is an error of the daemon whose text says all.
type remoteError struct {
	is  error
	msg string
}

func (e *remoteError) Error() string { return e.msg }
func (e *remoteError) Unwrap() error { return e.is }
