// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/relay"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/rpc"
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
	// So many connections of those who showed no certificate are open at once, from
	// one network and in all. Nodes have one, and whoever joins needs his for a
	// moment: what comes on top waits, within handshakeTime.
	maxStrangersPerNet = 512
	maxStrangers       = 4096
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
	places chan struct{} // of strangers
	wg     sync.WaitGroup
	err    error // of the listener, once closed is

	mu   sync.Mutex // guards nets
	nets map[netip.Prefix]*pending
}

// pending are the connections from one network that are no more than that yet, and
// those of its strangers.
type pending struct {
	n      int
	slots  chan struct{}
	places chan struct{}
}

func newHandshaker(ln net.Listener, cfg *tls.Config) *handshaker {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2", "http/1.1"}
	h := &handshaker{
		Listener: ln, cfg: cfg, done: make(chan net.Conn), closed: make(chan struct{}),
		slots: make(chan struct{}, maxHandshakes), places: make(chan struct{}, maxStrangers),
		nets: make(map[netip.Prefix]*pending),
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
			h.handshake(c, from, p)
		})
	}
}

func (h *handshaker) handshake(raw net.Conn, from netip.Prefix, p *pending) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	// Under TLS, as net/http knows what is secure by the type *tls.Conn.
	c := &strangerConn{Conn: raw}
	tc := h.secure(ctx, c, p)
	if tc == nil || len(tc.ConnectionState().PeerCertificates) == 0 && !h.place(ctx, c, from, p) {
		_ = c.Close()
		return
	}
	select {
	case h.done <- tc:
	case <-h.closed:
		_ = c.Close()
	}
}

// place waits for a place for a stranger, which closing c gives back.
func (h *handshaker) place(ctx context.Context, c *strangerConn, from netip.Prefix, p *pending) bool {
	if !h.wait(ctx, p.places) {
		return false
	}
	if !h.wait(ctx, h.places) {
		<-p.places // p itself stays as long as c is pending
		return false
	}
	c.leave = sync.OnceFunc(func() {
		<-h.places
		<-p.places
		h.mu.Lock()
		defer h.mu.Unlock()
		h.tidy(from, p)
	})
	return true
}

func (h *handshaker) wait(ctx context.Context, places chan<- struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-h.closed:
	}
	return false
}

// strangerConn gives its place back when it is closed. leave is set before others
// know the connection, or never.
type strangerConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *strangerConn) Close() error {
	if c.leave != nil {
		defer c.leave()
	}
	return c.Conn.Close()
}

// secure waits for a place and runs the handshake; nil where that fails.
func (h *handshaker) secure(ctx context.Context, c *strangerConn, p *pending) *tls.Conn {
	// First that of the network, so that one network cannot hold those of all.
	for _, slots := range []chan struct{}{p.slots, h.slots} {
		if !h.wait(ctx, slots) {
			return nil
		}
		defer func() { <-slots }()
	}
	relay.ShortQueue(c.Conn)
	tc := tls.Server(c, h.cfg)
	stop := context.AfterFunc(ctx, func() { _ = c.Conn.Close() })
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
		p = &pending{slots: make(chan struct{}, maxHandshakesPerNet), places: make(chan struct{}, maxStrangersPerNet)}
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
	p.n--
	h.tidy(from, p)
}

// tidy forgets a network from which nothing is. The lock is held.
func (h *handshaker) tidy(from netip.Prefix, p *pending) {
	if p.n == 0 && len(p.places) == 0 && h.nets[from] == p {
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

// netOf returns the network that limits count a connection by.
func netOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	return rpc.Network(ap.Addr().Unmap().WithZone(""))
}

type served struct {
	srv *http.Server
	ln  net.Listener
	tls bool
}

func (v served) run() error {
	var err error
	if v.tls {
		ln := newHandshaker(v.ln, v.srv.TLSConfig)
		defer ln.Close()
		v.srv.TLSConfig = ln.cfg // for HTTP/2
		err = v.srv.Serve(ln)
	} else {
		err = v.srv.Serve(v.ln)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// drain lets unary calls finish and cuts what is left.
func drain(ctx context.Context, servers []served) error {
	var g errgroup.Group
	for _, v := range servers {
		g.Go(func() error {
			if err := v.srv.Shutdown(ctx); err != nil {
				return v.srv.Close()
			}
			return nil
		})
	}
	return g.Wait()
}
