// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"context"
	"crypto/fips140"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	pion "github.com/pion/ice/v3"
	"github.com/pion/stun/v2"
	"github.com/pion/transport/v3/stdnet"
)

const (
	// checkInterval is pion's pace of checks until a pair is nominated. A check
	// that arrives is answered, and with it a path found, at once.
	checkInterval = 200 * time.Millisecond
	// maxChecks keeps a pair alive for 12 s of checks: a peer may get our
	// candidates that late, and the controlling side never tries a failed pair again.
	maxChecks = 60
	// acceptanceWait keeps all pairs checked for a while before one is nominated;
	// data flows on the first proven path long before.
	acceptanceWait = 1500 * time.Millisecond
	// failedTimeout keeps pion from deleting candidates: conduit's probes decide
	// what is dead. It must not be 0 (checking would then fail after the
	// disconnected timeout alone).
	failedTimeout = time.Hour

	defaultFailAfter = 15 * time.Second
	defaultKeepalive = 15 * time.Second
	closeLimit       = 3 * time.Second
)

var (
	// ErrNoPath means that no check succeeded in time.
	ErrNoPath = errors.New("no path to the peer")
	// ErrPathLost means that pion gave up on the selected pair.
	ErrPathLost = errors.New("path to the peer lost")
	// ErrCloseTimeout means that something did not end in three seconds: a socket
	// that blocks, or a callback that does not return.
	ErrCloseTimeout = errors.New("close timed out")
	errStarted      = errors.New("already started")
)

// Path is one way to the peer that an authenticated check proved.
type Path struct {
	// Socket is the index of the local socket in the mux.
	Socket int
	// Remote is where to send.
	Remote netip.AddrPort
	// Type is the remote candidate's: host, srflx, prflx or relay.
	Type string
	// LocalType is host: checks always leave from a socket of ours.
	LocalType string
	// RoundTrip is true when a check of ours was answered from Remote, false when
	// so far only the peer's check arrived from there. The latter can be a replay
	// from another address, so prove the path before moving traffic to it.
	RoundTrip bool
	// Selected is true for the pair that both sides nominated.
	Selected bool
}

// AgentConfig configures an Agent. Callbacks come one at a time, in order, from
// one goroutine; they may take their time but must not call Close. Nil ones are
// skipped.
type AgentConfig struct {
	Mux *Mux
	// Controlling is true on exactly one side: that of the lower PeerID.
	Controlling bool
	// LocalUfrag and LocalPwd are this agent's credentials, as NewCredentials
	// makes them. The ufrag must be unique in the mux.
	LocalUfrag, LocalPwd string
	// STUNServers are "host:port"; the host may be a name or an IP literal (IPv6 in
	// brackets), the port defaults to 3478. Servers are asked at the same time and
	// delay nothing but each one's own candidate.
	STUNServers []string
	// OnCandidate gets our candidates for the peer; "" says that all were given.
	OnCandidate func(string)
	// OnPath is called for the first path that a check proved and again whenever
	// the selected one differs from what was reported last.
	OnPath func(Path)
	// OnProven is called for every path that a check proved, at most twice for
	// each: when it is first seen and when RoundTrip becomes true. These are the
	// paths that a bond can probe.
	OnProven func(Path)
	// OnFailed is called once if no path was proven within FailAfter of SetRemote
	// (ErrNoPath) or if pion gave up (ErrPathLost). The agent still needs Close.
	OnFailed func(error)
	// FailAfter is the time for OnFailed. Zero means 15s.
	FailAfter time.Duration
	// Keepalive is pion's own interval of checks on the selected pair. Zero means
	// 15s, which costs little; conduit's probes are what keeps a path.
	Keepalive time.Duration
	// Logger may be nil: nothing is logged.
	Logger *slog.Logger
}

// Agent finds a path to one peer. All methods are safe for concurrent use.
type Agent struct {
	cfg   AgentConfig
	log   *slog.Logger
	entry *entry
	pion  *pion.Agent
	view  *view

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	err    error // of Close, after once

	wake chan struct{} // capacity 1: events were queued

	mu       sync.Mutex // guards the rest
	started  bool
	dialled  bool
	failed   bool
	events   []func()
	remotes  map[netip.AddrPort]string // address → signalled type
	reflexed map[netip.AddrPort]bool   // known to pion as peer-reflexive
	proven   map[pathKey]*Path
	reported pathKey // what OnPath said last
	any      bool    // OnPath said something
}

type pathKey struct {
	socket int
	remote netip.AddrPort
}

// NewCredentials returns random ICE credentials: 96 and 192 bits.
func NewCredentials() (ufrag, pwd string) {
	b := make([]byte, 36)
	_, _ = rand.Read(b) // never fails
	s := base64.RawStdEncoding.EncodeToString(b)
	return s[:16], s[16:]
}

func checkCredentials(ufrag, pwd string) error {
	if len(ufrag) < 4 || len(ufrag) > 256 || !iceChars(ufrag) {
		return errors.New("ufrag: want 4 to 256 ICE characters")
	}
	if len(pwd) < 22 || len(pwd) > 256 || !iceChars(pwd) {
		return errors.New("password: want 22 to 256 ICE characters")
	}
	return nil
}

