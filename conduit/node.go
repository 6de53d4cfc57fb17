// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/classify"
	"github.com/bauxite-mesh/bauxite/conduit/internal/engine"
	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
	"github.com/bauxite-mesh/bauxite/conduit/internal/snapshot"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// Errors that callers branch on. ErrUnknownPeer and ErrAmbiguousPeer come from
// Resolve and Connect, ErrNoPath, ErrNoAnswer and ErrDenied from Connect.
var (
	ErrUnknownPeer   = registry.ErrUnknown
	ErrAmbiguousPeer = registry.ErrAmbiguous
	ErrNoPath        = engine.ErrNoPath
	ErrNoAnswer      = engine.ErrNoAnswer
	ErrDenied        = engine.ErrDenied
)

// flushOnClose bounds how long Close waits until the goodbyes have left.
const flushOnClose = 200 * time.Millisecond

// Node is one machine's place in the mesh (BauxiteNode): it carries the packets
// of its Device to other nodes. All methods are safe for concurrent use.
type Node struct {
	cfg      *Config // set once in New
	log      *slog.Logger
	policy   *policy.Engine
	registry registry.Registry
	psks     pskRing
	rates    rates

	// Set once in Start.
	plane     *dataplane.Dataplane
	engine    *engine.Engine
	mux       *ice.Mux
	underlay  underlay
	keeper    *snapshot.Keeper // nil: nothing is kept
	port      int
	started   time.Time
	cancel    context.CancelFunc
	cancelHub context.CancelFunc // of the hub link, which ends last
	ended     chan struct{}      // closed when the engine has ended
	workers   sync.WaitGroup
	closed    chan struct{} // when Close is done

	mu    sync.Mutex // guards the rest
	state nodeState
	hub   HubStatus
	cert  *identity.Certificate
}

type nodeState uint8

const (
	stateNew nodeState = iota
	stateRunning
	stateClosed
)

// New checks cfg and returns a node that is not yet started. It does no I/O.
func New(cfg Config) (*Node, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg.Clone(), log: cfg.Logger, cert: cfg.Certificate, closed: make(chan struct{})}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.rates.changed = n.stateChanged
	n.psks.now = pskEntry{n.cfg.PSK, n.cfg.PSKEpoch}
	c := cfg.Certificate
	n.policy = policy.NewEngine(policy.Subject{ID: c.ID, Name: c.Name})
	return n, nil
}

// Start opens the sockets and runs the node until Close. ctx bounds only the
// start itself.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.state == stateClosed:
		return net.ErrClosed
	case n.state == stateRunning:
		return errors.New("start node: is running already")
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if err := n.cert.Verify(n.cfg.Roots, time.Now()); err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	state := n.loadState()
	port, exclude := n.lastPort(state), n.overlay()
	if err := n.assemble(exclude, port); err != nil {
		return err
	}
	if state != nil {
		n.restore(state)
	}
	if err := n.listen(ctx, exclude, port); err != nil {
		_ = n.plane.Close()
		_ = n.mux.Close()
		return err
	}
	run, cancel := context.WithCancel(context.Background())
	n.cancel, n.started, n.state = cancel, time.Now(), stateRunning
	link, cancelHub := context.WithCancel(context.Background())
	n.cancelHub, n.ended = cancelHub, make(chan struct{})
	n.plane.Start()
	if n.cfg.StateFile != "" {
		n.keeper = snapshot.NewKeeper(snapshot.KeeperConfig{File: n.cfg.StateFile, Take: n.takeState, Logger: n.log})
	}
	n.workers.Go(func() {
		defer close(n.ended)
		n.engine.Run(run)
	})
	n.workers.Go(func() { n.underlay.uplinks.Run(run) })
	n.workers.Go(func() { n.watchBudgets(run) })
	if n.underlay.turns != nil {
		n.workers.Go(func() { n.underlay.turns.Run(run) })
	}
	n.workers.Go(func() {
		if err := n.cfg.Hub.Run(link, hubEvents{n}); err != nil && link.Err() == nil {
			n.log.Error("hub link ended for good; known peers stay reachable", "err", err)
			hubEvents{n}.HubState(false, err)
		}
	})
	return nil
}

// virtual returns our own virtual addresses.
func (n *Node) virtual() []netip.Addr {
	if c := n.cert; c.Virtual6.IsValid() {
		return []netip.Addr{c.Virtual4, c.Virtual6}
	}
	return []netip.Addr{n.cert.Virtual4}
}

