// SPDX-License-Identifier: Apache-2.0

// Package turn serves TURN (RFC 8656) over UDP to the nodes of the mesh, and STUN
// on the same socket. The protocol machine is pion's; what this package adds is
// who may use it, with whom, and how much.
//
// A relay that anybody can aim is a hole into the network that the hub stands in.
// So peers are checked against a table of refused ranges when a permission is
// asked for and again for every packet, and the hub's own addresses are peers only
// where another allocation answers there.
//
// An allocation gets a rate in each direction and no queue: packets above it are
// dropped and counted.
package turn

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/turn/v4"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/stun"
)

const (
	realm  = "bauxite"
	keyLen = 32
	// maxPeers bounds the permissions of an allocation, and its channels.
	maxPeers = 64
	// ownEvery is how often the machine's addresses are read again.
	ownEvery = 30 * time.Second
	// admitTime bounds one call of Admit, which holds up the socket.
	admitTime = 2 * time.Second
)

// Config is how a Server behaves. The zero value of a field is its documented
// default.
type Config struct {
	// Listen is the UDP address of STUN and TURN; empty means ":3478".
	Listen string
	// Host is the name or address that the URIs given to nodes carry. Required.
	Host string
	// RelayAddrs are the addresses that peers see, one of a family at most. They may
	// belong to a NAT in front of this machine that passes the port range on.
	// Required.
	RelayAddrs []netip.Addr
	// MinPort and MaxPort bound the ports of allocations, inclusive; zero means
	// 50000 and 50999.
	MinPort, MaxPort uint16
	// Admit returns an error for a node that may not use the server. It is called
	// for each authenticated request, those for more time included. Required.
	Admit func(context.Context, identity.PeerID) error
	// Mesh are the prefixes of the mesh, which are never peers.
	Mesh []netip.Prefix
	// AllowPeers are private ranges (RFC 1918, RFC 6598, RFC 4193) that peers may be
	// in. By default they are refused.
	AllowPeers []netip.Prefix
	// Own returns this machine's addresses, with the prefixes of their networks; nil
	// asks the interfaces.
	Own func() []netip.Prefix
	// Rate is what an allocation may carry in each direction, in bytes of payload
	// per second; zero means 1,000,000 (8 Mbit/s). Burst is what it may carry at
	// once; zero means a quarter of a second's worth, 64 KiB at least.
	Rate, Burst int
	// MaxPerNode and MaxTotal bound the allocations; zero means 4 and 1000, or as
	// many as there are ports.
	MaxPerNode, MaxTotal int
	// Lifetime is that of credentials; zero means 12 hours.
	Lifetime time.Duration
	// Key makes the passwords; nil draws one. Credentials then end with the process,
	// as the allocations do.
	Key []byte
	// Logger nil discards.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Listen == "" {
		c.Listen = ":3478"
	}
	if c.MinPort == 0 && c.MaxPort == 0 {
		c.MinPort, c.MaxPort = 50000, 50999
	}
	if c.MinPort == 0 || c.MaxPort < c.MinPort {
		return c, fmt.Errorf("relay ports %d to %d: want a range above 0", c.MinPort, c.MaxPort)
	}
	if c.Host == "" || c.Admit == nil {
		return c, errors.New("host and admission are required")
	}
	var seen [2]bool
	for _, a := range c.RelayAddrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return c, fmt.Errorf("relay address %v: want one that peers can reach", a)
		}
		if seen[family(a)] {
			return c, errors.New("two relay addresses of one family")
		}
		seen[family(a)] = true
	}
	if len(c.RelayAddrs) == 0 {
		return c, errors.New("no relay address")
	}
	for _, d := range []struct {
		v   *int
		def int
	}{{&c.Rate, 1_000_000}, {&c.MaxPerNode, 4}, {&c.MaxTotal, 1000}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.Burst == 0 {
		c.Burst = max(c.Rate/4, 64<<10)
	}
	if c.Rate < 0 || c.Burst < 1500 || c.MaxPerNode < 0 || c.MaxTotal < 0 {
		return c, errors.New("rate, burst or a limit is too small")
	}
	if c.Lifetime == 0 {
		c.Lifetime = 12 * time.Hour
	}
	if c.Own == nil {
		c.Own = interfaces
	}
	if c.Key == nil {
		c.Key = make([]byte, keyLen)
		if _, err := rand.Read(c.Key); err != nil {
			return c, fmt.Errorf("generate key: %w", err)
		}
	}
	if len(c.Key) < 16 {
		return c, errors.New("key is shorter than 16 bytes")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// family is the index of a's family.
func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 0
	}
	return 1
}