// NewAgent validates cfg and makes an agent known to the mux. It starts
// goroutines, so Close must be called, but sends nothing before Start.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if cfg.Mux == nil {
		return nil, errors.New("new ICE agent: no mux")
	}
	if err := checkCredentials(cfg.LocalUfrag, cfg.LocalPwd); err != nil {
		return nil, fmt.Errorf("new ICE agent: local %w", err)
	}
	for _, s := range cfg.STUNServers {
		if _, _, err := splitServer(s); err != nil {
			return nil, fmt.Errorf("new ICE agent: %w", err)
		}
	}
	if cfg.FailAfter <= 0 {
		cfg.FailAfter = defaultFailAfter
	}
	if cfg.Keepalive <= 0 {
		cfg.Keepalive = defaultKeepalive
	}
	cfg.STUNServers = slices.Clone(cfg.STUNServers)
	a := &Agent{
		cfg:      cfg,
		log:      orDiscard(cfg.Logger),
		wake:     make(chan struct{}, 1),
		remotes:  make(map[netip.AddrPort]string),
		reflexed: make(map[netip.AddrPort]bool),
		proven:   make(map[pathKey]*Path),
	}
	var err error
	a.entry, err = cfg.Mux.register(cfg.LocalUfrag, cfg.LocalPwd, func(sock int, from netip.AddrPort) {
		a.prove(sock, from, true)
	})
	if err != nil {
		return nil, fmt.Errorf("new ICE agent: %w", err)
	}
	a.view = newView(cfg.Mux, a.entry)
	// pion's HMAC-SHA1 would panic under fips140=only. The goroutines that it
	// starts here inherit the permission, and all later ones start from those.
	fips140.WithoutEnforcement(func() { err = a.newPion() })
	if err != nil {
		cfg.Mux.unregister(a.entry)
		return nil, fmt.Errorf("new ICE agent: %w", err)
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.wg.Go(a.dispatch)
	return a, nil
}

func (a *Agent) newPion() error {
	wait, interval, failed := acceptanceWait, checkInterval, failedTimeout
	keepalive, disconnected := a.cfg.Keepalive, 4*a.cfg.Keepalive
	checks := uint16(maxChecks)
	p, err := pion.NewAgent(&pion.AgentConfig{
		LocalUfrag:             a.cfg.LocalUfrag,
		LocalPwd:               a.cfg.LocalPwd,
		NetworkTypes:           []pion.NetworkType{pion.NetworkTypeUDP4, pion.NetworkTypeUDP6},
		CandidateTypes:         []pion.CandidateType{pion.CandidateTypeHost},
		MulticastDNSMode:       pion.MulticastDNSModeDisabled,
		UDPMux:                 a.view,
		Net:                    &stdnet.Net{}, // lists no interfaces: the mux knows ours
		DisableActiveTCP:       true,
		MaxBindingRequests:     &checks,
		CheckInterval:          &interval,
		HostAcceptanceMinWait:  &wait,
		SrflxAcceptanceMinWait: &wait,
		PrflxAcceptanceMinWait: &wait,
		RelayAcceptanceMinWait: &wait,
		DisconnectedTimeout:    &disconnected,
		FailedTimeout:          &failed,
		KeepaliveInterval:      &keepalive,
		LoggerFactory:          NewLoggerFactory(a.log),
		BindingRequestHandler:  a.onRequest,
	})
	if err != nil {
		return err
	}
	a.pion = p
	// Our candidates come from the mux; pion only insists on a handler. None of
	// these setters fails.
	_ = p.OnCandidate(func(pion.Candidate) {})
	_ = p.OnSelectedCandidatePairChange(func(local, remote pion.Candidate) {
		if sock, addr, ok := a.pair(local, remote); ok {
			a.sel(sock, addr)
		}
	})
	_ = p.OnConnectionStateChange(func(s pion.ConnectionState) {
		if s == pion.ConnectionStateFailed {
			a.fail(ErrPathLost)
		}
	})
	return nil
}

// Start begins to gather candidates.
func (a *Agent) Start() error {
	a.mu.Lock()
	started := a.started
	a.started = true
	a.mu.Unlock()
	if started {
		return fmt.Errorf("start ICE agent: %w", errStarted)
	}
	if err := a.pion.GatherCandidates(); err != nil {
		return fmt.Errorf("start ICE agent: %w", err)
	}
	a.spawn(a.gather)
	return nil
}

// SetRemote gives the peer's credentials and begins the checks. It may be called
// once, before or after Start.
func (a *Agent) SetRemote(ufrag, pwd string) error {
	if err := checkCredentials(ufrag, pwd); err != nil {
		return fmt.Errorf("set remote %w", err)
	}
	a.mu.Lock()
	dialled := a.dialled
	a.dialled = true
	a.mu.Unlock()
	if dialled {
		return fmt.Errorf("set remote credentials: %w", errStarted)
	}
	a.entry.setRemote(ufrag, pwd)
	a.spawn(func() { a.connect(ufrag, pwd) })
	return nil
}

