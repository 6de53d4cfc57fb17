// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/relay/lanequeue"
)

// QueueLen is how many signalling messages wait for the connection; more are
// refused.
const QueueLen = 64

// Errors of Signal.
var (
	// ErrDown tells that there is no link to the hub now.
	ErrDown = errors.New("no link to the hub")
	// ErrQueueFull tells that QueueLen messages wait already.
	ErrQueueFull = errors.New("signalling queue is full")
	// ErrTooLarge tells that the body exceeds conduit.MaxSignal.
	ErrTooLarge = errors.New("signal is too large")
)

// Config is what a Connector needs.
type Config struct {
	// URL is the hub's node port, as ParseURL reads it. Required.
	URL string
	// Roots are the mesh's own roots; nothing else is trusted. Required.
	Roots *x509.CertPool
	// Certificate returns the node's certificate and Ed25519 key. It is called
	// for each connection, so a renewed certificate is used from the next one on.
	// Required.
	Certificate func() (*tls.Certificate, error)
	// Proxy picks an HTTP proxy that can CONNECT; nil means none.
	Proxy func(*http.Request) (*url.URL, error)
	// DialContext opens the TCP connection; nil means a net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// MeshKey, which may be nil, is told the epoch of the mesh's pre-shared key, at
	// each connection and at each change. It must not block.
	MeshKey func(epoch uint32)
	// Logger gets one line per change of the link; nil discards.
	Logger *slog.Logger
}

// timing holds the delays, so that tests can shorten them.
type timing struct {
	spread                 time.Duration // within it, evenly, comes the first try after a loss
	backoffMin, backoffMax time.Duration // full jitter below a bound that doubles
	settled                time.Duration // a link this old resets the back-off
	dial                   time.Duration // from dialling to Synced and ready
	silence                time.Duration // without any topology event; bookmarks come every 30 s
	unary                  time.Duration
}

var defaultTiming = timing{
	spread: 10 * time.Second, backoffMin: 500 * time.Millisecond, backoffMax: 30 * time.Second, settled: 5 * time.Second,
	dial: 20 * time.Second, silence: 75 * time.Second, unary: 10 * time.Second,
}

// Connector implements conduit.HubConnector. Its methods are safe for concurrent
// use, but Run runs once at a time.
type Connector struct {
	cfg    Config // set once in New
	url    *url.URL
	timing timing
	log    *slog.Logger
	poke   chan struct{} // capacity 1: try again now

	mu      sync.Mutex // guards the following
	running bool
	queue   chan outgoing // of the connection whose signalling is ready, else nil
	redial  func(error)   // ends the connection there is, else nil
	session *session      // of the connection there is, else nil
	local   netip.Addr    // that the last connection was made from
	// sessionChanged is closed when session changes.
	sessionChanged chan struct{}
	// interests are the peers that were resolved, the newest last.
	interests  []identity.PeerID
	generation uint64 // the newest activation of a policy that was fetched

	relaying     atomic.Bool
	relay        atomic.Pointer[relayStream] // of the stream that stands, else nil
	relayDropped [lanequeue.Lanes]atomic.Uint64
}

var _ conduit.HubConnector = (*Connector)(nil)

type outgoing struct {
	to   identity.PeerID
	body []byte
}

// New checks cfg. It does no I/O.
func New(cfg Config) (*Connector, error) {
	u, err := ParseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.Roots == nil || cfg.Certificate == nil {
		return nil, errors.New("hub: Roots and Certificate are required")
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Connector{cfg: cfg, url: u, timing: defaultTiming, log: log, sessionChanged: make(chan struct{}), poke: make(chan struct{}, 1)}, nil
}

// Signal implements conduit.HubConnector. It returns an error that Is ErrDown,
// ErrQueueFull or ErrTooLarge.
func (c *Connector) Signal(to identity.PeerID, body []byte) error {
	if len(body) > conduit.MaxSignal {
		return ErrTooLarge
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.queue == nil {
		return ErrDown
	}
	select {
	case c.queue <- outgoing{to, append([]byte(nil), body...)}:
		return nil
	default:
		return ErrQueueFull
	}
}

// Redial ends the connection to the hub, where there is one, and opens another at
// once, so that the hub sees a renewed certificate or the link leaves by another
// interface; between two tries it cuts the pause short. The topology goes on where
// it was. It does not wait.
func (c *Connector) Redial() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.redial != nil {
		c.redial(errRedial)
	} else {
		select {
		case c.poke <- struct{}{}:
		default:
		}
	}
}

// LocalAddr returns the address of ours that the link leaves from; the zero value
// where none was made yet, or where it has none. Safe for concurrent use.
func (c *Connector) LocalAddr() netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.local
}

