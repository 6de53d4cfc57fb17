// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"crypto/tls"
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
