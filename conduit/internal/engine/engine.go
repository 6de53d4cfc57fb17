// SPDX-License-Identifier: Apache-2.0

// Package engine decides which session and which path each peer uses. One
// goroutine owns all of it; whoever else has something to say posts a function
// to its mailbox. It drives the pure machines of package session and the agents
// of package ice, and tells the packet path the outcome.
package engine

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// Config is what an Engine is made of. All fields but PSK, PSKBefore,
// Rehandshake, STUNServers and Resolve are required.
type Config struct {
	Keys  *identity.Keys
	Chain [][]byte
	Roots *x509.CertPool
	// PSK returns the pre-shared key of an epoch; nil for a mesh without.
	PSK      func(epoch uint8) []byte
	PSKEpoch uint8
	// PSKBefore is session.Config's.
	PSKBefore func() (epoch uint8, ok bool)
	Suites    []wire.Suite
	// Rehandshake is the age at which keys are replaced; zero means one hour,
	// negative never.
	Rehandshake time.Duration

	Dataplane *dataplane.Dataplane
	Policy    *policy.Engine
	Registry  *registry.Registry
	Mux       *ice.Mux
	// STUNServers are "host:port".
	STUNServers []string
	// Resolve asks the hub for a peer; nil where it cannot. Its error Is
	// registry.ErrUnknown where there is none.
	Resolve func(ctx context.Context, q Query) (Resolved, error)
	// Signal sends a body to a peer through the hub without blocking.
	Signal func(to identity.PeerID, body []byte) error
	// Modes are the bonding modes of the lanes.
	Modes [packet.NumLanes]path.Mode
	// Relay makes us carry packets between peers that the policy lets talk.
	Relay bool
	// HubRelay is the bind of the hub's relay stream, -1 where there is none.
	// WantHubRelay opens the stream, for it is about to be used; it does not block.
	HubRelay     int
	WantHubRelay func()
	// WantTurn asks for a TURN allocation or says that none is needed. It may be nil.
	WantTurn func(bool)
	// PeerBind makes a bind that sends through a willing peer, DropBind ends one.
	PeerBind func(relay *dataplane.Peer) int
	DropBind func(bind int)
	// Changed is told, without blocking, that State gives something else. May be nil.
	Changed func()
	Logger  *slog.Logger
}

// Engine is the control side of a node.
type Engine struct {
	cfg Config // set once in New, but for Chain and PSKEpoch, which run owns

	box        mailbox
	background sync.WaitGroup  // agents that are closing, and questions
	ctx        context.Context // of Run; ends the questions

	// Owned by run.
	peers       map[identity.PeerID]*peer
	strange     []strangeSignal // from peers that the hub has not told us of yet
	presence    map[identity.PeerID]presence
	dirty       bool    // rebuild is due
	gone        []*peer // for rebuild to take down
	due         dueHeap // of peers that want a tick
	net         network
	limits      *session.Limits
	courier     *session.Courier
	udpBudget   bucket
	hostBudgets map[netip.Addr]bucket
	adverts     adverts
	clock       sleepClock
	helloed     sync.Map // addresses to which we sent HELLO, and when
	forwards    forwards
	inbound     inbound
	// relayBinds are the binds of willing peers, made at first use.
	relayBinds map[identity.PeerID]int
	denied     denials
	asking     map[Query][]func(error)
	absent     map[identity.PeerID]time.Time // senders whom the hub does not know
	doc        *policy.Document
	docText    []byte // as the hub sent it
	docSeq     uint64
}

// maxStrange, strangeLife and maxPresence bound what is kept for peers yet
// unknown; idleTick is the longest sleep.
const (
	maxStrange  = 64
	maxPresence = 1 << 16
	strangeLife = 5 * time.Second
	idleTick    = 15 * time.Second
)

// strangeSignal waits for the topology to catch up with the signalling.
type strangeSignal struct {
	from identity.PeerID
	body []byte
	at   time.Time
}

// New prepares an engine; Run runs it.
func New(cfg Config) *Engine {
	if cfg.Rehandshake == 0 {
		cfg.Rehandshake = time.Hour
	}
	e := &Engine{
		cfg: cfg, peers: make(map[identity.PeerID]*peer), presence: make(map[identity.PeerID]presence),
		asking: make(map[Query][]func(error)), absent: make(map[identity.PeerID]time.Time),
		relayBinds: make(map[identity.PeerID]int), hostBudgets: make(map[netip.Addr]bucket), limits: session.NewLimits(),
		courier: session.NewCourier(session.CourierConfig{ID: cfg.Keys.ID(), X25519: cfg.Keys.X25519.PublicKey()}),
	}
	e.box.init()
	return e
}

// Refused takes the system's word that it does not send to a path.
func (e *Engine) Refused(to dataplane.Path, tooBig bool) {
	e.box.offer(func() {
		now := time.Now()
		for _, p := range e.peers {
			if !p.hasPaths() || !slices.Contains(p.tracked, to) {
				continue
			}
			if tooBig {
				p.paths.TooBig(path.ID(to), now)
			} else {
				p.paths.Lost(path.ID(to), now)
			}
			p.drain(now)
			e.touch(p)
		}
	})
}