// Stats are counters since the start, but for Allocations and Nodes, which are the
// present number.
type Stats struct {
	Allocations, Nodes int
	Created            uint64
	// Refused requests, by reason: bad or foreign credentials, a node that is not
	// admitted, too many allocations, a peer in a refused range, too many requests
	// from one network.
	RefusedAuth, RefusedNode, RefusedQuota, RefusedPeer, RefusedRate uint64
	// Relayed payload, up (from a node to a peer) and down.
	UpPackets, UpBytes, DownPackets, DownBytes uint64
	// Dropped packets of allocations: over the rate, and to a refused peer.
	DroppedRate, DroppedPeer uint64
	// Bindings answered, and what was neither that nor TURN.
	Bindings, Dropped uint64
}

type counters struct {
	created, auth, node, quota, peer, rate         atomic.Uint64
	upPackets, upBytes, downPackets, downBytes     atomic.Uint64
	droppedRate, droppedPeer, bindings, droppedAny atomic.Uint64
}

// Server serves on its sockets. Make one with Listen. Its methods are safe for
// concurrent use.
type Server struct {
	cfg     Config // set once in Listen
	urls    []string
	relay   [2]netip.Addr // public, by family
	bind    [2]netip.Addr // where relay sockets listen, by family
	sockets []*socket
	servers []*turn.Server
	sources sources
	wg      sync.WaitGroup // readers of sockets, and open relays
	once    sync.Once
	err     error

	table   atomic.Pointer[table]
	tableMu sync.Mutex // guards tableAt
	tableAt time.Time

	count counters

	mu     sync.Mutex // guards the following
	closed bool
	// revocations counts calls of Revoke: a node that was admitted before one may
	// not be any more.
	revocations uint64
	relays      [2]map[uint16]*relayConn // by family and port
	nodes       map[identity.PeerID]map[*relayConn]struct{}
	total       int
}

var errNoRelay = errors.New("no relay address of this family")

// Listen opens the sockets and starts to serve. Close ends it.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure TURN: %w", err)
	}
	conns, err := stun.Open(ctx, cfg.Listen, cfg.Logger)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, urls: []string{uri(cfg.Host, conns[0].Addr().Port())},
		sources: sources{seed: maphash.MakeSeed()},
		relays:  [2]map[uint16]*relayConn{{}, {}},
		nodes:   make(map[identity.PeerID]map[*relayConn]struct{}),
	}
	for _, a := range cfg.RelayAddrs {
		s.relay[family(a)] = a.Unmap()
	}
	s.bind = [2]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	if a := conns[0].Addr().Addr().Unmap(); !a.IsUnspecified() {
		// A hub that listens on one address sends from no other.
		s.bind[family(a)] = a
		s.relay[1-family(a)] = netip.Addr{}
	}
	s.refreshTable(time.Now())
	for _, c := range conns {
		sock := newSocket(s, c)
		s.sockets = append(s.sockets, sock)
		s.wg.Add(1) // the reader's, which pion starts
		// TURN's HMAC-SHA-1 and MD5 run on the goroutines that this starts.
		var ts *turn.Server
		var err error
		fips.Unapproved(func() {
			ts, err = turn.NewServer(turn.ServerConfig{
				PacketConnConfigs: []turn.PacketConnConfig{{
					PacketConn: sock, RelayAddressGenerator: sock, PermissionHandler: sock.permit,
				}},
				LoggerFactory: logs{cfg.Logger}, Realm: realm,
				AuthHandler: sock.authenticate, QuotaHandler: sock.quota, EventHandler: sock.events(),
			})
		})
		if err != nil {
			s.wg.Done()
			err = fmt.Errorf("serve TURN: %w", err)
			for _, c := range conns {
				err = errors.Join(err, c.Close())
			}
			return nil, errors.Join(err, s.Close())
		}
		s.servers = append(s.servers, ts)
	}
	return s, nil
}

// Addr returns the address of the first socket.
func (s *Server) Addr() netip.AddrPort { return s.sockets[0].c.Addr() }

// Close ends all allocations, closes the sockets and waits. It may be called again.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		for _, ts := range s.servers {
			s.err = errors.Join(s.err, ts.Close())
		}
		s.end(func(*relayConn) bool { return true })
		s.wg.Wait()
	})
	return s.err
}

