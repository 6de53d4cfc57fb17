// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/turn/v3"

	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/relay/lanequeue"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

const (
	turnQueue = 64
	turnInbox = 256
	// turnPeers bounds the addresses that an allocation may talk to. pion never gives
	// one up, and servers allow as many.
	turnPeers = 64
	// peerPending is how many packets wait for the permission of one address.
	peerPending = 8
	// refusedFor is how long an address that the server refused is left alone.
	refusedFor = 30 * time.Second
	// Where the server is silent for turnSilence while packets leave, it is asked, and
	// is lost after turnAnswer.
	turnSilence = 3 * time.Second
	turnAnswer  = 3 * time.Second
	// turnClose bounds Close.
	turnClose = 3 * time.Second
)

var (
	errTurnSilent = errors.New("TURN server does not answer")
	errTurnFull   = errors.New("allocation has too many peers")
	errTurnAddr   = errors.New("TURN server gave an unusable address")
)

// TurnConfig is what a TurnBind needs.
type TurnConfig struct {
	// Server is the TURN server's IPv4 address. Required.
	Server netip.AddrPort
	// Username and Password are of the long-term credential mechanism.
	Username, Password string
	// Interface and Local bind the socket to a device and an address, as
	// transport.Config has them.
	Interface string
	Local     netip.Addr
	// Lost, which may be nil, is told once why the allocation is of no use any more:
	// the server is silent or has forgotten it, or it has room for no more peers. It
	// must not block or call Close.
	Lost func(error)
	// Listen opens the socket; nil means transport.Listen.
	Listen func(transport.Config) (transport.Bind, error)
	// Logger nil discards.
	Logger *slog.Logger
}

// TurnBind is an allocation at a TURN server over UDP. Peers are reached by their
// own addresses; they see RelayedAddr. Its methods are safe for concurrent use.
type TurnBind struct {
	cfg     TurnConfig // set once in DialTurn
	log     *slog.Logger
	conn    *turnConn
	client  *turn.Client
	alloc   net.PacketConn
	relayed netip.AddrPort
	in      *inbox
	count   counters

	wake chan struct{} // holds a token where there may be something to send
	done chan struct{} // closed by Close
	wg   sync.WaitGroup

	lostOnce  sync.Once
	closeOnce sync.Once

	mu     sync.Mutex // guards the following
	closed bool
	queue  *lanequeue.Queue[arrival]
	free   [][]byte
	peers  map[netip.AddrPort]*turnPeer
	asked  netip.AddrPort // the newest address that a permission was asked for
}

var (
	_ transport.Bind   = (*TurnBind)(nil)
	_ transport.Waiter = (*TurnBind)(nil)
)

// peerState is how far an address is.
type peerState uint8

const (
	peerOpening peerState = iota
	peerOpen
	peerRefused
)

// turnPeer is an address that was sent to.
type turnPeer struct {
	state   peerState
	addr    *net.UDPAddr
	until   time.Time // of peerRefused
	pending *lanequeue.Queue[arrival]
}