// news tells that State gives something else.
func (e *Engine) news() {
	if e.cfg.Changed != nil {
		e.cfg.Changed()
	}
}

// caps are what we tell peers that we can.
func (e *Engine) caps() uint32 {
	c := uint32(wire.CapReport | wire.CapRekey | wire.CapPaths)
	if e.cfg.Relay {
		c |= wire.CapRelay
	}
	return c
}

// Run owns the engine until ctx ends, then tells the peers and closes all
// sessions.
func (e *Engine) Run(ctx context.Context) {
	e.ctx = ctx
	timer := time.NewTimer(idleTick)
	defer timer.Stop()
	for _, p := range e.peers { // of a snapshot
		e.touch(p)
	}
	for {
		select {
		case <-ctx.Done():
			e.closeAll()
			return
		case <-e.box.wake:
		case <-timer.C:
		}
		for _, f := range e.box.take() {
			f()
		}
		if e.dirty { // once, however many changes came
			e.rebuild()
		}
		timer.Reset(max(time.Until(e.tick(time.Now())), minTick))
	}
}

func (e *Engine) closeAll() {
	for _, p := range e.peers {
		for _, s := range p.sessions {
			s.goodbye(wire.CloseShutdown)
			s.closeAgent()
		}
		p.machine.Close()
		p.finish(net.ErrClosed)
	}
	e.background.Wait()
	e.box.close()
}

// Want asks for a session with the peer of p; packets wait for it.
func (e *Engine) Want(p *dataplane.Peer) {
	e.box.post(func() {
		if q := e.peers[p.ID]; q != nil && q.dp == p {
			q.want(time.Now())
		}
	})
}

// Control takes control packets from the packet path. Where a peer sends more than
// the engine can handle they are dropped.
func (e *Engine) Control(c dataplane.Control) {
	e.box.offer(func() {
		if p := e.peers[c.Session.Peer.ID]; p != nil {
			p.control(c, time.Now())
		}
	})
}

// Signaled takes a body that the hub delivered. It drops like Control.
func (e *Engine) Signaled(from identity.PeerID, body []byte) {
	e.box.offer(func() { e.signaled(from, body) })
}

func (e *Engine) signaled(from identity.PeerID, body []byte) {
	now := time.Now()
	if p := e.peers[from]; p != nil {
		p.step(body, carrier{kind: byHub}, now)
		return
	}
	for len(e.strange) > 0 && (len(e.strange) >= maxStrange || now.Sub(e.strange[0].at) > strangeLife) {
		e.strange = e.strange[1:]
	}
	e.strange = append(e.strange, strangeSignal{from, body, now})
	e.meet(from, now)
}

// Undeliverable takes the hub's word that a body did not arrive.
func (e *Engine) Undeliverable(to identity.PeerID, reason string) {
	e.box.post(func() {
		if p := e.peers[to]; p != nil {
			p.undeliverable(reason, time.Now())
		}
	})
}

// Presence takes the hub's word that a peer came or went.
func (e *Engine) Presence(id identity.PeerID, online bool, instance uint64) {
	e.box.post(func() {
		// Kept here, since it may come before the peer itself does.
		if _, known := e.presence[id]; known || len(e.presence) < maxPresence {
			e.presence[id] = presence{online, instance}
		}
		if p := e.peers[id]; p != nil {
			p.presence(online, instance, time.Now())
		}
	})
}

// presence is the hub's last word on whether a peer is there.
type presence struct {
	online   bool
	instance uint64
}

// PeersSynced replaces the set of peers.
func (e *Engine) PeersSynced(peers []registry.Peer) {
	e.box.post(func() {
		e.changed(e.cfg.Registry.Sync(e.others(peers)))
	})
}

// PeersChanged changes some peers.
func (e *Engine) PeersChanged(upserts []registry.Peer, deletes []identity.PeerID) {
	e.box.post(func() { e.changed(e.cfg.Registry.Apply(e.others(upserts), deletes)) })
}

// others leaves ourselves out: the hub lists every node. What it says of us are
// the name and tags by which rules know us.
func (e *Engine) others(peers []registry.Peer) []registry.Peer {
	self := e.cfg.Keys.ID()
	out := peers[:0]
	for _, p := range peers {
		if p.ID == self {
			e.cfg.Policy.SetSelf(policy.Subject{ID: p.ID, Name: p.Name, Tags: p.Tags})
			continue
		}
		out = append(out, p)
	}
	return out
}