// overlay returns the prefixes that no end of a path can be in.
func (n *Node) overlay() []netip.Prefix {
	out := slices.Clone(n.cfg.MeshPrefixes)
	for _, a := range n.virtual() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// assemble builds what runs.
func (n *Node) assemble(exclude []netip.Prefix, port int) error {
	c := n.cert
	local := n.virtual()
	suites, err := n.cfg.suites()
	if err != nil {
		return err
	}
	var psk func(uint8) []byte
	if n.cfg.PSK != nil {
		psk = n.psks.get
	}
	var resolve func(ctx context.Context, q engine.Query) (engine.Resolved, error)
	var ask func(netip.Addr)
	if r, ok := n.cfg.Hub.(PeerResolver); ok {
		resolve = func(ctx context.Context, q engine.Query) (engine.Resolved, error) {
			p, err := r.ResolvePeer(ctx, PeerQuery(q))
			return engine.Resolved{Peer: registry.Peer(p.Peer), Online: p.Online, Instance: p.Instance}, err
		}
		ask = func(a netip.Addr) { n.engine.Ask(a) }
	}
	lanes, err := laneRules(n.cfg.Lanes)
	if err != nil {
		return err
	}
	n.plane = dataplane.New(dataplane.Config{
		Classify: classify.Config{Rules: lanes},
		Device:   n.cfg.Device, Policy: n.policy, Local: local, Logger: n.log,
		STUN: func(bind int, b []byte, from netip.AddrPort) { n.mux.Handle(bind, b, from) },
		Ask:  ask, Mesh: n.cfg.MeshPrefixes,
		Want:      func(p *dataplane.Peer) { n.engine.Want(p) },
		Control:   func(c dataplane.Control) { n.engine.Control(c) },
		Handshake: func(from dataplane.Path, b []byte) { n.engine.Handshake(from, b) },
		Forward:   func(from *dataplane.Peer, to identity.PeerID) *dataplane.Peer { return n.engine.Forward(from, to) },
		Relayed: func(relay *dataplane.Peer, from identity.PeerID) (dataplane.Path, bool) {
			return n.engine.Relayed(relay, from)
		},
		Refused: n.refused,
		Pacing:  n.strategy, CriticalShare: n.cfg.Pacing.withDefaults().CriticalShare,
	})
	n.policy.SetAlarm(n.overBudget)
	n.mux, err = ice.NewMux(ice.MuxConfig{
		Logger: n.log, IncludeLoopback: n.cfg.IncludeLoopback, ExcludePrefixes: exclude,
	})
	if err != nil {
		return err
	}
	if err := n.openUnderlay(exclude, port); err != nil {
		return err
	}
	modes, err := n.cfg.modes()
	if err != nil {
		return err
	}
	conf := engine.Config{
		Keys: n.cfg.Keys, Chain: c.Chain, Roots: n.cfg.Roots, PSK: psk, PSKEpoch: n.pskEpoch(), PSKBefore: n.psks.last, Suites: suites, Rehandshake: n.cfg.Rehandshake,
		Dataplane: n.plane, Policy: n.policy, Registry: &n.registry, Mux: n.mux,
		STUNServers: n.cfg.STUNServers, Resolve: resolve, Signal: n.cfg.Hub.Signal, Logger: n.log,
		Modes: modes, Changed: n.stateChanged,
	}
	n.engineConfig(&conf)
	n.engine = engine.New(conf)
	return nil
}

// stateChanged tells that a restart should know more than was written.
func (n *Node) stateChanged() {
	if n.keeper != nil {
		n.keeper.Changed()
	}
}

// Close tells the peers, stops everything and closes Device. It is idempotent
// and returns when all goroutines have ended.
func (n *Node) Close() error {
	n.mu.Lock()
	was := n.state
	n.state = stateClosed
	n.mu.Unlock()
	switch was {
	case stateNew:
		defer close(n.closed)
		return n.cfg.Device.Close()
	case stateClosed:
		<-n.closed
		return nil
	case stateRunning:
	}
	var err error
	if n.keeper != nil {
		err = n.keeper.Close() // while the engine can still be asked
	}
	n.cancel()
	<-n.ended // the engine has queued its goodbyes
	n.plane.Flush(flushOnClose)
	n.cancelHub() // which may carry them
	n.workers.Wait()
	defer close(n.closed)
	return errors.Join(err, n.plane.Close(), n.mux.Close())
}

// ID returns the node's PeerID.
func (n *Node) ID() identity.PeerID { return n.cfg.Certificate.ID }

// SetCertificate replaces the node's certificate by a renewed one, which must be
// for the same keys, name and addresses. New handshakes use it; sessions go on.
func (n *Node) SetCertificate(c *identity.Certificate) error {
	old := n.cfg.Certificate
	switch {
	case c.ID != old.ID:
		return fmt.Errorf("%w: renewed certificate is for peer %s", ErrConfig, c.ID.Short())
	case c.Name != old.Name:
		return fmt.Errorf("%w: renewed certificate has the name %q", ErrConfig, c.Name)
	case c.Virtual4 != old.Virtual4 || c.Virtual6 != old.Virtual6 || c.MeshID != old.MeshID:
		return fmt.Errorf("%w: renewed certificate has other addresses or another mesh", ErrConfig)
	}
	if err := c.Verify(n.cfg.Roots, time.Now()); err != nil {
		return fmt.Errorf("renewed certificate: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cert = c
	if n.state == stateRunning {
		n.engine.SetChain(c.Chain)
	}
	return nil
}

// certificate returns the certificate in use.
func (n *Node) certificate() *identity.Certificate {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cert
}

// Resolve finds a peer by PeerID, a unique prefix of one, a name or a virtual
// address.
func (n *Node) Resolve(text string) (Peer, error) {
	p, err := n.registry.Resolve(text)
	if err != nil {
		return Peer{}, err
	}
	return Peer(*p), nil
}

// Lookup is Resolve, and asks the hub where that finds nobody: in a large mesh a
// node is not told of all others. The hub knows no prefixes of PeerIDs.
func (n *Node) Lookup(ctx context.Context, text string) (Peer, error) {
	p, err := n.Resolve(text)
	if !errors.Is(err, ErrUnknownPeer) {
		return p, err
	}
	q, ok := query(text)
	n.mu.Lock()
	running := n.state == stateRunning
	n.mu.Unlock()
	if !ok || !running {
		return Peer{}, err
	}
	if err := n.engine.Resolve(ctx, q); err != nil {
		return Peer{}, err
	}
	return n.Resolve(text)
}

// query reads what the hub can be asked for.
func query(text string) (q engine.Query, ok bool) {
	text = strings.ToLower(strings.TrimSpace(text))
	if id, err := identity.ParsePeerID(text); err == nil {
		return engine.Query{ID: id}, true
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return engine.Query{Addr: a}, a.Zone() == ""
	}
	name := strings.TrimSuffix(text, ".mesh")
	return engine.Query{Name: name}, identity.ValidName(name)
}

// Connect sets up a session with a peer and returns when a path stands. progress,
// which may be nil, is told each new state (handshake, checking, connected) and
// must not block. A packet for the peer does the same by itself.
func (n *Node) Connect(ctx context.Context, id identity.PeerID, progress func(state string)) error {
	n.mu.Lock()
	state := n.state
	n.mu.Unlock()
	if state != stateRunning {
		return fmt.Errorf("connect: %w", net.ErrClosed)
	}
	return n.engine.Connect(ctx, id, progress)
}

// stunSocket lets ICE send through the Critical lane.
type stunSocket struct {
	plane *dataplane.Dataplane
	bind  int
	addr  netip.AddrPort
	name  string // of the interface; empty for none

	metered bool
}

// Rank puts interfaces that cost last.
func (s stunSocket) Rank() int {
	if s.metered {
		return 1
	}
	return 0
}

func (s stunSocket) Interface() string                    { return s.name }
func (s stunSocket) Fallback() bool                       { return s.name == "" }
func (s stunSocket) LocalAddr() netip.AddrPort            { return s.addr }
func (s stunSocket) SendSTUN(b []byte, to netip.AddrPort) { s.plane.SendSTUN(s.bind, b, to) }

// hubEvents passes on what the hub link reports.
type hubEvents struct{ n *Node }

var _ HubEvents = hubEvents{}

func (h hubEvents) HubState(connected bool, err error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.n.hub.Connected != connected || h.n.hub.Since.IsZero() {
		h.n.hub.Since = time.Now()
	}
	h.n.hub.Connected, h.n.hub.Error = connected, ""
	if err != nil {
		h.n.hub.Error = err.Error()
	}
	h.n.underlay.hubUp.Store(connected)
	h.n.engine.HubState(connected)
	if h.n.underlay.turns != nil && connected {
		h.n.underlay.turns.Retry()
	}
}

func (h hubEvents) PeersSynced(peers []Peer) {
	h.n.mu.Lock()
	h.n.hub.FromSnapshot = false
	h.n.mu.Unlock()
	h.n.engine.PeersSynced(toRegistry(peers))
}

func (h hubEvents) PeersChanged(upserts []Peer, deletes []identity.PeerID) {
	h.n.engine.PeersChanged(toRegistry(upserts), deletes)
}

func (h hubEvents) Denied(denials []Denial, all bool) {
	list := make([]engine.Denial, len(denials))
	for i, d := range denials {
		list[i] = engine.Denial(d)
	}
	h.n.engine.Denied(list, all)
}

func (h hubEvents) Presence(id identity.PeerID, online bool, instance uint64) {
	h.n.engine.Presence(id, online, instance)
}

func (h hubEvents) Policy(version uint64, document []byte)     { h.n.engine.Policy(version, document) }
func (h hubEvents) Signaled(from identity.PeerID, body []byte) { h.n.engine.Signaled(from, body) }
func (h hubEvents) Undeliverable(to identity.PeerID, reason string) {
	h.n.engine.Undeliverable(to, reason)
}

func toRegistry(peers []Peer) []registry.Peer {
	out := make([]registry.Peer, len(peers))
	for i, p := range peers {
		out[i] = registry.Peer(p)
	}
	return out
}
