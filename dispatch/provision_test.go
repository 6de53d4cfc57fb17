// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func TestJoin(t *testing.T) {
	h := dispatchtest.Start(t)
	m := newMachine(t, h)
	token := h.Token(1, "arm")
	res, err := m.provision(token, "")
	if err != nil {
		t.Fatal(err)
	}
	if res.GetNodeId() != m.id.String() {
		t.Errorf("node id = %s, want %s", res.GetNodeId(), m.id)
	}
	if res.GetName() != "robot" {
		t.Errorf("name = %q, want that of the host", res.GetName())
	}
	if res.GetVirtualIp() != "10.66.0.2" || res.GetMeshCidr() != "10.66.0.0/16" {
		t.Errorf("address = %s in %s, want 10.66.0.2 in 10.66.0.0/16", res.GetVirtualIp(), res.GetMeshCidr())
	}
	if p, err := netip.ParsePrefix(res.GetMeshCidr6()); err != nil || !p.Contains(netip.MustParseAddr(res.GetVirtualIp6())) {
		t.Errorf("IPv6 address = %s in %s", res.GetVirtualIp6(), res.GetMeshCidr6())
	}
	if len(res.GetPsk()) != 32 || res.GetPskEpoch() != 1 {
		t.Errorf("psk of %d bytes, epoch %d; want 32 and 1", len(res.GetPsk()), res.GetPskEpoch())
	}
	chain, err := identity.ParseChainPEM(res.GetNodeCrt())
	if err != nil {
		t.Fatal(err)
	}
	crt, err := identity.ParseCertificate(chain)
	if err != nil {
		t.Fatal(err)
	}
	blk, _ := pem.Decode(res.GetCaCrt())
	root, err := x509.ParseCertificate(blk.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	tok, _ := identity.ParseToken(token)
	if identity.Pin(root) != tok.Pin || tok.MeshID != res.GetMeshId() || crt.MeshID != tok.MeshID {
		t.Error("root, certificate and token are not of one mesh")
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	if err := crt.Verify(roots, time.Now()); err != nil {
		t.Error(err)
	}
	if crt.ID != m.id || crt.Virtual4.String() != res.GetVirtualIp() || crt.Virtual6.String() != res.GetVirtualIp6() {
		t.Errorf("certificate = %+v", crt)
	}
	if d := time.Until(crt.NotAfter); d < 6*24*time.Hour || d > 7*24*time.Hour {
		t.Errorf("certificate lives %v, want 7 days", d)
	}

	// The same machine with the same, used-up token: the same node.
	again, err := m.provision(token, "other")
	if err != nil {
		t.Fatalf("again: %v", err)
	}
	if again.GetName() != res.GetName() || again.GetVirtualIp() != res.GetVirtualIp() {
		t.Errorf("again = %v, want the same node", again)
	}
	// Another machine of the same name.
	if n := join(t, h, "robot"); n.res.GetName() != "robot-2" || n.res.GetVirtualIp() != "10.66.0.3" {
		t.Errorf("second = %s %s, want robot-2 10.66.0.3", n.res.GetName(), n.res.GetVirtualIp())
	}
}

func TestJoinRefused(t *testing.T) {
	h := dispatchtest.Start(t)
	other := dispatchtest.Start(t)
	good, err := identity.ParseToken(h.Token(1))
	if err != nil {
		t.Fatal(err)
	}
	unknown, _ := identity.NewToken(good.Pin, good.MeshID)
	wrong := good
	wrong.Secret = unknown.Secret
	foreign, _ := identity.ParseToken(other.Token(1))
	usedUp := h.Token(1)
	if _, err := newMachine(t, h).provision(usedUp, ""); err != nil {
		t.Fatal(err)
	}
	expired, err := h.CreateToken(context.Background(), 1, time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	wrongUsedUp, _ := identity.ParseToken(usedUp)
	wrongUsedUp.Secret = unknown.Secret

	for _, tt := range []struct {
		name  string
		token string
		want  dispatchv1.ErrorReason
	}{
		{"unknown", unknown.String(), dispatchv1.ErrorReason_ERROR_REASON_TOKEN_INVALID},
		{"wrong_secret", wrong.String(), dispatchv1.ErrorReason_ERROR_REASON_TOKEN_INVALID},
		{"wrong_secret_of_used_up", wrongUsedUp.String(), dispatchv1.ErrorReason_ERROR_REASON_TOKEN_INVALID},
		{"malformed", "bxt1.x", dispatchv1.ErrorReason_ERROR_REASON_TOKEN_INVALID},
		{"expired", expired, dispatchv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED},
		{"used_up", usedUp, dispatchv1.ErrorReason_ERROR_REASON_TOKEN_USED_UP},
		{"foreign", foreign.String(), dispatchv1.ErrorReason_ERROR_REASON_TOKEN_FOREIGN},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dispatchv1connect.NewProvisioningServiceClient(client(t, good.Pin, nil), h.URL())
			_, err := c.Provision(context.Background(), newMachine(t, h).request(tt.token, ""))
			if connect.CodeOf(err) != connect.CodePermissionDenied || reason(err) != tt.want {
				t.Errorf("error = %v (%v), want %v", err, reason(err), tt.want)
			}
			var ce *connect.Error
			if !errors.As(err, &ce) || ce.Message() != "join token refused" {
				t.Errorf("error = %v tells more than that it was refused", err)
			}
		})
	}
	for _, tt := range []struct {
		name   string
		change func(*dispatchv1.ProvisionRequest)
		want   dispatchv1.ErrorReason
	}{
		{"csr", func(r *dispatchv1.ProvisionRequest) { r.Csr[len(r.Csr)-1] ^= 1 }, dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID},
		{"x25519", func(r *dispatchv1.ProvisionRequest) { r.X25519PublicKey = r.X25519PublicKey[1:] }, dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID},
		{"name", func(r *dispatchv1.ProvisionRequest) { r.Name = "No Label" }, dispatchv1.ErrorReason_ERROR_REASON_NAME_INVALID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dispatchv1connect.NewProvisioningServiceClient(client(t, good.Pin, nil), h.URL())
			req := newMachine(t, h).request(good.String(), "")
			tt.change(req)
			_, err := c.Provision(context.Background(), req)
			if connect.CodeOf(err) != connect.CodeInvalidArgument || reason(err) != tt.want {
				t.Errorf("error = %v (%v), want %v", err, reason(err), tt.want)
			}
		})
	}
	// None of that used the token up.
	if _, err := newMachine(t, h).provision(good.String(), ""); err != nil {
		t.Errorf("good token afterwards: %v", err)
	}
	for _, secret := range []string{good.Secret, wrong.Secret, wrongUsedUp.Secret, foreign.Secret} {
		if strings.Contains(h.Logs(), secret) {
			t.Error("a token's secret is in the log")
		}
	}
	if h.FirstToken() == "" || strings.Contains(h.Logs(), h.FirstToken()) {
		t.Error("first token is missing, or in the log")
	}
}

