// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func (m *machine) renew(k *identity.Keys) (*dispatchv1.RenewResponse, error) {
	m.tb.Helper()
	csr, err := k.CSR()
	if err != nil {
		m.tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return dispatchv1connect.NewProvisioningServiceClient(m.http, m.hub.URL()).Renew(ctx, &dispatchv1.RenewRequest{Csr: csr})
}

func parseCert(tb testing.TB, chain []byte) *identity.Certificate {
	tb.Helper()
	ders, err := identity.ParseChainPEM(chain)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := identity.ParseCertificate(ders)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func TestRenew(t *testing.T) {
	h := dispatchtest.Start(t, func(c *dispatch.Config) { c.CertLifetime = time.Hour })
	a, b := join(t, h, "a"), join(t, h, "b")

	// A CSR of another key, even another node's, is refused.
	if _, err := a.renew(b.keys); connect.CodeOf(err) != connect.CodePermissionDenied ||
		reason(err) != dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID {
		t.Errorf("renew with another key = %v (%v)", err, reason(err))
	}
	res, err := a.renew(a.keys)
	if err != nil {
		t.Fatal(err)
	}
	was, is := parseCert(t, a.res.GetNodeCrt()), parseCert(t, res.GetNodeCrt())
	if is.ID != was.ID || is.Name != was.Name || is.Virtual4 != was.Virtual4 || is.Virtual6 != was.Virtual6 {
		t.Errorf("renewed = %+v, want the same node as %+v", is, was)
	}
	if is.Serial.Cmp(was.Serial) == 0 {
		t.Error("serial is the old one")
	}
	if d := time.Until(is.NotAfter); d < 59*time.Minute || d > time.Hour || is.NotAfter.Before(was.NotAfter) {
		t.Errorf("renewed certificate lives %v, want an hour", d)
	}
	if string(res.GetCaCrt()) != string(a.res.GetCaCrt()) {
		t.Error("root is another one")
	}
	// The new one opens connections, and the burst ends.
	a.useCert(h.Token(1), res.GetNodeCrt())
	if _, err := a.renew(a.keys); err != nil {
		t.Errorf("renew with the new certificate: %v", err)
	}
	if _, err := a.renew(a.keys); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("fourth renewal = %v, want resource exhausted", err)
	}

	if err := h.Revoke(context.Background(), b.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.renew(b.keys); err == nil {
		t.Error("a revoked node renews")
	}
	tok, _ := identity.ParseToken(h.Token(1))
	a.http = client(t, tok.Pin, nil)
	if _, err := a.renew(a.keys); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("renew without a certificate = %v, want unauthenticated", err)
	}
}
