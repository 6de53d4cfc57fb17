// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"crypto/tls"
	"runtime"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

func TestRenew(t *testing.T) {
	h := hubtest.New(t)
	keys, cert := h.Enroll("a")
	other, _ := h.Enroll("b")
	c, err := New(Config{URL: h.URL, Roots: h.Roots(), Certificate: func() (*tls.Certificate, error) { return cert, nil }})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := keys.CSR()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.Renew(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	is, err := identity.ParseCertificate(chain)
	if err != nil {
		t.Fatal(err)
	}
	was, err := identity.ParseCertificate(cert.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if is.ID != was.ID || is.Virtual4 != was.Virtual4 || is.Serial.Cmp(was.Serial) == 0 {
		t.Errorf("renewed = %+v, want a new certificate of %+v", is, was)
	}
	if err := is.Verify(h.Roots(), time.Now()); err != nil {
		t.Error(err)
	}
	if csr, err = other.CSR(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Renew(t.Context(), csr); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("renew with another key = %v, want permission denied", err)
	}
	h.Stop()
	if _, err := c.Renew(t.Context(), csr); err == nil {
		t.Error("renewed without a hub")
	}
}

// TestRedial takes a new certificate into use without a loss that anybody sees.
func TestRedial(t *testing.T) {
	h := hubtest.New(t)
	_, cert := h.Enroll("a")
	shown := make(chan struct{}, 16)
	c, r := start(t, h, cert, func(c *Connector) {
		c.cfg.Certificate = func() (*tls.Certificate, error) { shown <- struct{}{}; return cert, nil }
		c.timing.backoffMin, c.timing.backoffMax = time.Hour, time.Hour
	})
	r.await(t, "link", r.up)
	<-shown
	for range 2 {
		before := len(h.Watches())
		c.Redial()
		<-shown
		for len(h.Watches()) == before {
			runtime.Gosched()
		}
	}
	kb, _ := h.Enroll("b")
	r.await(t, "peer on the new connection", func() bool { return r.peers[kb.ID()] == "b" })
	if w := h.Watches(); len(w) != 3 || w[2][0] != 1 {
		t.Errorf("watches began at %v, want three, resumed", w)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.states) != 1 {
		t.Errorf("states = %q, want one gain", r.states)
	}
}
