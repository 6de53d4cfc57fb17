// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
)

// scrapeTime bounds one answer, and maxScrapes how many are served at once.
const (
	scrapeTime = 10 * time.Second
	maxScrapes = 4
)

// Server answers GET /metrics.
type Server struct {
	ln   net.Listener
	http *http.Server
	wg   sync.WaitGroup
}

// Serve listens on a TCP address, such as "127.0.0.1:9464", until Close; ctx is for the
// start alone. Whoever reaches it reads the names and addresses of peers.
func Serve(ctx context.Context, addr, version string, status func(context.Context) (*conduit.Status, error)) (*Server, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	room := make(chan struct{}, maxScrapes)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		select {
		case room <- struct{}{}:
			defer func() { <-room }()
		default:
			http.Error(w, "too many at once", http.StatusServiceUnavailable)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), scrapeTime)
		defer cancel()
		st, err := status(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(Text(st, version))
	})
	s := &Server{ln: ln, http: &http.Server{
		Handler: mux, ReadHeaderTimeout: scrapeTime, ReadTimeout: scrapeTime, WriteTimeout: 2 * scrapeTime, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0),
	}}
	s.wg.Go(func() { _ = s.http.Serve(ln) })
	return s, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Close ends all conversations. Idempotent.
func (s *Server) Close() error {
	err := s.http.Close()
	s.wg.Wait()
	return err
}
