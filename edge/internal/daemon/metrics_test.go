// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
)

// TestMetrics serves them, and runs without them where somebody has the port.
func TestMetrics(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h := hubtest.New(t)
	addr := ln.Addr().String()
	run := func(want string, while func()) {
		t.Helper()
		dir := joined(t, h)
		name := filepath.Join(dir, home.ConfigFile) // the table is there already
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.Replace(text, []byte("[metrics]\n"), fmt.Appendf(nil, "[metrics]\nlisten = %q\n", addr), 1)
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		deps := Deps{NewNode: func(c conduit.Config) (Node, error) {
			return &fakeNode{cfg: c, events: make(chan string, 16)}, nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log := syncBuffer{seen: make(chan struct{}, 1), want: `"message":"node is up"`}
		done := make(chan error, 1)
		go func() {
			done <- Run(ctx, Config{Home: dir, Tun: "none", Port: -1, Version: "v9", LogFormat: "json", Log: &log}, deps)
		}()
		select {
		case <-log.seen:
			while()
		case <-time.After(20 * time.Second):
			t.Error("not up")
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if !strings.Contains(log.String(), want) {
			t.Errorf("log has no %q:\n%s", want, log.String())
		}
	}
	run("metrics are not served", func() {})
	_ = ln.Close()
	run("metrics are served", func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(b), `bauxite_node_info{name="n1",`) || !strings.Contains(string(b), `version="v9"} 1`) {
			t.Errorf("metrics: %v, %s", err, b)
		}
	})
}
