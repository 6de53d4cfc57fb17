// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/internal/ice"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/path"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
	"github.com/bauxite-mesh/bauxite/conduit/internal/relay"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
	"github.com/bauxite-mesh/bauxite/conduit/transport"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
)

// node is one node of a world, put together as package conduit does it.
type node struct {
	w        *world
	name     string
	keys     *identity.Keys
	cert     *identity.Certificate
	virtual  netip.Addr
	addrs    []netip.AddrPort // of its sockets, one for each uplink
	state    *State           // to start from; nil: nothing is known
	relays   bool
	hourly   time.Duration // Config.Rehandshake
	instance uint64

	plane    *dataplane.Dataplane
	mux      *ice.Mux
	policy   *policy.Engine
	registry *registry.Registry
	engine   *Engine
	hub      *relay.HubBind
	app      *tun.PipeApp
	cancel   context.CancelFunc
	ended    sync.WaitGroup
}

func virtual(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 66, 0, byte(i + 1)}) }

func newNode(w *world, i int) *node {
	w.t.Helper()
	keys, err := identity.GenerateKeys()
	if err != nil {
		w.t.Fatal(err)
	}
	n := &node{w: w, name: fmt.Sprintf("node%d", i), keys: keys, virtual: virtual(i)}
	n.addrs = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 4000)}
	n.cert = w.ca.issue(w.t, keys, n.name, n.virtual)
	w.peers = append(w.peers, registry.Peer{
		ID: n.cert.ID, Name: n.name, Virtual4: n.virtual, Ed25519: n.cert.Ed25519, X25519: n.cert.X25519,
	})
	return n
}

func (n *node) id() identity.PeerID  { return n.cert.ID }
func (n *node) underlay() netip.Addr { return n.addrs[0].Addr() }
func (n *node) running() bool        { return n.cancel != nil }

// memSTUN lets ICE send by a socket of the world.
type memSTUN struct {
	plane *dataplane.Dataplane
	bind  int
	addr  netip.AddrPort
}

func (s memSTUN) LocalAddr() netip.AddrPort            { return s.addr }
func (s memSTUN) SendSTUN(b []byte, to netip.AddrPort) { s.plane.SendSTUN(s.bind, b, to) }

