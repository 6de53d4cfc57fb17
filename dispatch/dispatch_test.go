// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a client of the hub: anonymous until it has joined.
type machine struct {
	tb   testing.TB
	hub  *dispatchtest.Hub
	keys *identity.Keys
	id   identity.PeerID
	res  *dispatchv1.ProvisionResponse
	http *http.Client
}

func newMachine(tb testing.TB, h *dispatchtest.Hub) *machine {
	tb.Helper()
	k, err := identity.GenerateKeys()
	if err != nil {
		tb.Fatal(err)
	}
	return &machine{tb: tb, hub: h, keys: k, id: k.ID()}
}

// client returns an HTTP client over TLS with the given certificate, if any. It
// trusts whatever chain holds the token's pin, as a joining machine does.
func client(tb testing.TB, pin string, cert *tls.Certificate) *http.Client {
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced by the check of the pin
		VerifyConnection: func(cs tls.ConnectionState) error {
			root := cs.PeerCertificates[len(cs.PeerCertificates)-1]
			if identity.Pin(root) != pin {
				return errors.New("pin does not match")
			}
			roots, inter := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(root)
			inter.AddCert(cs.PeerCertificates[1])
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: "127.0.0.1"})
			return err
		},
	}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	tb.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (m *machine) request(token, name string) *dispatchv1.ProvisionRequest {
	csr, err := m.keys.CSR()
	if err != nil {
		m.tb.Fatal(err)
	}
	return &dispatchv1.ProvisionRequest{
		Token: token, Csr: csr, X25519PublicKey: m.keys.X25519.PublicKey().Bytes(), Name: name,
		Facts: &dispatchv1.NodeFacts{Hostname: "Robot.local", Os: "linux", Arch: "arm64", Version: "test"},
	}
}

func (m *machine) provision(token, name string) (*dispatchv1.ProvisionResponse, error) {
	tok, err := identity.ParseToken(token)
	if err != nil {
		m.tb.Fatal(err)
	}
	c := dispatchv1connect.NewProvisioningServiceClient(client(m.tb, tok.Pin, nil), m.hub.URL())
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return c.Provision(ctx, m.request(token, name))
}

// join makes m a node with an mTLS client.
func join(tb testing.TB, h *dispatchtest.Hub, name string) *machine {
	tb.Helper()
	m := newMachine(tb, h)
	token := h.Token(1)
	res, err := m.provision(token, name)
	if err != nil {
		tb.Fatalf("join: %v", err)
	}
	m.res = res
	m.useCert(token, res.GetNodeCrt())
	return m
}

func (m *machine) useCert(token string, chain []byte) {
	m.tb.Helper()
	tok, _ := identity.ParseToken(token)
	ders, err := identity.ParseChainPEM(chain)
	if err != nil {
		m.tb.Fatal(err)
	}
	m.http = client(m.tb, tok.Pin, &tls.Certificate{Certificate: ders, PrivateKey: m.keys.Ed25519})
}

// reason returns the ErrorInfo's reason of an error.
func reason(err error) dispatchv1.ErrorReason {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return 0
	}
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*dispatchv1.ErrorInfo); ok {
				return info.GetReason()
			}
		}
	}
	return 0
}
