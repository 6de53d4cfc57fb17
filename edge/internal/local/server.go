// SPDX-License-Identifier: Apache-2.0

package local

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	edgev1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/edge/v1/edgev1connect"
)

const (
	// linePrefix begins the one-line command; no HTTP request begins so.
	linePrefix = "connect:"
	maxLine    = 256
	maxConns   = 64
	// connectTime bounds one attempt to reach a peer.
	connectTime = 45 * time.Second
	// checkTime bounds the question to the hub.
	checkTime = 5 * time.Second
	// maxSocketPath is what all systems take (sun_path is 104 bytes on macOS).
	maxSocketPath = 103
)

// Backend is the node that is served.
type Backend interface {
	// StatusJSON returns the status document.
	StatusJSON(ctx context.Context) ([]byte, error)
	// Lookup finds a peer of which the node was not told, and makes it part of the
	// status. Its error Is ErrNoPeer where there is none.
	Lookup(ctx context.Context, what string) (identity.PeerID, error)
	// Connect blocks until a path to the peer stands or none can be had, and calls
	// progress with each state.
	Connect(ctx context.Context, id identity.PeerID, progress func(state string)) error
	// Ping sends one echo and awaits the answer until ctx ends.
	Ping(ctx context.Context, id identity.PeerID, o conduit.PingOptions) (conduit.PingResult, error)
	// Policy returns the policy in force.
	Policy(ctx context.Context) (*conduit.PolicyInForce, error)
	// CheckHub asks the hub what it offers for paths.
	CheckHub(ctx context.Context) HubOffer
}

// HubOffer is what the hub offers for paths.
type HubOffer struct {
	// Connected tells whether the link is up; Error says why not.
	Connected bool
	Error     string
	// RelayOpen tells whether the hub carries packets for this node now.
	RelayOpen bool
	// TurnServers are URIs without credentials; TurnError says why they could not be
	// asked for.
	TurnServers []string
	TurnError   string
}

// Server serves one socket.
type Server struct {
	backend Backend
	log     *slog.Logger
	path    string
	ln      *net.UnixListener
	http    *http.Server
	conns   chan net.Conn // to http

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	sem    chan struct{}
}

// Serve listens on the socket at path until Close. A socket file that nobody
// listens on is replaced; one that answers is not.
func Serve(path string, b Backend, logger *slog.Logger) (*Server, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on %s: path has %d bytes, at most %d: choose a shorter home directory", path, len(path), maxSocketPath)
	}
	if err := clearStale(path); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = ln.Close()
		return nil, err
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		backend: b, log: logger, path: path, ln: ln,
		conns: make(chan net.Conn), sem: make(chan struct{}, maxConns),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.Handle(edgev1connect.NewLocalServiceHandler(s, connect.WithReadMaxBytes(64<<10), connect.WithCompression("gzip", nil, nil)))
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		ErrorLog:    log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return s.ctx },
	}
	s.wg.Go(func() { _ = s.http.Serve(handover{s}) })
	s.wg.Go(s.accept)
	return s, nil
}

// Close ends all conversations and removes the socket.
func (s *Server) Close() error {
	s.cancel()
	err := s.ln.Close()
	_ = s.http.Close()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func clearStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("listen on %s: a file that is no socket is in the way", path)
	}
	d := net.Dialer{Timeout: time.Second}
	if c, err := d.DialContext(context.Background(), "unix", path); err == nil {
		_ = c.Close()
		return fmt.Errorf("listen on %s: somebody listens there already", path)
	}
	return os.Remove(path)
}

func (s *Server) accept() {
	for {
		c, err := s.ln.AcceptUnix()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("accept local connection", "err", err)
			select {
			case <-time.After(100 * time.Millisecond): // out of files, mostly
			case <-s.ctx.Done():
				return
			}
			continue
		}
		select {
		case s.sem <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		s.wg.Go(func() {
			defer func() { <-s.sem }()
			s.greet(c)
		})
	}
}