// spawn starts a goroutine that Close waits for, unless Close began.
func (a *Agent) spawn(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx.Err() == nil {
		a.wg.Go(f)
	}
}

// AddRemote adds a candidate of the peer; "" (end of candidates) and known ones
// are ignored. Errors are ErrBadCandidate, ErrForbidden and ErrTooMany; none ends
// the session, the others may still do.
func (a *Agent) AddRemote(s string) error {
	if s == "" {
		return nil
	}
	c, err := a.cfg.Mux.remote(s)
	if err != nil {
		return fmt.Errorf("add remote candidate: %w", err)
	}
	a.mu.Lock()
	_, known := a.remotes[c.addr]
	full := len(a.remotes) >= maxCandidates
	if !known && !full {
		a.remotes[c.addr] = c.typ
	}
	reflexed := a.reflexed[c.addr]
	a.mu.Unlock()
	if reflexed {
		a.entry.signalled(c.addr)
	}
	if known || reflexed {
		// A check from there arrived before the candidate: a twin would only double
		// the checks.
		return nil
	}
	if full {
		return fmt.Errorf("add remote candidate: %w", ErrTooMany)
	}
	a.entry.signalled(c.addr)
	p, err := c.pion()
	if err != nil {
		return fmt.Errorf("add remote candidate: %w: %w", ErrBadCandidate, err)
	}
	if err := a.pion.AddRemoteCandidate(p); err != nil {
		return fmt.Errorf("add remote candidate: %w", err)
	}
	return nil
}

// Close ends the agent and waits for its goroutines, three seconds at most
// (ErrCloseTimeout). It is idempotent and must not be called from a callback.
func (a *Agent) Close() error {
	a.once.Do(func() {
		a.mu.Lock()
		a.cancel() // under mu: no goroutine starts from here on
		a.mu.Unlock()
		a.cfg.Mux.unregister(a.entry) // ends pion's reads
		done := make(chan struct{})
		go func() { // pion's Close can hang: left behind if it does
			defer close(done)
			_ = a.pion.GracefulClose()
			a.wg.Wait()
		}()
		t := time.NewTimer(closeLimit)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
			a.err = fmt.Errorf("close ICE agent: %w", ErrCloseTimeout)
			a.log.Warn("close ICE agent", "err", a.err)
		}
	})
	return a.err
}

// connect runs the checks until a pair is selected and watches the time.
func (a *Agent) connect(ufrag, pwd string) {
	ctx, cancel := context.WithTimeout(a.ctx, a.cfg.FailAfter)
	defer cancel()
	dial := a.pion.Accept
	if a.cfg.Controlling {
		dial = a.pion.Dial
	}
	// The Conn is not used: data goes straight from our sockets.
	if _, err := dial(ctx, ufrag, pwd); err == nil || a.ctx.Err() != nil {
		return
	}
	a.mu.Lock()
	found := a.any
	a.mu.Unlock()
	if !found {
		a.fail(ErrNoPath)
	}
}

// gather signals our candidates.
func (a *Agent) gather() {
	mine := make(map[int]bool)
	for _, b := range a.view.bases() {
		mine[b.socket] = true
	}
	// Errors are those of an agent that is being closed.
	_ = a.cfg.Mux.Gather(a.ctx, a.cfg.STUNServers, func(sock int) bool { return mine[sock] }, func(c Candidate) { a.signal(c.String()) })
	if a.ctx.Err() == nil {
		a.signal("")
	}
}

func (a *Agent) signal(c string) {
	if f := a.cfg.OnCandidate; f != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.enqueueLocked(func() { f(c) })
	}
}

// onRequest runs in pion's task loop for every authenticated check, after it was
// answered. It must not call the agent of pion.
func (a *Agent) onRequest(_ *stun.Message, local, remote pion.Candidate, _ *pion.CandidatePair) bool {
	if sock, addr, ok := a.pair(local, remote); ok {
		if remote.Type() == pion.CandidateTypePeerReflexive {
			a.mu.Lock()
			if len(a.reflexed) < maxCandidates {
				a.reflexed[addr] = true
			}
			a.mu.Unlock()
		}
		a.prove(sock, addr, false)
	}
	return false
}

// pair translates pion's candidates.
func (a *Agent) pair(local, remote pion.Candidate) (sock int, addr netip.AddrPort, ok bool) {
	base, err := netip.ParseAddrPort(joinHostPort(local))
	if err != nil {
		return 0, netip.AddrPort{}, false
	}
	addr, err = netip.ParseAddrPort(joinHostPort(remote))
	if err != nil {
		return 0, netip.AddrPort{}, false
	}
	sock, ok = a.view.socket(unmap(base))
	return sock, unmap(addr), ok
}

func joinHostPort(c pion.Candidate) string {
	if c.NetworkType().IsIPv6() {
		return "[" + c.Address() + "]:" + strconv.Itoa(c.Port())
	}
	return c.Address() + ":" + strconv.Itoa(c.Port())
}
