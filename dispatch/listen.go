// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/relay"
)

const (
	// handshakeTime bounds a TLS handshake.
	handshakeTime = 5 * time.Second
	// Handshakes cost memory and a signature before anybody has shown who he is:
	// so many may be under way, in all and from one address (one /64 in IPv6).
	// A whole fleet may be behind one address.
	maxHandshakes       = 1024
	maxHandshakesPerNet = 256
)

// handshaker is a listener whose connections have finished their TLS handshake.
// Handshakes run in goroutines of their own: net/http would run them on the one
// that serves the connection, which keeps the large stack that they need for as
// long as the connection lives.
type handshaker struct {
	net.Listener
	cfg *tls.Config

	done   chan net.Conn
	closed chan struct{}
	once   sync.Once
	slots  chan struct{}
	wg     sync.WaitGroup
	err    error // of the listener, once closed is

	mu    sync.Mutex // guards perIP
	perIP map[netip.Prefix]int
}

func newHandshaker(ln net.Listener, cfg *tls.Config) *handshaker {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2", "http/1.1"}
	h := &handshaker{
		Listener: ln, cfg: cfg, done: make(chan net.Conn), closed: make(chan struct{}),
		slots: make(chan struct{}, maxHandshakes), perIP: make(map[netip.Prefix]int),
	}
	h.wg.Go(h.run)
	return h
}

func (h *handshaker) run() {
	for {
		c, err := h.Listener.Accept()
		if err != nil {
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				select { // what is open may close
				case <-time.After(50 * time.Millisecond):
					continue
				case <-h.closed:
				}
			}
			h.stop(err)
			return
		}
		from := netOf(c.RemoteAddr())
		if !h.enter(from) {
			_ = c.Close()
			continue
		}
		h.wg.Go(func() {
			defer h.leave(from)
			h.handshake(c)
		})
	}
}

func (h *handshaker) handshake(c net.Conn) {
	relay.ShortQueue(c)
	tc := tls.Server(c, h.cfg)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	err := tc.HandshakeContext(ctx)
	stop()
	if err != nil {
		_ = c.Close()
		return
	}
	select {
	case h.done <- tc:
	case <-h.closed:
		_ = c.Close()
	}
}

// enter takes a place for a handshake, where there is one.
func (h *handshaker) enter(from netip.Prefix) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.perIP[from] >= maxHandshakesPerNet {
		return false
	}
	select {
	case h.slots <- struct{}{}:
	default:
		return false
	}
	h.perIP[from]++
	return true
}

func (h *handshaker) leave(from netip.Prefix) {
	h.mu.Lock()
	defer h.mu.Unlock()
	<-h.slots
	if h.perIP[from]--; h.perIP[from] == 0 {
		delete(h.perIP, from)
	}
}

func (h *handshaker) stop(err error) {
	h.once.Do(func() {
		h.err = err
		close(h.closed)
	})
}

// Accept implements net.Listener.
func (h *handshaker) Accept() (net.Conn, error) {
	select {
	case c := <-h.done:
		return c, nil
	case <-h.closed:
		return nil, h.err
	}
}

// Close implements net.Listener and waits for the handshakes under way.
func (h *handshaker) Close() error {
	err := h.Listener.Close()
	h.stop(net.ErrClosed)
	h.wg.Wait()
	return err
}

// netOf returns what limits count by: an address, in IPv6 a /64.
func netOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip, bits := ap.Addr().Unmap().WithZone(""), 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