func (c *Connector) noteLocal(a net.Addr) {
	var local netip.Addr
	if tcp, ok := a.(*net.TCPAddr); ok {
		local = tcp.AddrPort().Addr().Unmap()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.local = local
}

func (c *Connector) setRedial(f func(error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.redial = f
}

func (c *Connector) setSession(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
	close(c.sessionChanged)
	c.sessionChanged = make(chan struct{})
}

func (c *Connector) setQueue(q chan outgoing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = q
}

// Run implements conduit.HubConnector. No failure of the hub is taken as final,
// since a robot may boot with a wrong clock and a hub may come back from a backup:
// Run returns only when ctx ends, or at once if it runs already.
func (c *Connector) Run(ctx context.Context, ev conduit.HubEvents) error {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return errors.New("hub: Run called twice")
	}
	c.running = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.running = false
		c.mu.Unlock()
	}()

	st := &state{ev: ev}
	for failures := 0; ; {
		up, err := c.connect(ctx, st)
		if ctx.Err() != nil {
			st.hub(false, ctx.Err())
			return ctx.Err()
		}
		if errors.Is(err, errRedial) {
			failures = 0
			continue
		}
		if st.hub(false, err) {
			c.log.Warn("hub link is down", "hub", c.url.Host, "err", err)
		}
		if up >= c.timing.settled {
			failures = 0
		}
		select {
		case <-time.After(c.delay(failures, up > 0, err)):
			failures++
		case <-c.poke:
			failures = 0
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// delay is how long to wait after a failure. A fleet that lost its hub at one
// moment, and dials it together, must not be refused together.
func (c *Connector) delay(failures int, lost bool, err error) time.Duration {
	wait := c.backoff(failures)
	if failures == 0 && lost {
		wait = rand.N(c.timing.spread)
	}
	if ask := min(retryAfter(err), time.Minute); ask > wait {
		wait = ask + rand.N(ask/2+1)
	}
	return wait
}

// backoff is full jitter: a fleet that lost its hub at one moment must not come
// back at one moment.
func (c *Connector) backoff(failures int) time.Duration {
	bound := c.timing.backoffMax
	if failures < 16 {
		bound = min(bound, c.timing.backoffMin<<failures)
	}
	return rand.N(bound) + bound/20
}

// state is what lasts from one connection to the next, and the one gate to ev.
type state struct {
	mu        sync.Mutex // held while ev is called: one call at a time
	ev        conduit.HubEvents
	known     bool // whether ev was told anything
	connected bool
	why       string

	// Owned by the topology goroutine of the current connection.
	epoch, rv uint64
	lazy      bool // what epoch and rv stand for came from a lazy watch
	// checkpoint is the newest of the hub's audit log; told again, it shows the hub
	// whether its log went backwards.
	checkpoint []byte
	// Owned by the policy goroutine of the current connection.
	policyEpoch, policy uint64
}

func (s *state) emit(f func(conduit.HubEvents)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.ev)
}

// hub reports the link's state where it is news, and tells whether it was.
func (s *state) hub(connected bool, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	why := ""
	if err != nil {
		why = err.Error()
	}
	if s.known && s.connected == connected && s.why == why {
		return false
	}
	s.known, s.connected, s.why = true, connected, why
	s.ev.HubState(connected, err)
	return true
}

// transport is made anew for each connection, so that a connection whose other
// end is gone is never used again.
func (c *Connector) transport(cert *tls.Certificate, meshID string) *http.Transport {
	base := c.cfg.DialContext
	if base == nil {
		base = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := base(ctx, network, addr)
		if err == nil {
			c.noteLocal(conn.LocalAddr())
		}
		return conn, err
	}
	var p http.Protocols
	p.SetHTTP2(true)
	return &http.Transport{
		Proxy:               c.cfg.Proxy,
		DialContext:         dialShort(dial),
		TLSClientConfig:     c.tlsConfig(cert, meshID),
		TLSHandshakeTimeout: 10 * time.Second,
		Protocols:           &p,
		DisableCompression:  true,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second, WriteByteTimeout: 10 * time.Second,
			// A hub holds one connection per node; calls wait rather than open another.
			StrictMaxConcurrentRequests: true,
			// One peer, small messages.
			MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 256 << 10,
		},
	}
}

// own returns the certificate for this connection and who it says we are.
func (c *Connector) own() (*tls.Certificate, *identity.Certificate, error) {
	cert, err := c.cfg.Certificate()
	if err != nil {
		return nil, nil, fmt.Errorf("load node certificate: %w", err)
	}
	id, err := identity.ParseCertificate(cert.Certificate)
	if err != nil {
		return nil, nil, fmt.Errorf("load node certificate: %w", err)
	}
	return cert, id, nil
}