// DialTurn opens a socket and makes an allocation, for which it waits until ctx
// ends.
func DialTurn(ctx context.Context, cfg TurnConfig) (*TurnBind, error) {
	if !cfg.Server.Addr().Is4() || cfg.Server.Port() == 0 {
		return nil, fmt.Errorf("TURN server %v: want an IPv4 address and a port", cfg.Server)
	}
	if cfg.Lost == nil {
		cfg.Lost = func(error) {}
	}
	if cfg.Listen == nil {
		cfg.Listen = transport.Listen
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	sock, err := cfg.Listen(transport.Config{Network: "udp4", Addr: cfg.Local, Interface: cfg.Interface, NoGRO: true})
	if err != nil {
		return nil, fmt.Errorf("open socket for TURN: %w", err)
	}
	b := &TurnBind{
		cfg: cfg, log: log.With("server", cfg.Server),
		conn: newTurnConn(sock, cfg.Server, cfg.Username, cfg.Password),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		queue: lanequeue.New[arrival](turnQueue), peers: make(map[netip.AddrPort]*turnPeer),
	}
	b.in = newInbox(turnInbox, &b.count)
	b.client, err = turn.NewClient(&turn.ClientConfig{
		TURNServerAddr: cfg.Server.String(), Username: cfg.Username, Password: cfg.Password,
		Conn: b.conn, Net: literalNet{}, LoggerFactory: ice.NewLoggerFactory(log),
	})
	if err != nil {
		_ = sock.Close()
		return nil, fmt.Errorf("make TURN client: %w", err)
	}
	b.wg.Go(func() { fips140.WithoutEnforcement(b.read) })
	if err := b.allocate(ctx); err != nil {
		_ = b.Close()
		return nil, fmt.Errorf("allocate at TURN server %v: %w", cfg.Server, err)
	}
	b.wg.Go(func() { fips140.WithoutEnforcement(b.write) })
	b.wg.Go(func() { fips140.WithoutEnforcement(b.watch) })
	return b, nil
}

// allocate asks for the allocation. HMAC-SHA1 and MD5 are TURN's; what it carries is
// sealed, so FIPS mode may let them pass, in this goroutine and in those that pion
// starts from it.
func (b *TurnBind) allocate(ctx context.Context) (err error) {
	stop := context.AfterFunc(ctx, func() {
		b.conn.closed.Store(true) // so that pion starts no transaction any more
		b.client.Close()
	})
	fips140.WithoutEnforcement(func() { b.alloc, err = b.client.Allocate() })
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	a, ok := b.alloc.LocalAddr().(*net.UDPAddr)
	if !ok {
		return errTurnAddr
	}
	b.relayed = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	ip := b.relayed.Addr()
	if !ip.Is4() || b.relayed.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLoopback() && !b.cfg.Server.Addr().IsLoopback() {
		return fmt.Errorf("%w: %v", errTurnAddr, b.relayed)
	}
	return nil
}

// RelayedAddr is where peers reach us: the candidate of type relay.
func (b *TurnBind) RelayedAddr() netip.AddrPort { return b.relayed }

// LocalAddr returns the address of the socket to the server.
func (b *TurnBind) LocalAddr() netip.AddrPort { return b.conn.bind.LocalAddr() }

// Sockets returns 1.
func (b *TurnBind) Sockets() int { return 1 }

// BatchSize implements transport.Bind.
func (b *TurnBind) BatchSize() int { return batchSize }

// RecvBufSize implements transport.Bind.
func (b *TurnBind) RecvBufSize() int { return recvBufSize }

// Receive implements transport.Bind.
func (b *TurnBind) Receive(_ int, msgs []transport.Message) (int, error) { return b.in.receive(msgs) }

// Counters returns what was carried.
func (b *TurnBind) Counters() Counters { return b.count.get() }

// SetSendWait implements transport.Waiter: Send never waits.
func (b *TurnBind) SetSendWait(time.Duration) {}

// Send implements transport.Bind. The first packets to an address wait for the
// server's permission; those to one that it refuses are dropped and counted.
func (b *TurnBind) Send(lane int, msgs []transport.Message) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, net.ErrClosed
	}
	for i := range msgs {
		b.pushLocked(b.queue, lane, msgs[i].Addr, msgs[i].Buf)
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return len(msgs), nil
}

// pushLocked copies a packet into a queue.
func (b *TurnBind) pushLocked(q *lanequeue.Queue[arrival], lane int, to netip.AddrPort, data []byte) {
	var room []byte
	if n := len(b.free); n > 0 {
		room, b.free = b.free[n-1], b.free[:n-1]
	}
	old, from := q.Push(lane, arrival{to, append(room[:0], data...)})
	if from >= 0 {
		b.freeLocked(old.data)
		b.count.dropped[from].Add(1)
	}
}

func (b *TurnBind) freeLocked(data []byte) {
	if len(b.free) < turnQueue {
		b.free = append(b.free, data)
	}
}

