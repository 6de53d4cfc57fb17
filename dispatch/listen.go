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
	// handshakeTime bounds a TLS handshake, with the wait for a place.
	handshakeTime = 5 * time.Second
	// Handshakes cost memory and a signature before anybody has shown who he is: so
	// many are under way at once, in all and from one network, an address or a /64.
	// A fleet that comes back waits; a whole one may be behind one address.
	maxHandshakes       = 512
	maxHandshakesPerNet = 256
	// maxPending is how many connections from one network may be in all that, with
	// those that wait: what comes on top is hung up on.
	maxPending = 4096
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

	mu   sync.Mutex // guards nets
	nets map[netip.Prefix]*pending
}

// pending are the connections from one network that are no more than that yet.
type pending struct {
	n     int
	slots chan struct{}
}

func newHandshaker(ln net.Listener, cfg *tls.Config) *handshaker {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2", "http/1.1"}
	h := &handshaker{
		Listener: ln, cfg: cfg, done: make(chan net.Conn), closed: make(chan struct{}),
		slots: make(chan struct{}, maxHandshakes), nets: make(map[netip.Prefix]*pending),
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
		p := h.enter(from)
		if p == nil {
			_ = c.Close()
			continue
		}
		h.wg.Go(func() {
			defer h.leave(from, p)
			h.handshake(c, p)
		})
	}
}

func (h *handshaker) handshake(c net.Conn, p *pending) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	tc := h.secure(ctx, c, p)
	if tc == nil {
		_ = c.Close()
		return
	}
	select {
	case h.done <- tc:
	case <-h.closed:
		_ = c.Close()
	}
}

// secure waits for a place and runs the handshake; nil where that fails.
func (h *handshaker) secure(ctx context.Context, c net.Conn, p *pending) net.Conn {
	// First that of the network, so that one network cannot hold those of all.
	for _, slots := range []chan struct{}{p.slots, h.slots} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return nil
		case <-h.closed:
			return nil
		}
	}
	relay.ShortQueue(c)
	tc := tls.Server(c, h.cfg)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if tc.HandshakeContext(ctx) != nil {
		return nil
	}
	return tc
}

// enter counts a connection; nil where its network has too many already.
func (h *handshaker) enter(from netip.Prefix) *pending {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.nets[from]
	if p == nil {
		p = &pending{slots: make(chan struct{}, maxHandshakesPerNet)}
		h.nets[from] = p
	}
	if p.n >= maxPending {
		return nil
	}
	p.n++
	return p
}

func (h *handshaker) leave(from netip.Prefix, p *pending) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.n--; p.n == 0 {
		delete(h.nets, from)
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