func TestParallelJoins(t *testing.T) {
	h := dispatchtest.Start(t)
	for _, tt := range []struct {
		name       string
		n          int
		uses, want int
	}{{"single_50", 50, 1, 1}, {"single_200", 200, 1, 1}, {"seven_60", 60, 7, 7}} {
		t.Run(tt.name, func(t *testing.T) {
			token := h.Token(uint32(tt.uses))
			var mu sync.Mutex
			ips := make(map[string]bool)
			start := make(chan struct{})
			var wg sync.WaitGroup
			for range tt.n {
				m := newMachine(t, h)
				wg.Go(func() {
					<-start
					res, err := m.provision(token, "bot")
					if err != nil {
						if r := reason(err); r != dispatchv1.ErrorReason_ERROR_REASON_TOKEN_USED_UP {
							t.Errorf("error = %v (%v), want used up", err, r)
						}
						return
					}
					mu.Lock()
					defer mu.Unlock()
					ips[res.GetVirtualIp()+res.GetName()] = true
				})
			}
			close(start)
			wg.Wait()
			if len(ips) != tt.want {
				t.Errorf("%d machines joined with %d distinct addresses, want %d", tt.n, len(ips), tt.want)
			}
		})
	}
}

func TestExternalPSK(t *testing.T) {
	h := dispatchtest.Start(t, func(c *dispatch.Config) { c.ExternalPSK = true })
	if m := join(t, h, "a"); len(m.res.GetPsk()) != 0 || m.res.GetPskEpoch() != 0 {
		t.Error("the hub hands out a key that it should not have")
	}
}

func TestRevoke(t *testing.T) {
	h := dispatchtest.Start(t)
	a := join(t, h, "a")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	sig := a.signal(ctx)
	if err := h.Revoke(ctx, a.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	if _, err := sig.Receive(); reason(err) != dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED {
		t.Errorf("open stream ends with %v, want revoked", err)
	}
	pol := dispatchv1connect.NewPolicyServiceClient(a.http, h.URL())
	if _, err := pol.GetPolicy(ctx, &dispatchv1.GetPolicyRequest{}); reason(err) != dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED {
		t.Errorf("call on the old connection = %v, want revoked", err)
	}
	a.http.CloseIdleConnections()
	if _, err := pol.GetPolicy(ctx, &dispatchv1.GetPolicyRequest{}); err == nil {
		t.Error("a revoked node can connect again")
	}
	if _, err := a.provision(h.Token(1), ""); reason(err) != dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED {
		t.Errorf("join again = %v, want revoked", err)
	}
}

func TestCallers(t *testing.T) {
	h := dispatchtest.Start(t)
	a := join(t, h, "a")
	tok, _ := identity.ParseToken(h.Token(1))
	ctx := context.Background()
	anon := client(t, tok.Pin, nil)
	if _, err := dispatchv1connect.NewPolicyServiceClient(anon, h.URL()).GetPolicy(ctx, &dispatchv1.GetPolicyRequest{}); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("policy without a certificate = %v, want unauthenticated", err)
	}
	if _, err := dispatchv1connect.NewFleetServiceClient(a.http, h.URL()).ListNodes(ctx, &dispatchv1.ListNodesRequest{}); err == nil {
		t.Error("the node port serves FleetService")
	}
	res, err := dispatchv1connect.NewPolicyServiceClient(a.http, h.URL()).GetPolicy(ctx, &dispatchv1.GetPolicyRequest{})
	if err != nil || res.GetVersion() != 1 || !bytes.HasPrefix(res.GetDocument(), []byte("{")) {
		t.Errorf("policy = %v, %v; want version 1", res, err)
	}
}
