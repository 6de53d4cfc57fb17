// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  Config
		ok   bool
	}{
		{"default", Config{DataDir: "d"}, true},
		{"no_dir", Config{}, false},
		{"bad_listen", Config{DataDir: "d", Listen: "8440"}, false},
		{"node_port_off", Config{DataDir: "d", Listen: Off}, false},
		{"others_off", Config{DataDir: "d", AdminListen: Off, STUNListen: Off}, true},
		{"url", Config{DataDir: "d", PublicURL: "https://hub.example.org/"}, true},
		{"url_path", Config{DataDir: "d", PublicURL: "https://hub.example.org/x"}, false},
		{"url_scheme", Config{DataDir: "d", PublicURL: "http://hub.example.org"}, false},
		{"cidr", Config{DataDir: "d", MeshCIDR: netip.MustParsePrefix("10.8.0.0/20")}, true},
		{"cidr_small", Config{DataDir: "d", MeshCIDR: netip.MustParsePrefix("10.8.0.0/30")}, false},
		{"cidr6", Config{DataDir: "d", MeshCIDR6: netip.MustParsePrefix("fd01::/64")}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := New(tt.cfg); (err == nil) != tt.ok {
				t.Errorf("New: %v", err)
			}
		})
	}
	s, err := New(Config{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close before Serve: %v", err)
	}
	if err := s.Serve(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Close = %v, want net.ErrClosed", err)
	}
}

// TestFailedFirstStart shows that a first start that could not listen does not
// swallow the first token.
func TestFailedFirstStart(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := Config{DataDir: t.TempDir(), Listen: ln.Addr().String(), AdminListen: Off, STUNListen: Off}
	for range 2 {
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		select {
		case err := <-done:
			if cfg.Listen == "127.0.0.1:0" || err == nil {
				t.Fatalf("Serve: %v", err)
			}
			cfg.Listen = "127.0.0.1:0"
		case <-s.Ready():
			if s.FirstToken() == "" {
				t.Error("no first token")
			}
			_ = s.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
}

func TestPublicURL(t *testing.T) {
	ctx := context.Background()
	p := publicURL(ctx, Config{PublicURL: "https://hub.example.org:1"}, &net.TCPAddr{IP: net.IPv6zero, Port: 8440})
	if p.url != "https://hub.example.org:1" || p.hosts[0] != "hub.example.org" || p.warning != "" {
		t.Errorf("configured = %+v", p)
	}
	p = publicURL(ctx, Config{}, &net.TCPAddr{IP: net.ParseIP("192.0.2.1"), Port: 7})
	if p.url != "https://192.0.2.1:7" || p.warning != "" {
		t.Errorf("bound = %+v", p)
	}
	p = publicURL(ctx, Config{}, &net.TCPAddr{IP: net.IPv6zero, Port: 8440})
	if !strings.HasPrefix(p.url, "https://") || !strings.HasSuffix(p.url, ":8440") || strings.Contains(p.url, "[::]") {
		t.Errorf("guess = %+v", p)
	}
	a, err := randomULA()
	b, _ := randomULA()
	if err != nil || a == b || a.Bits() != 64 || !a.Addr().IsPrivate() || a != a.Masked() {
		t.Errorf("random prefixes %v and %v, %v", a, b, err)
	}
}

func TestSocketPathTooLong(t *testing.T) {
	if _, err := listenSocket("/tmp/" + strings.Repeat("x", 100) + "/s"); err == nil || !strings.Contains(err.Error(), "shorter data directory") {
		t.Errorf("error = %v, want one that says what to do", err)
	}
}
