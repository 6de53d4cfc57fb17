// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

func open(t *testing.T) (*CA, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c, dir
}

func TestOpen(t *testing.T) {
	c, dir := open(t)
	if !identity.ValidName(c.MeshID) {
		t.Errorf("mesh id %q is not a DNS label", c.MeshID)
	}
	for _, f := range []string{"root.key", "intermediate.key", "root.crt", "intermediate.crt"} {
		fi, err := os.Stat(filepath.Join(dir, f))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f, fi.Mode(), err)
		}
	}
	// The root's key may be taken away.
	if err := os.Remove(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.Pin() != c.Pin() || again.MeshID != c.MeshID {
		t.Error("the authority changed")
	}
	// A lost file never leads to a second authority for the same database.
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "dispatch.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "intermediate.crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil {
		t.Error("a new authority was made for an old database")
	}
	// A key that others can read is refused.
	_, dir = open(t)
	if err := os.Chmod(filepath.Join(dir, "intermediate.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, identity.ErrExposed) {
		t.Errorf("exposed key = %v, want ErrExposed", err)
	}
}

// issue makes keys and their certificate.
func issue(t *testing.T, c *CA, notAfter time.Time) (identity.PeerID, tls.Certificate) {
	t.Helper()
	k, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	serial, err := NewSerial()
	if err != nil {
		t.Fatal(err)
	}
	n := store.Node{
		ID: k.ID(), Name: "n", Virtual4: netip.MustParseAddr("10.66.0.2"), Virtual6: netip.MustParseAddr("fd00::2"),
		Ed25519: k.Ed25519.Public().(ed25519.PublicKey), X25519: k.X25519.PublicKey().Bytes(),
	}
	text, err := c.IssueNode(n, serial, time.Now().Add(-2*time.Hour), notAfter)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := identity.ParseChainPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	return k.ID(), tls.Certificate{Certificate: chain, PrivateKey: k.Ed25519}
}

// sign makes a certificate by the intermediate from any template.
func sign(t *testing.T, c *CA, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: c.MeshID, Path: "/node/x"}},
	}
	change(tmpl)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.Intermediate(), pub, c.issuer.Load().key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, c.Intermediate().Raw}, PrivateKey: key}
}

// handshake connects with cert, if any, and returns the server's error.
func handshake(t *testing.T, cfg *tls.Config, cert *tls.Certificate, maxVersion uint16) (tls.ConnectionState, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	cli := &tls.Config{InsecureSkipVerify: true, MaxVersion: maxVersion}
	if cert != nil {
		// Not Certificates: those are held back where the issuer does not fit.
		cli.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	done := make(chan tls.ConnectionState, 1)
	go func() {
		c := tls.Client(b, cli)
		_ = c.Handshake()
		_, _ = io.Copy(io.Discard, c)
		done <- c.ConnectionState()
	}()
	s := tls.Server(a, cfg)
	err := s.Handshake()
	_ = a.Close()
	return <-done, err
}

func TestServerTLS(t *testing.T) {
	c, _ := open(t)
	other, _ := open(t)
	week := time.Now().Add(NodeLifetime)
	id, good := issue(t, c, week)
	_, unknown := issue(t, c, week)
	_, expired := issue(t, c, time.Now().Add(-time.Minute))
	_, foreign := issue(t, other, week)
	asked := 0
	cfg := c.ServerTLS([]string{"hub.example.org", "192.0.2.1", "fe80::1%eth0"}, func(_ context.Context, p identity.PeerID, serial []byte) error {
		asked++
		if p != id || len(serial) != 16 {
			return store.ErrNotFound
		}
		return nil
	})
	server, err := cfg.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		cert *tls.Certificate
		ok   bool
	}{
		{"anonymous", nil, true},
		{"node", &good, true},
		{"not_in_store", &unknown, false},
		{"expired", &expired, false},
		{"foreign", &foreign, false},
		{"server_certificate", server, false},
		{"no_uri", new(sign(t, c, func(x *x509.Certificate) { x.URIs = nil })), false},
		{"no_node", new(sign(t, c, func(*x509.Certificate) {})), false},
		{"both_uses", new(sign(t, c, func(x *x509.Certificate) {
			x.ExtKeyUsage = append(x.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		})), false},
		{"any_use", new(sign(t, c, func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st, err := handshake(t, cfg, tt.cert, 0)
			if (err == nil) != tt.ok {
				t.Fatalf("handshake: %v, want it to succeed: %v", err, tt.ok)
			}
			if err != nil {
				return
			}
			if n := len(st.PeerCertificates); n != 3 || identity.Pin(st.PeerCertificates[2]) != c.Pin() {
				t.Errorf("chain of %d, want the root last", n)
			}
			roots, inter := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(c.Root)
			inter.AddCert(st.PeerCertificates[1])
			for _, host := range []string{"hub.example.org", "192.0.2.1", "fe80::1"} {
				_, err := st.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: host})
				if err != nil {
					t.Errorf("%s: %v", host, err)
				}
			}
		})
	}
	if asked != 2 {
		t.Errorf("the store was asked %d times, want only for well-formed certificates", asked)
	}
	if _, err := handshake(t, cfg, nil, tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 is let in")
	}
}

func TestServerCertificateRenews(t *testing.T) {
	c, _ := open(t)
	s := &server{ca: c, hosts: []string{"localhost"}}
	now := time.Now()
	a, err := s.certificate(now)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := s.certificate(now.Add(serverLifetime / 3)); b != a {
		t.Error("renewed too early")
	}
	if b, _ := s.certificate(now.Add(serverLifetime * 2 / 3)); b == a {
		t.Error("not renewed")
	}
}
