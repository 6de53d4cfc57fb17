// SPDX-License-Identifier: Apache-2.0

// Package dispatchtest runs a whole hub on loopback for the tests of other
// packages: real TLS, a real database, a temporary directory.
package dispatchtest

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/dispatch"
)

// Hub is a running hub. It ends with the test.
type Hub struct {
	*dispatch.Server

	tb   testing.TB
	cfg  dispatch.Config
	logs *logBuffer
	err  chan error
}

// Start runs a hub and waits until it serves. change may adjust the
// configuration; the listeners default to free loopback ports.
func Start(tb testing.TB, change ...func(*dispatch.Config)) *Hub {
	tb.Helper()
	dir, err := os.MkdirTemp("", "bxd") //nolint:usetesting // that one's path can be too long for a unix socket
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &Hub{tb: tb, logs: &logBuffer{}}
	h.cfg = dispatch.Config{
		DataDir: dir, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", STUNListen: "127.0.0.1:0",
		MetricsListen: "127.0.0.1:0",
		Logger:        slog.New(slog.NewJSONHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&h.cfg)
	}
	tb.Cleanup(h.Stop)
	h.start()
	return h
}

func (h *Hub) start() {
	h.tb.Helper()
	s, err := dispatch.New(h.cfg)
	if err != nil {
		h.tb.Fatal(err)
	}
	h.Server, h.err = s, make(chan error, 1)
	go func() { h.err <- s.Serve(context.Background()) }()
	select {
	case <-s.Ready():
	case err := <-h.err:
		h.err = nil
		h.tb.Fatalf("hub: %v", err)
	case <-time.After(30 * time.Second):
		h.tb.Fatal("hub did not start within 30 s")
	}
}

// Stop stops the hub and keeps its state.
func (h *Hub) Stop() {
	h.tb.Helper()
	if h.err == nil {
		return
	}
	_ = h.Close()
	if err := <-h.err; err != nil {
		h.tb.Errorf("hub: %v", err)
	}
	h.err = nil
}

// Restart stops the hub and starts it again on the same state and the same node
// port.
func (h *Hub) Restart() {
	h.tb.Helper()
	h.cfg.Listen = h.NodeAddr().String()
	h.Stop()
	h.start()
}

// Dir returns the data directory.
func (h *Hub) Dir() string { return h.cfg.DataDir }

// Token makes a join token for uses machines, good for an hour.
func (h *Hub) Token(uses uint32, tags ...string) string {
	h.tb.Helper()
	t, err := h.CreateToken(context.Background(), uses, time.Hour, tags...)
	if err != nil {
		h.tb.Fatal(err)
	}
	return t
}

// Admin returns a client of the administrator's socket; its URL is "http://hub".
func (h *Hub) Admin() *http.Client {
	h.tb.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", dispatch.SocketPath(h.cfg.DataDir))
	}}
	h.tb.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// Start starts a hub that was stopped.
func (h *Hub) Start() { h.start() }

// Logs returns all that the hub has logged, at every level, as JSON lines.
func (h *Hub) Logs() string { return h.logs.String() }

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
