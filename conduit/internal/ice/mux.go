// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// MuxConfig configures a Mux. The zero value works, with no sockets.
type MuxConfig struct {
	// Sockets are the first sockets, with their indexes. More come by SetSocket.
	Sockets []Socket
	// Logger may be nil: nothing is logged.
	Logger *slog.Logger
	// IncludeLoopback lets loopback addresses be candidates. For tests.
	IncludeLoopback bool
	// ExcludePrefixes are the overlay's own prefixes: no candidate, STUN server or
	// check inside them is ever used.
	ExcludePrefixes []netip.Prefix
	// InterfaceFilter returns false for interfaces whose addresses must not become
	// candidates. Tunnels and container bridges are left out besides.
	InterfaceFilter func(name string) bool
	// LookupHost resolves names of STUN servers. Nil means net.DefaultResolver.
	LookupHost func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Stats counts what a Mux did with datagrams.
type Stats struct {
	Requests, Responses uint64 // given to an agent
	Mapped              uint64 // answers of STUN servers
	Malformed           uint64 // not a STUN message that we accept
	Forbidden           uint64 // from an address that no path may have
	UnknownUser         uint64 // a USERNAME of no agent of ours
	StaleUser           uint64 // a USERNAME of an agent that is gone
	BadIntegrity        uint64 // MESSAGE-INTEGRITY missing or wrong
	UnknownTransaction  uint64 // a response to nothing, or from elsewhere
	NotReady            uint64 // for an agent that does not use that socket (yet)
	Evicted             uint64 // older messages that made room for newer ones
}

// counters mirrors Stats.
type counters struct {
	requests, responses, mapped, malformed, forbidden, unknownUser, staleUser,
	badIntegrity, unknownTransaction, notReady, evicted atomic.Uint64
}

const (
	// transactionLife is how long a response may take; pion forgets after 4 s.
	transactionLife = 5 * time.Second
	// maxTransactions bounds one generation of outstanding transactions.
	maxTransactions = 1 << 15
	// tombstoneLife is how long the checks of a gone agent's peer go on at most.
	tombstoneLife = 30 * time.Second
	maxTombstones = 1024
)

// Mux shares sockets between ICE agents. All methods are safe for concurrent
// use. It does not read, close or own the sockets.
type Mux struct {
	cfg        MuxConfig
	log        *slog.Logger
	interfaces func() ([]ifaceAddr, error) // replaced by tests, before use

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // gathering

	sockets atomic.Pointer[[]Socket] // copy on write; a removed socket is nil
	stats   counters

	mu       sync.Mutex // guards the rest
	closed   bool
	agents   map[string]*entry
	tombs    map[string]time.Time
	txNew    map[txID]transaction
	txOld    map[txID]transaction
	txTurned time.Time
	flights  map[flightKey]*flight
	lookups  map[string]*lookup
}

// transaction is an outstanding request: of an agent (conn) or a question to a
// STUN server (flight).
type transaction struct {
	sock   int
	to     netip.AddrPort
	conn   *muxConn
	flight *flight
}

// entry is an agent as the mux knows it.
type entry struct {
	ufrag    string
	onProven func(sock int, from netip.AddrPort) // a check of ours was answered

	mu          sync.Mutex // guards the rest
	local       *integrity
	remote      *integrity // nil until the peer's credentials are known
	remoteUfrag []byte
	conns       map[int]*muxConn
	sources     sources
	closed      bool
}

// NewMux validates cfg and returns a mux over its sockets.
func NewMux(cfg MuxConfig) (*Mux, error) {
	for i, s := range cfg.Sockets {
		if err := checkSocket(s); err != nil {
			return nil, fmt.Errorf("socket %d: %w", i, err)
		}
	}
	cfg.ExcludePrefixes = slices.Clone(cfg.ExcludePrefixes)
	for i, p := range cfg.ExcludePrefixes {
		if !p.IsValid() {
			return nil, errors.New("invalid prefix in ExcludePrefixes")
		}
		cfg.ExcludePrefixes[i] = p.Masked()
	}
	if cfg.LookupHost == nil {
		cfg.LookupHost = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	m := &Mux{
		cfg:        cfg,
		log:        orDiscard(cfg.Logger),
		interfaces: systemAddrs,
		agents:     make(map[string]*entry),
		tombs:      make(map[string]time.Time),
		txNew:      make(map[txID]transaction),
		txOld:      make(map[txID]transaction),
		flights:    make(map[flightKey]*flight),
		lookups:    make(map[string]*lookup),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	socks := slices.Clone(cfg.Sockets)
	m.sockets.Store(&socks)
	return m, nil
}

// Handle takes a datagram that transport.Demux called STUN, received on the
// socket with that index. It does not block and keeps no reference to b.
func (m *Mux) Handle(sock int, b []byte, from netip.AddrPort) {
	var msg message
	if !parse(b, &msg) {
		m.stats.malformed.Add(1)
		return
	}
	from = unmap(from)
	if from.Port() == 0 || m.forbidden(from.Addr()) {
		m.stats.forbidden.Add(1)
		return
	}
	if msg.typ == typeRequest {
		m.handleRequest(sock, b, &msg, from)
	} else {
		m.handleResponse(sock, b, &msg, from)
	}
}

func (m *Mux) handleRequest(sock int, b []byte, msg *message, from netip.AddrPort) {
	local, remote, ok := bytes.Cut(b[msg.user:msg.user+msg.userLen], []byte{':'})
	if !ok || msg.integrity == 0 {
		m.stats.badIntegrity.Add(1)
		return
	}
	m.mu.Lock()
	e := m.agents[string(local)]
	_, stale := m.tombs[string(local)]
	m.mu.Unlock()
	switch {
	case e != nil:
	case stale:
		m.stats.staleUser.Add(1)
		return
	default:
		m.stats.unknownUser.Add(1)
		return
	}
	c, ok := e.request(sock, b, msg.integrity, remote, from)
	switch {
	case !ok:
		m.stats.badIntegrity.Add(1)
	case c == nil:
		m.stats.notReady.Add(1)
	default:
		m.stats.requests.Add(1)
		m.deliver(c, b, from)
	}
}

func (m *Mux) handleResponse(sock int, b []byte, msg *message, from netip.AddrPort) {
	m.mu.Lock()
	t, ok := m.txNew[msg.tx]
	if !ok {
		t, ok = m.txOld[msg.tx]
	}
	m.mu.Unlock()
	// A response comes from where its request went (RFC 8445 section 7.2.5.2.1).
	if !ok || t.sock != sock || t.to != from {
		m.stats.unknownTransaction.Add(1)
		return
	}
	if !msg.mapped.IsValid() {
		m.stats.malformed.Add(1)
		return
	}
	if t.conn != nil && !t.conn.entry.response(b, msg.integrity) {
		m.stats.badIntegrity.Add(1)
		return
	}
	// Only now: a forgery must not use up the transaction.
	m.mu.Lock()
	delete(m.txNew, msg.tx)
	delete(m.txOld, msg.tx)
	m.mu.Unlock()
	if t.conn == nil {
		m.stats.mapped.Add(1)
		t.flight.answer(msg.mapped)
		return
	}
	m.stats.responses.Add(1)
	t.conn.entry.proven(from)
	m.deliver(t.conn, b, from)
	if f := t.conn.entry.onProven; f != nil {
		f(sock, from)
	}
}

func (m *Mux) deliver(c *muxConn, b []byte, from netip.AddrPort) {
	if c.push(b, from) {
		m.stats.evicted.Add(1)
	}
}

// remember notes a request that is about to leave. Generations instead of timers:
// what is in neither of the last two is forgotten.
func (m *Mux) remember(id txID, t transaction) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	if now.Sub(m.txTurned) > transactionLife || len(m.txNew) >= maxTransactions {
		m.txNew, m.txOld = m.txOld, m.txNew
		clear(m.txNew)
		m.txTurned = now
	}
	m.txNew[id] = t
}

// register makes an agent known by its local credentials.
func (m *Mux) register(ufrag, pwd string, onProven func(int, netip.AddrPort)) (*entry, error) {
	e := &entry{ufrag: ufrag, onProven: onProven, local: newIntegrity(pwd), conns: make(map[int]*muxConn)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, net.ErrClosed
	}
	if m.agents[ufrag] != nil {
		return nil, fmt.Errorf("register %q: ufrag is in use", ufrag)
	}
	m.agents[ufrag] = e
	return e, nil
}

// unregister forgets an agent and closes its connections. It is idempotent.
func (m *Mux) unregister(e *entry) {
	now := time.Now()
	m.mu.Lock()
	if m.agents[e.ufrag] == e {
		delete(m.agents, e.ufrag)
		for u, at := range m.tombs {
			if now.Sub(at) > tombstoneLife || len(m.tombs) >= maxTombstones {
				delete(m.tombs, u)
			}
		}
		m.tombs[e.ufrag] = now
	}
	m.mu.Unlock()
	e.close()
}

// Stats returns the counters.
func (m *Mux) Stats() Stats {
	c := &m.stats
	return Stats{
		Requests: c.requests.Load(), Responses: c.responses.Load(), Mapped: c.mapped.Load(),
		Malformed: c.malformed.Load(), Forbidden: c.forbidden.Load(),
		UnknownUser: c.unknownUser.Load(), StaleUser: c.staleUser.Load(),
		BadIntegrity: c.badIntegrity.Load(), UnknownTransaction: c.unknownTransaction.Load(),
		NotReady: c.notReady.Load(), Evicted: c.evicted.Load(),
	}
}

// Close ends gathering and every connection and waits for the mux's goroutines.
// Agents are to be closed before. It leaves the sockets alone and is idempotent.
func (m *Mux) Close() error {
	m.cancel()
	m.mu.Lock()
	m.closed = true
	agents := m.agents
	m.agents = make(map[string]*entry)
	clear(m.txNew)
	clear(m.txOld)
	m.mu.Unlock()
	for _, e := range agents {
		e.close()
	}
	m.wg.Wait()
	return nil
}

// setRemote gives the peer's credentials, once.
func (e *entry) setRemote(ufrag, pwd string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remoteUfrag, e.remote = []byte(ufrag), newIntegrity(pwd)
}

// request authenticates a request and returns the connection it is for, nil if
// the agent does not use the socket.
func (e *entry) request(sock int, b []byte, integrity int, remoteUfrag []byte, from netip.AddrPort) (*muxConn, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.remote != nil && !bytes.Equal(e.remoteUfrag, remoteUfrag) {
		return nil, false
	}
	if !e.local.verify(b, integrity) {
		return nil, false
	}
	if !e.sources.request(sock, from) {
		return nil, false
	}
	return e.conns[sock], true
}

// response authenticates a response with the peer's password.
func (e *entry) response(b []byte, integrity int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.remote != nil && e.remote.verify(b, integrity)
}

// conn returns the agent's connection on a socket, made at the first call.
func (e *entry) conn(m *Mux, sock int, label *net.UDPAddr) (*muxConn, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, net.ErrClosed
	}
	c := e.conns[sock]
	if c == nil {
		c = newMuxConn(m, e, sock, label)
		e.conns[sock] = c
	}
	return c, nil
}

func (e *entry) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for _, c := range e.conns {
		_ = c.Close()
	}
}