func (e *Engine) changed(c registry.Change) {
	for id, err := range c.Rejected {
		e.cfg.Logger.Error("hub describes a peer whose keys are not its own; ignored", "peer", id.Short(), "err", err)
	}
	if c.Empty() {
		return
	}
	e.dirty = true
	for _, id := range c.Deletes {
		if p := e.peers[id]; p != nil {
			e.gone = append(e.gone, p)
			delete(e.peers, id)
			delete(e.presence, id)
		}
	}
	for _, info := range c.Upserts {
		p := e.peers[info.ID]
		if p != nil && (p.info.Virtual4 != info.Virtual4 || p.info.Virtual6 != info.Virtual6) {
			e.gone = append(e.gone, p)
			p = nil
		}
		if p == nil {
			e.peers[info.ID] = newPeer(e, info)
			continue
		}
		p.info = info
	}
}

// rebuild tells policy and packet path of the peers there are. Peers that left
// are taken down when nothing is routed to them any more.
func (e *Engine) rebuild() {
	e.dirty = false
	e.news()
	e.forwards.clear()
	e.cfg.Policy.SetPeers(e.subjects())
	e.cfg.Dataplane.SetRoutes(e.routes())
	for _, p := range e.gone {
		p.remove(errors.New("peer left the mesh, or its address changed"))
	}
	e.gone = nil

	strange := e.strange
	e.strange = nil
	now := time.Now()
	for _, s := range strange {
		if p := e.peers[s.from]; p != nil {
			p.step(s.body, carrier{kind: byHub}, now)
		} else if now.Sub(s.at) < strangeLife {
			e.strange = append(e.strange, s)
		}
	}
}

func (e *Engine) subjects() []policy.Subject {
	out := make([]policy.Subject, 0, len(e.peers))
	for _, p := range e.peers {
		out = append(out, p.subject())
	}
	return out
}

// routes maps the virtual addresses to peers. Where two peers claim one, the one
// with a session has it, since its certificate proved the claim; else the lower
// PeerID, so that it does not change by chance.
func (e *Engine) routes() map[netip.Addr]*dataplane.Peer {
	routes := make(map[netip.Addr]*dataplane.Peer, 2*len(e.peers))
	for _, p := range e.peers {
		for _, a := range []netip.Addr{p.info.Virtual4, p.info.Virtual6} {
			if !a.IsValid() || e.cfg.Dataplane.IsLocal(a) {
				continue
			}
			old := routes[a]
			if old == nil || (p.dp.Active() != nil) != (old.Active() != nil) && p.dp.Active() != nil ||
				(p.dp.Active() != nil) == (old.Active() != nil) && p.dp.ID.Compare(old.ID) < 0 {
				routes[a] = p.dp
			}
			if old != nil {
				e.cfg.Logger.Error("hub gives one address to two peers", "address", a.String(), "peers", []string{old.ID.Short(), p.dp.ID.Short()})
			}
		}
	}
	return routes
}

// Policy puts a policy into force. A document that does not parse leaves the old
// one in force.
func (e *Engine) Policy(version uint64, document []byte) {
	e.box.post(func() { e.policy(version, document) })
}

func (e *Engine) policy(version uint64, document []byte) {
	// An activation may leave this node's policy as it is.
	if e.doc != nil && version == e.docSeq && bytes.Equal(document, e.docText) {
		return
	}
	doc, err := policy.Parse(document)
	if err != nil {
		e.cfg.Logger.Error("policy does not parse; keeping the old one", "version", version, "err", err)
		return
	}
	e.doc, e.docText, e.docSeq = doc, document, version
	e.cfg.Policy.Apply(doc, e.subjects())
	e.forwards.clear()
	e.cfg.Logger.Info("policy in force", "version", version)
	e.news()
}

// SetChain replaces our certificate chain for handshakes from now on.
func (e *Engine) SetChain(chain [][]byte) {
	e.box.post(func() {
		e.cfg.Chain = chain
		for _, p := range e.peers {
			p.machine.SetChain(chain)
		}
	})
}

// SetPSKEpoch changes the epoch that handshakes use from now on.
func (e *Engine) SetPSKEpoch(epoch uint8) {
	e.box.post(func() {
		e.cfg.PSKEpoch = epoch
		for _, p := range e.peers {
			p.machine.SetPSKEpoch(epoch)
		}
	})
}

// Connect asks for a session with id and waits until it has a path or none can
// be had. Progress, which may be nil, is told each new state in one word.
func (e *Engine) Connect(ctx context.Context, id identity.PeerID, progress func(state string)) error {
	w := &waiter{done: make(chan error, 1), progress: progress}
	e.box.post(func() {
		begin := func(err error) {
			p := e.peers[id]
			if p == nil {
				w.done <- errors.Join(registry.ErrUnknown, err)
				return
			}
			p.waiters = append(p.waiters, w)
			p.want(time.Now())
		}
		if e.peers[id] == nil {
			e.resolve(Query{ID: id}, begin)
			return
		}
		begin(nil)
	})
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		w.gone.Store(true)
		return ctx.Err()
	case <-e.box.closed:
		w.gone.Store(true)
		return net.ErrClosed
	}
}