// Revoke deletes the allocations of a node. That it makes no new ones is up to
// Admit.
func (s *Server) Revoke(id identity.PeerID) {
	s.mu.Lock()
	s.revocations++
	s.mu.Unlock()
	s.end(func(r *relayConn) bool { return r.node == id })
}

// end closes the relay sockets that match; pion deletes their allocations then.
func (s *Server) end(match func(*relayConn) bool) {
	var all []*relayConn
	s.mu.Lock()
	for _, m := range s.relays {
		for _, r := range m {
			if match(r) {
				all = append(all, r)
			}
		}
	}
	s.mu.Unlock()
	for _, r := range all {
		_ = r.Close()
	}
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	c := &s.count
	st := Stats{
		Created: c.created.Load(), RefusedAuth: c.auth.Load(), RefusedNode: c.node.Load(),
		RefusedQuota: c.quota.Load(), RefusedPeer: c.peer.Load(), RefusedRate: c.rate.Load(),
		UpPackets: c.upPackets.Load(), UpBytes: c.upBytes.Load(),
		DownPackets: c.downPackets.Load(), DownBytes: c.downBytes.Load(),
		DroppedRate: c.droppedRate.Load(), DroppedPeer: c.droppedPeer.Load(),
		Bindings: c.bindings.Load(), Dropped: c.droppedAny.Load(),
	}
	s.mu.Lock()
	st.Allocations, st.Nodes = s.total, len(s.nodes)
	s.mu.Unlock()
	return st
}

// refreshTable reads the machine's addresses anew where the table is old: they
// change with leases and interfaces.
func (s *Server) refreshTable(now time.Time) {
	s.tableMu.Lock()
	defer s.tableMu.Unlock()
	if now.Sub(s.tableAt) >= ownEvery {
		s.table.Store(newTable(&s.cfg, s.cfg.Own()))
		s.tableAt = now
	}
}

// live tells whether an allocation answers at the public address a.
func (s *Server) live(a netip.AddrPort) bool {
	f := family(a.Addr())
	if a.Addr() != s.relay[f] {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.relays[f][a.Port()] != nil
}

// admits says whether one more allocation is within the bounds.
func (s *Server) admitsLocked(id identity.PeerID) bool {
	return !s.closed && s.total < s.cfg.MaxTotal && len(s.nodes[id]) < s.cfg.MaxPerNode
}

// open binds a relay socket for a node.
func (s *Server) open(sock *socket, req *request) (*relayConn, error) {
	f := 0
	if req.family == 6 || req.family == 0 && !s.relay[0].IsValid() {
		f = 1
	}
	if !s.relay[f].IsValid() {
		return nil, errNoRelay
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.admitsLocked(req.node) || req.gen != s.revocations {
		return nil, errors.New("allocations or revocations came in between")
	}
	c, port, err := s.bindLocked(f)
	if err != nil {
		return nil, err
	}
	r := &relayConn{
		s: s, sock: sock, c: c, node: req.node, client: req.from, local: req.local,
		addr: netip.AddrPortFrom(s.relay[f], port), family: f,
		peers: make(map[netip.Addr]struct{}), channels: make(map[uint16]struct{}),
	}
	s.relays[f][port] = r
	if s.nodes[req.node] == nil {
		s.nodes[req.node] = make(map[*relayConn]struct{})
	}
	s.nodes[req.node][r] = struct{}{}
	s.total++
	s.wg.Add(1)
	s.count.created.Add(1)
	return r, nil
}

// bindLocked binds a free port of the range, beginning anywhere.
func (s *Server) bindLocked(f int) (*net.UDPConn, uint16, error) {
	n := int(s.cfg.MaxPort-s.cfg.MinPort) + 1
	network := []string{"udp4", "udp6"}[f]
	err := errors.New("all relay ports are in use")
	for i, start := 0, randN(n); i < n; i++ {
		port := s.cfg.MinPort + uint16((start+i)%n)
		if s.relays[f][port] != nil {
			continue
		}
		c, lerr := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.bind[f], port)))
		if lerr == nil {
			return c, port, nil
		}
		err = lerr
	}
	return nil, 0, fmt.Errorf("bind relay port: %w", err)
}

// forget removes a closed relay.
func (s *Server) forget(r *relayConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.relays[r.family], r.addr.Port())
	if delete(s.nodes[r.node], r); len(s.nodes[r.node]) == 0 {
		delete(s.nodes, r.node)
	}
	s.total--
	s.wg.Done()
}
