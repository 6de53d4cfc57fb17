// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// expired returns a home whose certificate ran out an hour ago.
func expired(t *testing.T, h *hubtest.Hub) (dir string, id identity.PeerID) {
	t.Helper()
	dir = joined(t, h)
	n, err := home.Load(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := *n.Certificate
	c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	pem := identity.MarshalChainPEM(h.Node(t, c))
	if err := identity.WriteFile(filepath.Join(dir, home.CertFile), pem, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := home.Load(dir, time.Now()); !errors.Is(err, home.ErrExpired) {
		t.Fatalf("Load = %v, want ErrExpired", err)
	}
	return dir, c.ID
}

// runUntilUp starts a daemon and stops it as soon as its node runs. It returns the
// certificate that the node had then.
func runUntilUp(t *testing.T, dir string, log *syncBuffer) (*identity.Certificate, error) {
	t.Helper()
	events := make(chan string, 16)
	var node *fakeNode
	deps := Deps{
		NewNode:      func(c conduit.Config) (Node, error) { node = &fakeNode{cfg: c, events: events}; return node, nil },
		RecoverRetry: time.Millisecond,
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, Config{Home: dir, Tun: "none", Port: -1, LogFormat: "json", Log: log}, deps) }()
	select {
	case <-events:
		cancel()
		err := <-done
		return node.cfg.Certificate, err
	case err := <-done:
		return nil, err
	}
}

// TestRecover lets a robot wake up after its certificate's life; the first answer
// gets lost on the way.
func TestRecover(t *testing.T) {
	h := hubtest.New(t)
	dir, id := expired(t, h)
	h.Lose(1)
	var log syncBuffer
	c, err := runUntilUp(t, dir, &log)
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != id || time.Now().After(c.NotAfter) {
		t.Errorf("node runs with %+v", c)
	}
	if st, err := home.LoadState(dir); err != nil || st.Generation != 1 || st.Attempt != nil || h.Generation(id) != 1 {
		t.Errorf("state %+v, %v; the hub counts %d", st, err, h.Generation(id))
	}
	if _, err := home.Load(dir, time.Now()); err != nil {
		t.Errorf("the new certificate was not kept: %v", err)
	}
	if !strings.Contains(log.String(), "no certificate yet") || !strings.Contains(log.String(), "recovered") {
		t.Errorf("log:\n%s", log.String())
	}
}

// TestRecoverRefused: what no retry mends ends the daemon.
func TestRecoverRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		why  dispatchv1.ErrorReason
		want error
	}{
		"Revoked":   {dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED, hub.ErrRevoked},
		"Exhausted": {dispatchv1.ErrorReason_ERROR_REASON_RECOVERY_EXHAUSTED, hub.ErrRecoveryExhausted},
		"Clone":     {dispatchv1.ErrorReason_ERROR_REASON_CLONE_SUSPECTED, hub.ErrCloneSuspected},
		"Unknown":   {dispatchv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED, hub.ErrRecoveryRefused},
	} {
		t.Run(name, func(t *testing.T) {
			h := hubtest.New(t)
			dir, id := expired(t, h)
			h.Refuse(id, tc.why)
			var log syncBuffer
			if _, err := runUntilUp(t, dir, &log); !errors.Is(err, tc.want) {
				t.Errorf("Run = %v, want %v", err, tc.want)
			}
		})
	}
}

// TestRecoveredTwice: a copy of the home, taken before the recovery, is found out.
func TestRecoveredTwice(t *testing.T) {
	h := hubtest.New(t)
	dir, id := expired(t, h)
	var log syncBuffer
	if _, err := runUntilUp(t, dir, &log); err != nil {
		t.Fatal(err)
	}
	n, err := home.Load(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := (home.State{}).Store(dir); err != nil {
		t.Fatal(err)
	}
	c, err := hub.New(hub.Config{URL: h.URL, Roots: n.Roots, Certificate: n.TLSCertificate})
	if err != nil {
		t.Fatal(err)
	}
	r := &recovery{home: dir, keys: n.Keys, meshID: h.MeshID, ask: c.Recover, check: func([][]byte) error { return nil }}
	if _, err := r.once(t.Context()); !errors.Is(err, hub.ErrCloneSuspected) {
		t.Errorf("recovery of a copy = %v, want ErrCloneSuspected; the hub counts %d", err, h.Generation(id))
	}
	if st, err := home.LoadState(dir); err != nil || len(st.Attempt) != 16 {
		t.Errorf("the attempt was not stored: %+v, %v", st, err)
	}
}

// TestUselessAnswer: while the answer cannot be used, because the clock is wrong,
// the attempt stays the same and costs one recovery.
func TestUselessAnswer(t *testing.T) {
	h := hubtest.New(t)
	dir, id := expired(t, h)
	n, err := home.Load(dir, time.Now())
	if !errors.Is(err, home.ErrExpired) {
		t.Fatal(err)
	}
	c, err := hub.New(hub.Config{URL: h.URL, Roots: n.Roots, Certificate: n.TLSCertificate})
	if err != nil {
		t.Fatal(err)
	}
	useless := errors.New("not valid yet")
	r := &recovery{home: dir, keys: n.Keys, meshID: h.MeshID, ask: c.Recover, check: func([][]byte) error { return useless }}
	for range 5 {
		if _, err := r.once(t.Context()); !errors.Is(err, useless) {
			t.Fatalf("once = %v, want %v", err, useless)
		}
	}
	r.check = func([][]byte) error { return nil }
	if _, err := r.once(t.Context()); err != nil {
		t.Error(err)
	}
	if st, err := home.LoadState(dir); err != nil || st.Generation != 1 || st.Attempt != nil || h.Generation(id) != 1 {
		t.Errorf("state %+v, %v; the hub counts %d", st, err, h.Generation(id))
	}
}
