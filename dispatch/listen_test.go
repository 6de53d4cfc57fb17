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
	if len(h.nets) != 0 || len(h.slots) != 0 {
		t.Errorf("%d networks and %d places left", len(h.nets), len(h.slots))
	}
}
