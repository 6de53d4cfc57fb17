// SPDX-License-Identifier: Apache-2.0

package conduittest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
)

// Mesh is some nodes that know each other, with one application each.
type Mesh struct {
	CA  *CA
	Hub *Hub
	// PSK is the mesh's pre-shared key.
	PSK    []byte
	nodes  []*member
	change func(i int, c *conduit.Config)
}

type member struct {
	keys *identity.Keys
	cert *identity.Certificate
	node *conduit.Node
	app  *tun.PipeApp
}

// NewMesh starts a mesh of n nodes, named node0, node1 and so on. With a tb it
// ends with the test and an error fails the test; with nil the caller closes it
// and an error panics.
func NewMesh(tb testing.TB, n int) *Mesh {
	if tb != nil {
		tb.Helper()
	}
	return NewMeshWith(tb, n, nil)
}

// NewMeshWith is NewMesh with nodes whose configurations change, which may be nil,
// adjusts: at first and at each Restart.
func NewMeshWith(tb testing.TB, n int, change func(i int, c *conduit.Config)) *Mesh {
	m, err := newMesh(n, change)
	if err != nil {
		if tb == nil {
			panic("conduittest: " + err.Error())
		}
		tb.Helper()
		tb.Fatal(err)
	}
	if tb != nil {
		tb.Cleanup(func() { _ = m.Close() })
	}
	return m
}

func newMesh(n int, change func(int, *conduit.Config)) (*Mesh, error) {
	ca, err := NewCA()
	if err != nil {
		return nil, err
	}
	m := &Mesh{CA: ca, Hub: NewHub(), PSK: make([]byte, 32), change: change}
	_, _ = rand.Read(m.PSK)
	for i := range n {
		mem := &member{}
		if mem.keys, err = identity.GenerateKeys(); err != nil {
			return nil, err
		}
		name := fmt.Sprintf("node%d", i)
		if mem.cert, err = ca.Issue(mem.keys, name, Addr(i), Addr6(i), time.Hour); err != nil {
			return nil, err
		}
		m.nodes = append(m.nodes, mem)
		m.Hub.Enrol(PeerOf(mem.cert))
	}
	for i := range m.nodes {
		if err := m.start(i, nil); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// Addr returns the virtual IPv4 address of node i, Addr6 its IPv6 address.
func Addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 66, byte(i >> 8), byte(i + 1)}) }

// Addr6 returns the virtual IPv6 address of node i.
func Addr6(i int) netip.Addr {
	a := netip.MustParseAddr("fd66::").As16()
	binary.BigEndian.PutUint16(a[14:], uint16(i+1))
	return netip.AddrFrom16(a)
}

// PeerOf describes the holder of a certificate as a hub would.
func PeerOf(c *identity.Certificate) conduit.Peer {
	return conduit.Peer{ID: c.ID, Name: c.Name, Virtual4: c.Virtual4, Virtual6: c.Virtual6, Ed25519: c.Ed25519, X25519: c.X25519}
}

func (m *Mesh) start(i int, change func(*conduit.Config)) error {
	mem := m.nodes[i]
	dev, app := tun.Pipe(0)
	cfg := conduit.Config{
		Keys: mem.keys, Certificate: mem.cert, Roots: m.CA.Roots(), PSK: m.PSK, PSKEpoch: 1,
		Hub: m.Hub.Connector(mem.cert.ID), Device: dev, IncludeLoopback: true,
		MeshPrefixes: []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16"), netip.MustParsePrefix("fd66::/64")},
	}
	if m.change != nil {
		m.change(i, &cfg)
	}
	if change != nil {
		change(&cfg)
	}
	node, err := conduit.New(cfg)
	if err != nil {
		return err
	}
	mem.node, mem.app = node, app
	return node.Start(context.Background())
}

// Restart closes node i and starts it anew with the same identity. change, which
// may be nil, may adjust its configuration.
func (m *Mesh) Restart(tb testing.TB, i int, change func(*conduit.Config)) {
	tb.Helper()
	if err := m.nodes[i].node.Close(); err != nil {
		tb.Fatal(err)
	}
	if err := m.start(i, change); err != nil {
		tb.Fatal(err)
	}
}

// NoUDP is for change functions: the node takes no address for an end of a path, so
// that only relays lead to it.
func NoUDP(c *conduit.Config) {
	c.IncludeLoopback = false
	c.MeshPrefixes = append(c.MeshPrefixes, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
}

// Logger returns a logger to tb's log, for change functions.
func Logger(tb testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Node returns node i, and App the application's end of its device.
func (m *Mesh) Node(i int) *conduit.Node { return m.nodes[i].node }

// App returns the application's end of node i's device.
func (m *Mesh) App(i int) *tun.PipeApp { return m.nodes[i].app }

// Certificate returns node i's certificate.
func (m *Mesh) Certificate(i int) *identity.Certificate { return m.nodes[i].cert }

// Keys returns node i's keys.
func (m *Mesh) Keys(i int) *identity.Keys { return m.nodes[i].keys }

// Close stops all nodes.
func (m *Mesh) Close() error {
	var errs []error
	for _, mem := range m.nodes {
		if mem.node != nil {
			errs = append(errs, mem.node.Close())
		}
	}
	return errors.Join(errs...)
}

// Send sends payload as a UDP datagram over IPv4 from node i to node j, port
// 7400 to 7400.
func (m *Mesh) Send(ctx context.Context, i, j int, payload []byte) error {
	return m.App(i).Send(ctx, UDP(Addr(i), Addr(j), 7400, 7400, payload))
}

// Recv waits for the next UDP datagram at node i and returns its payload.
func (m *Mesh) Recv(ctx context.Context, i int) ([]byte, error) {
	buf := make([]byte, 2048)
	for {
		n, err := m.App(i).Recv(ctx, buf)
		if err != nil {
			return nil, err
		}
		off := 28
		if buf[0]>>4 == 6 {
			off = 48
		}
		if n >= off {
			return bytes.Clone(buf[off:n]), nil
		}
	}
}

// Exchange sends payload from i to j again and again, every 50 ms, until j has
// received it or ctx ends: datagrams may be lost while a session is set up.
func (m *Mesh) Exchange(ctx context.Context, i, j int, payload []byte) error {
	got := make(chan error, 1)
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			b, err := m.Recv(inner, j)
			if err != nil || bytes.Equal(b, payload) {
				got <- err
				return
			}
		}
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := m.Send(inner, i, j, payload); err != nil {
			cancel()
			return errors.Join(err, <-got)
		}
		select {
		case err := <-got:
			return err
		case <-tick.C:
		}
	}
}

// UDP returns an IP packet with a UDP datagram. Both addresses are of one family.
func UDP(src, dst netip.Addr, sport, dport uint16, payload []byte) []byte {
	l4 := make([]byte, 8+len(payload))
	binary.BigEndian.PutUint16(l4, sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	copy(l4[8:], payload)
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = append(pseudo, 0, 17)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(l4)))
	sum := checksum(append(pseudo, l4...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(l4[6:], sum)
	if src.Is6() {
		h := make([]byte, 40, 40+len(l4))
		h[0], h[6], h[7] = 0x60, 17, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(l4)))
		copy(h[8:], src.AsSlice())
		copy(h[24:], dst.AsSlice())
		return append(h, l4...)
	}
	h := make([]byte, 20, 20+len(l4))
	h[0], h[8], h[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, l4...)
}

func checksum(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