// start runs the node.
func (n *node) start() {
	t := n.w.t
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", n.name)
	}
	dev, app := tun.Pipe(0)
	n.app, n.registry = app, new(registry.Registry)
	n.policy = policy.NewEngine(policy.Subject{ID: n.id(), Name: n.name})
	n.plane = dataplane.New(dataplane.Config{
		Device: dev, Policy: n.policy, Local: []netip.Addr{n.virtual}, Logger: log,
		STUN:      func(bind int, b []byte, from netip.AddrPort) { n.mux.Handle(bind, b, from) },
		Want:      func(p *dataplane.Peer) { n.engine.Want(p) },
		Control:   func(c dataplane.Control) { n.engine.Control(c) },
		Handshake: func(from dataplane.Path, b []byte) { n.engine.Handshake(from, b) },
		Forward:   func(from *dataplane.Peer, to identity.PeerID) *dataplane.Peer { return n.engine.Forward(from, to) },
		Relayed: func(relay *dataplane.Peer, from identity.PeerID) (dataplane.Path, bool) {
			return n.engine.Relayed(relay, from)
		},
		Refused: func(to dataplane.Path, why transport.Refusal) { n.engine.Refused(to, why.TooBig()) },
	})
	mux, err := ice.NewMux(ice.MuxConfig{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	n.mux = mux
	n.hub, err = relay.NewHub(relay.HubConfig{
		Stream: memHub{n.w, n.id()}, Logger: log,
		PeerOf: func(a netip.AddrPort) (identity.PeerID, bool) {
			if p := n.plane.PeerAt(a.Addr()); p != nil {
				return p.ID, true
			}
			return identity.PeerID{}, false
		},
		AddrOf: func(id identity.PeerID) (netip.AddrPort, bool) {
			p := n.registry.Get(id)
			if p == nil {
				return netip.AddrPort{}, false
			}
			return netip.AddrPortFrom(p.Virtual4, 1), true
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	suites, err := session.Suites("", false)
	if err != nil {
		t.Fatal(err)
	}
	n.engine = New(Config{
		Keys: n.keys, Chain: n.cert.Chain, Roots: n.w.ca.roots(), Suites: suites,
		Dataplane: n.plane, Policy: n.policy, Registry: n.registry, Mux: mux, Logger: log, Relay: n.relays, Rehandshake: n.hourly,
		Signal:   func(to identity.PeerID, body []byte) error { return n.w.deliver(n.id(), to, body) },
		HubRelay: n.plane.AddBind(n.hub, 0), WantHubRelay: n.hub.Want,
		PeerBind: func(p *dataplane.Peer) int {
			return n.plane.AddBind(relay.NewPeer(netip.AddrPortFrom(p.Virtual4, 1), func(l int, to netip.AddrPort, b []byte) {
				if other := n.plane.PeerAt(to.Addr()); other != nil {
					n.plane.SendRelay(p, packet.Lane(l), other.ID, b)
				}
			}), 0)
		},
		DropBind: n.plane.RemoveBind,
	})
	if n.state != nil {
		n.engine.Restore(*n.state)
	}
	n.engine.SetUplinks(n.open())
	run, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.plane.Start()
	n.ended.Go(func() { n.engine.Run(run) })
	n.w.join(n)
}

// open opens the node's sockets.
func (n *node) open() (list []Socket) {
	for i, a := range n.addrs {
		bind := n.plane.AddBind(n.w.listen(a), 0)
		if err := n.mux.SetSocket(bind, memSTUN{n.plane, bind, a}); err != nil {
			n.w.t.Fatal(err)
		}
		list = append(list, Socket{
			Name:  fmt.Sprintf("up%d", i),
			Local: path.Local{Bind: bind, Kind: path.Direct, Uplink: uint8(i + 1), V4: true}, //nolint:gosec // a handful
		})
	}
	return list
}

// stop ends the node as conduit.Node.Close does.
func (n *node) stop() {
	if n.cancel == nil {
		return
	}
	n.w.leave(n)
	n.cancel()
	n.ended.Wait()
	n.cancel = nil
	n.plane.Flush(200 * time.Millisecond)
	if err := n.plane.Close(); err != nil {
		n.w.t.Error(err)
	}
	if err := n.mux.Close(); err != nil {
		n.w.t.Error(err)
	}
}

// crash ends the node without a goodbye.
func (n *node) crash() {
	n.w.mu.Lock()
	for _, a := range n.addrs {
		delete(n.w.binds, a)
	}
	if s := n.w.streams[n.id()]; s != nil {
		delete(n.w.streams, n.id())
		close(s.lost)
	}
	n.w.mu.Unlock()
	n.stop()
}

// save keeps for the next start what the node knows.
func (n *node) save() {
	n.w.t.Helper()
	s, err := n.engine.State(context.Background())
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.state = &s
}

func (n *node) status() []PeerStatus {
	n.w.t.Helper()
	list, _, err := n.engine.Status(context.Background())
	if err != nil {
		n.w.t.Fatal(err)
	}
	return list
}

// sees returns what the node knows of another; the zero value: nothing.
func (n *node) sees(o *node) PeerStatus {
	n.w.t.Helper()
	for _, p := range n.status() {
		if p.Info.ID == o.id() {
			return p
		}
	}
	return PeerStatus{}
}

// do runs f on the engine's goroutine with its peer.
func (n *node) do(o *node, f func(p *peer, now time.Time)) {
	n.w.t.Helper()
	err := n.engine.ask(context.Background(), func() {
		p := n.engine.peers[o.id()]
		if p == nil {
			n.w.t.Errorf("%s does not know %s", n.name, o.name)
			return
		}
		f(p, time.Now())
		n.engine.touch(p)
	})
	if err != nil {
		n.w.t.Fatal(err)
	}
}

// send sends a number in a datagram to port 7400.
func (n *node) send(o *node, number uint64) {
	n.w.t.Helper()
	b := make([]byte, 36)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b))) //nolint:gosec // 36
	copy(b[12:], n.virtual.AsSlice())
	copy(b[16:], o.virtual.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16)) //nolint:gosec // folded
	binary.BigEndian.PutUint16(b[20:], 7400)
	binary.BigEndian.PutUint16(b[22:], 7400)
	binary.BigEndian.PutUint16(b[24:], 16)
	binary.BigEndian.PutUint64(b[28:], number)
	if err := n.app.Send(context.Background(), b); err != nil {
		n.w.t.Fatal(err)
	}
}

// received returns the numbers that have come since the last call.
func (n *node) received() (out []uint64) {
	none, cancel := context.WithCancel(context.Background())
	cancel()
	buf := make([]byte, 2048)
	for {
		k, err := n.app.Recv(none, buf)
		if err != nil {
			return out
		}
		if k == 36 {
			out = append(out, binary.BigEndian.Uint64(buf[28:]))
		}
	}
}

// testCA issues the certificates of a world.
type testCA struct {
	cert   *x509.Certificate
	key    ed25519.PrivateKey
	serial int64
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert: root, key: key, serial: 1}
}

func (ca *testCA) roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

func (ca *testCA) issue(t *testing.T, keys *identity.Keys, name string, v4 netip.Addr) *identity.Certificate {
	t.Helper()
	ca.serial++
	c := &identity.Certificate{
		MeshID: "test", Name: name, Virtual4: v4, Serial: big.NewInt(ca.serial),
		Ed25519: keys.Ed25519.Public().(ed25519.PublicKey), X25519: keys.X25519.PublicKey(),
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(240 * time.Hour),
	}
	tmpl, err := c.Template()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, c.Ed25519, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := identity.ParseCertificate([][]byte{der})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
