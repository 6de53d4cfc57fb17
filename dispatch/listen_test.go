// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
)

// TestHandshaker: connections that say nothing hold the places of their own network
// and no others', and in the end none.
func TestHandshaker(t *testing.T) {
	authority, err := ca.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newHandshaker(ln, authority.ServerTLS([]string{"127.0.0.1"}, nil))
	defer h.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
		c, err := d.DialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	var silent net.Conn
	for range maxHandshakesPerNet + 20 {
		silent = dial("127.0.0.2")
	}
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := h.Accept(); err == nil {
			accepted <- c
		}
	}()
	c := tls.Client(dial("127.0.0.3"), &tls.Config{InsecureSkipVerify: true})
	if err := c.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	got := <-accepted
	if got.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("accepted %v, want the one that spoke", got.RemoteAddr())
	}
	if len(h.places) != 1 {
		t.Errorf("%d places are taken by one connection without a certificate", len(h.places))
	}
	if err := got.Close(); err != nil {
		t.Error(err)
	}
	if err := silent.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, silent); err != nil {
		t.Errorf("a silent connection is held: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := h.Accept(); err == nil {
		t.Error("accepts after Close")
	}
	if len(h.nets) != 0 || len(h.slots) != 0 || len(h.places) != 0 {
		t.Errorf("%d networks, %d and %d places left", len(h.nets), len(h.slots), len(h.places))
	}
}

// TestBearersNeedNoPlace: a node behind an address whose strangers are too many
// connects.
func TestBearersNeedNoPlace(t *testing.T) {
	authority, err := ca.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	get := authority.ServerTLS([]string{"127.0.0.1"}, nil).GetCertificate
	cert, err := get(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	// Who he is does not matter here.
	h := newHandshaker(ln, &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: get, ClientAuth: tls.RequestClientCert})
	defer h.Close()
	for range maxStrangers { // as if so many were open
		h.places <- struct{}{}
	}
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*cert}}}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := h.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if got.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("accepted %v", got.RemoteAddr())
	}
}

// TestStrangers: who shows no certificate has places of his own, those of his
// network, and gives each back exactly once. A bearer of one needs none.
func TestStrangers(t *testing.T) {
	h := &handshaker{closed: make(chan struct{}), nets: make(map[netip.Prefix]*pending), places: make(chan struct{}, maxStrangers)}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	from := netip.MustParsePrefix("192.0.2.1/32")
	come := func(ctx context.Context) *strangerConn {
		c, _ := net.Pipe()
		s := &strangerConn{Conn: c}
		p := h.enter(from)
		defer h.leave(from, p)
		if !h.place(ctx, s, from, p) {
			return nil
		}
		return s
	}
	var conns []*strangerConn
	for range maxStrangersPerNet {
		conns = append(conns, come(ctx))
	}
	late, end := context.WithCancel(ctx)
	end()
	if len(h.places) != maxStrangersPerNet {
		t.Fatalf("%d places are taken", len(h.places))
	}
	// One that goes, even if it is closed twice, makes room for one.
	waits := make(chan *strangerConn)
	go func() { waits <- come(ctx) }()
	_ = conns[0].Close()
	_ = conns[0].Close()
	conns[0] = <-waits
	if conns[0] == nil || len(h.places) != maxStrangersPerNet {
		t.Errorf("%d places are taken after one went and one came", len(h.places))
	}
	if p := h.nets[from]; p == nil || len(p.places) != maxStrangersPerNet {
		t.Error("the network is forgotten while it has connections")
	}
	if c := come(late); c != nil {
		t.Error("one too many has a place")
	}
	for _, c := range conns {
		_ = c.Close()
	}
	if len(h.places) != 0 || len(h.nets) != 0 {
		t.Errorf("%d places and %d networks are left", len(h.places), len(h.nets))
	}
}
