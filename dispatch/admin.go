// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/rpc"
)

const (
	// maxAdminConns is how many connections one address may have to the admin port:
	// a browser has a handful, a script one or two.
	maxAdminConns = 64
	// maxAdminBody bounds a request. The API's own limits are lower.
	maxAdminBody = 2 << 20
	// checkCertEvery is how often the files of a certificate are looked at.
	checkCertEvery = 10 * time.Second
)

// OwnerLink returns the one-time link that the very first start made, good for 24
// hours, with which somebody becomes the first owner; empty at later starts, and
// where there is no admin port. It is a secret.
func (s *Server) OwnerLink() string { return s.ownerLink }

// AdminURL returns the URL of the admin port, empty where it is off.
func (s *Server) AdminURL() string { return s.adminURL }

// MetricsAddr returns the address of the metrics port, nil where it is off.
func (s *Server) MetricsAddr() net.Addr { return s.addrs.metrics }

// listenAdmin opens the admin port. Its TLS is its own: it asks for no client
// certificate, so that no browser asks a person for one.
func (s *Server) listenAdmin(ctx, requests context.Context, authority *ca.CA, pub public) (served, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.cfg.AdminListen)
	if err != nil {
		return served{}, fmt.Errorf("listen for administrators: %w", err)
	}
	s.addrs.admin = ln.Addr()
	addr := ln.Addr().(*net.TCPAddr)
	host := addr.AddrPort().Addr().Unmap().String()
	if addr.IP.IsUnspecified() {
		host = pub.hosts[0]
	}
	s.adminURL = "https://" + net.JoinHostPort(host, strconv.Itoa(addr.Port))
	if s.cfg.AdminURL != "" {
		s.adminURL = s.cfg.AdminURL
		u, _ := url.Parse(s.adminURL) // New has checked it
		host = u.Hostname()
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.cfg.AdminCert != "" {
		f := &fileCert{cert: s.cfg.AdminCert, key: s.cfg.AdminKey}
		if _, err := f.get(time.Now()); err != nil {
			return served{}, errors.Join(fmt.Errorf("read certificate of the admin port: %w", err), ln.Close())
		}
		cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.get(time.Now()) }
	} else {
		// The names are those of the node port, and the one that the link has.
		hosts := slices.Clone(pub.hosts)
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
		cfg.GetCertificate = authority.ServerTLS(hosts, nil).GetCertificate
	}
	srv := rpc.NewHTTPServer(requests, adminHandler(s.api), s.log)
	srv.TLSConfig = cfg
	return served{srv, newPerHost(ln, maxAdminConns), true}, nil
}

// adminHandler serves the API for keys, and health checks.
func adminHandler(api *rpc.API) http.Handler {
	mux := http.NewServeMux()
	health := api.HealthHandler()
	mux.Handle("/healthz", health)
	mux.Handle("/readyz", health)
	// A key does not travel by itself, as a cookie would, so this is for what comes
	// later: no page of another origin changes anything here.
	mux.Handle("/", http.NewCrossOriginProtection().Handler(http.MaxBytesHandler(api.KeyHandler(), maxAdminBody)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// socketHandler serves the administrator's socket.
func socketHandler(api *rpc.API) http.Handler {
	mux := http.NewServeMux()
	health := api.HealthHandler()
	mux.Handle("/healthz", health)
	mux.Handle("/readyz", health)
	mux.Handle("/", api.AdminHandler())
	return mux
}

// listenMetrics opens the metrics port, which is plain HTTP for probes and
// scrapers: it changes nothing and asks for nothing.
func (s *Server) listenMetrics(ctx, requests context.Context, h http.Handler) (served, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.cfg.MetricsListen)
	if err != nil {
		return served{}, fmt.Errorf("listen for metrics: %w", err)
	}
	s.addrs.metrics = ln.Addr()
	return served{rpc.NewHTTPServer(requests, h, s.log), newPerHost(ln, maxAdminConns), false}, nil
}

// fileCert is a certificate in files that somebody else renews.
type fileCert struct {
	cert, key string

	mu      sync.Mutex // guards the rest
	loaded  *tls.Certificate
	changed time.Time // of the files, when loaded was read
	checked time.Time
}

func (f *fileCert) get(now time.Time) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loaded != nil && now.Sub(f.checked) < checkCertEvery {
		return f.loaded, nil
	}
	f.checked = now
	changed, err := newest(f.cert, f.key)
	if err == nil && f.loaded != nil && changed.Equal(f.changed) {
		return f.loaded, nil
	}
	var c tls.Certificate
	if err == nil {
		c, err = tls.LoadX509KeyPair(f.cert, f.key)
	}
	if err != nil {
		if f.loaded != nil {
			return f.loaded, nil // a half-written renewal: the old one is good still
		}
		return nil, err
	}
	f.loaded, f.changed = &c, changed
	return f.loaded, nil
}

func newest(names ...string) (t time.Time, err error) {
	for _, n := range names {
		fi, err := os.Stat(n)
		if err != nil {
			return t, err
		}
		if fi.ModTime().After(t) {
			t = fi.ModTime()
		}
	}
	return t, nil
}

// perHost closes connections of an address that has too many already. A host has
// all addresses of its IPv6 /64, so these count together.
type perHost struct {
	net.Listener
	most int

	mu   sync.Mutex // guards open
	open map[netip.Prefix]int
}

func newPerHost(ln net.Listener, most int) *perHost {
	return &perHost{Listener: ln, most: most, open: make(map[netip.Prefix]int)}
}

func (p *perHost) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := netOf(c.RemoteAddr())
		if p.take(from) {
			return &countedConn{Conn: c, done: sync.OnceFunc(func() { p.release(from) })}, nil
		}
		_ = c.Close()
	}
}

func (p *perHost) take(from netip.Prefix) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[from] >= p.most {
		return false
	}
	p.open[from]++
	return true
}

func (p *perHost) release(from netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[from]--; p.open[from] == 0 {
		delete(p.open, from)
	}
}

type countedConn struct {
	net.Conn
	done func()
}

func (c *countedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