// greet finds out who calls and which of the two languages he speaks.
func (s *Server) greet(c *net.UnixConn) {
	stop := context.AfterFunc(s.ctx, func() { _ = c.Close() })
	if err := authorize(c); err != nil {
		s.log.Warn("refuse local connection", "err", err)
		stop()
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	r := bufio.NewReaderSize(c, maxLine)
	first, err := r.Peek(len(linePrefix))
	if err == nil && string(first) == linePrefix {
		defer stop()
		defer c.Close()
		s.line(c, r)
		return
	}
	stop()
	if err != nil {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	select {
	case s.conns <- &peeked{c, r}:
	case <-s.ctx.Done():
		_ = c.Close()
	}
}

// line answers "connect:<peer>\n" with "ok <path type> <remote>\n" or
// "error: <why>\n".
func (s *Server) line(c net.Conn, r *bufio.Reader) {
	text, err := r.ReadString('\n')
	if err != nil && (!errors.Is(err, io.EOF) || text == "") {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	last := &edgev1.ConnectResponse{}
	cerr := s.dial(s.ctx, strings.TrimSpace(strings.TrimPrefix(text, linePrefix)), func(m *edgev1.ConnectResponse) error {
		last = m
		return nil
	})
	answer := fmt.Sprintf("ok %s %s\n", last.GetPathType(), last.GetRemote())
	if cerr != nil {
		answer = fmt.Sprintf("error: %v\n", cerr)
	} else if last.GetState() == StateFailed {
		answer = fmt.Sprintf("error: %s\n", last.GetDetail())
	}
	_ = c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(c, answer)
}

// GetStatus implements LocalService.
func (s *Server) GetStatus(ctx context.Context, _ *edgev1.GetStatusRequest) (*edgev1.GetStatusResponse, error) {
	b, err := s.backend.StatusJSON(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return &edgev1.GetStatusResponse{StatusJson: b}, nil
}

// CheckHub implements LocalService.
func (s *Server) CheckHub(ctx context.Context, _ *edgev1.CheckHubRequest) (*edgev1.CheckHubResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	o := s.backend.CheckHub(ctx)
	return &edgev1.CheckHubResponse{
		Connected: o.Connected, Error: o.Error, RelayOpen: o.RelayOpen, TurnServers: o.TurnServers, TurnError: o.TurnError,
	}, nil
}

// Connect implements LocalService.
func (s *Server) Connect(ctx context.Context, req *edgev1.ConnectRequest, stream *connect.ServerStream[edgev1.ConnectResponse]) error {
	return coded(s.dial(ctx, req.GetPeer(), stream.Send))
}

// The states that Connect reports.
const (
	StateResolving = "resolving"
	StateHandshake = "handshake"
	StateChecking  = "checking"
	StateConnected = "connected"
	StateFailed    = "failed"
)

// dial connects to a peer and tells each step. Its error is about the request;
// that no path can be had is a step.
func (s *Server) dial(ctx context.Context, what string, send func(*edgev1.ConnectResponse) error) error {
	if err := send(&edgev1.ConnectResponse{State: StateResolving, Detail: what}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	id, p, err := s.find(ctx, what)
	if err != nil {
		return err
	}
	states := make(chan string, 16)
	done := make(chan error, 1)
	go func() {
		done <- s.backend.Connect(ctx, id, func(state string) {
			select {
			case states <- state:
			default: // it must not block, and the outcome is told anyway
			}
		})
	}()
	peer := p.Name + " (" + p.VirtualIP + ")"
	tell := func(state string) error {
		if state != StateHandshake && state != StateChecking {
			return nil
		}
		return send(&edgev1.ConnectResponse{State: state, Detail: peer})
	}
	for {
		select {
		case state := <-states:
			if err := tell(state); err != nil {
				cancel()
				return errors.Join(err, <-done)
			}
		case err = <-done:
			for len(states) > 0 {
				if err := tell(<-states); err != nil {
					return err
				}
			}
			if errors.Is(err, context.Canceled) {
				return connect.NewError(connect.CodeUnavailable, errors.New("the daemon is stopping"))
			}
			// Its time may be over, and the outcome still must be told.
			return s.outcome(context.WithoutCancel(ctx), id, err, send)
		}
	}
}

// find resolves what a request calls a peer.
func (s *Server) find(ctx context.Context, what string) (identity.PeerID, *Peer, error) {
	st, err := s.status(ctx)
	if err != nil {
		return identity.PeerID{}, nil, err
	}
	p, err := st.Resolve(what)
	if errors.Is(err, ErrNoPeer) {
		p, err = s.lookup(ctx, what, err)
	}
	if err != nil {
		return identity.PeerID{}, nil, err
	}
	id, err := identity.ParsePeerID(p.ID)
	return id, p, err
}

// lookup asks the node for a peer that the status does not have; unknown says why.
func (s *Server) lookup(ctx context.Context, what string, unknown error) (*Peer, error) {
	id, err := s.backend.Lookup(ctx, what)
	if errors.Is(err, ErrNoPeer) {
		return nil, unknown
	}
	if err != nil {
		return nil, fmt.Errorf("%w, and the hub could not be asked: %w", unknown, err)
	}
	st, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	if p := st.peer(id); p != nil {
		return p, nil
	}
	return nil, unknown
}

func (s *Server) outcome(ctx context.Context, id identity.PeerID, err error, send func(*edgev1.ConnectResponse) error) error {
	m := &edgev1.ConnectResponse{State: StateConnected}
	st, serr := s.status(ctx)
	if serr != nil {
		return serr
	}
	p := st.peer(id)
	switch {
	case err != nil:
		m.State, m.Detail = StateFailed, err.Error()
		if errors.Is(err, context.DeadlineExceeded) {
			m.Detail = fmt.Sprintf("no path after %v", connectTime)
		}
		if p != nil && p.Path.Reason != "" {
			m.Detail = combine(m.GetDetail(), p.Path.Reason)
		}
	case p != nil:
		m.Detail, m.PathType, m.Remote, m.RttMs = p.Name+" ("+p.VirtualIP+")", p.Path.Type, p.Path.Remote, p.Path.RTTMS
	}
	return send(m)
}

// combine says what and why once each, where one holds the other already.
func combine(what, why string) string {
	switch {
	case strings.Contains(what, why):
		return what
	case strings.Contains(why, what):
		return why
	}
	return what + ": " + why
}

func (s *Server) status(ctx context.Context) (*Status, error) {
	b, err := s.backend.StatusJSON(ctx)
	if err != nil {
		return nil, err
	}
	var st Status
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return &st, nil
}

// handover is the listener through which greet passes connections to HTTP.
type handover struct{ s *Server }

func (h handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.s.conns:
		return c, nil
	case <-h.s.ctx.Done():
		return nil, net.ErrClosed
	}
}
func (h handover) Close() error   { return nil }
func (h handover) Addr() net.Addr { return h.s.ln.Addr() }

// peeked is a connection whose first bytes wait in r.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) {
	if p.r.Buffered() > 0 {
		return p.r.Read(b[:min(len(b), p.r.Buffered())])
	}
	return p.Conn.Read(b)
}