// write empties the queue.
func (b *TurnBind) write() {
	for {
		b.mu.Lock()
		p, lane, ok := b.queue.Pop()
		var peer *turnPeer
		if ok {
			peer = b.routeLocked(p, lane, time.Now())
		}
		b.mu.Unlock()
		switch {
		case !ok:
			select {
			case <-b.wake:
			case <-b.done:
				return
			}
		case peer != nil:
			_ = b.transmit(peer, p.data) // lost, like on the way
			b.mu.Lock()
			b.freeLocked(p.data)
			b.mu.Unlock()
		}
	}
}

// routeLocked returns the peer where a packet can leave at once, or nil after the
// packet was put aside or dropped.
func (b *TurnBind) routeLocked(p arrival, lane int, now time.Time) *turnPeer {
	peer := b.peers[p.from]
	switch {
	case peer == nil && (!b.reachable(p.from) || len(b.peers) >= turnPeers):
		if b.reachable(p.from) {
			b.lost(errTurnFull)
		}
		b.refuseLocked(p)
		return nil
	case peer == nil:
		peer = &turnPeer{addr: net.UDPAddrFromAddrPort(p.from), pending: lanequeue.New[arrival](peerPending)}
		b.peers[p.from] = peer
	case peer.state == peerOpen:
		return peer
	case peer.state == peerRefused && now.Before(peer.until):
		b.refuseLocked(p)
		return nil
	case peer.state == peerOpening:
		b.putAsideLocked(peer, lane, p)
		return nil
	}
	b.putAsideLocked(peer, lane, p)
	b.asked = p.from
	if peer.state = peerOpening; !b.closed {
		b.wg.Go(func() { fips140.WithoutEnforcement(func() { b.open(p.from, peer) }) })
	}
	return nil
}

func (b *TurnBind) refuseLocked(p arrival) {
	b.count.refused.Add(1)
	b.freeLocked(p.data)
}

func (b *TurnBind) putAsideLocked(peer *turnPeer, lane int, p arrival) {
	if old, from := peer.pending.Push(lane, p); from >= 0 {
		b.freeLocked(old.data)
		b.count.dropped[from].Add(1)
	}
}

// reachable tells whether it makes sense to ask for a: a server in the internet
// reaches no private network, and none relays to where no peer can be.
func (b *TurnBind) reachable(a netip.AddrPort) bool {
	ip := a.Addr()
	if !ip.Is4() || a.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
		return false
	}
	return !private(ip) || private(b.cfg.Server.Addr())
}

var shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

func private(ip netip.Addr) bool { return ip.IsPrivate() || ip.IsLoopback() || shared.Contains(ip) }

// open asks for the permission, which pion does before it sends the first packet,
// and sends what waited meanwhile.
func (b *TurnBind) open(to netip.AddrPort, peer *turnPeer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		p, _, ok := peer.pending.Pop()
		if !ok {
			peer.state = peerOpen
			return
		}
		b.mu.Unlock()
		err := b.transmit(peer, p.data)
		b.mu.Lock()
		if err == nil {
			b.freeLocked(p.data)
			continue
		}
		for ; ok; p, _, ok = peer.pending.Pop() {
			b.refuseLocked(p)
		}
		peer.state, peer.until = peerRefused, time.Now().Add(refusedFor)
		b.log.Debug("TURN server refuses a peer", "peer", to, "err", err)
		return
	}
}

func (b *TurnBind) transmit(peer *turnPeer, data []byte) error {
	b.conn.sent.Store(true)
	if _, err := b.alloc.WriteTo(data, peer.addr); err != nil {
		return err
	}
	b.count.txPackets.Add(1)
	b.count.txBytes.Add(uint64(len(data)))
	return nil
}

// lost tells the owner, once.
func (b *TurnBind) lost(why error) {
	b.lostOnce.Do(func() {
		b.log.Info("TURN allocation is lost", "err", why)
		b.cfg.Lost(why)
	})
}
