// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// writeCert writes a certificate of its own authority and its key.
func writeCert(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"hub.example.org"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "a.crt"), filepath.Join(dir, "a.key")
	for name, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
		// Renewals within one tick of the file system's clock are not the point here.
		at := time.Unix(1_700_000_000+serial, 0)
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// TestFileCert: a renewed certificate is served without a restart, and a broken
// one is not.
func TestFileCert(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	cert, key := writeCert(t, dir, 1)
	f := &fileCert{cert: cert, key: key}
	serial := func(at time.Time) int64 {
		t.Helper()
		c, err := f.get(at)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.Int64()
	}
	if n := serial(now); n != 1 {
		t.Fatalf("serial %d", n)
	}
	writeCert(t, dir, 2)
	if n := serial(now.Add(checkCertEvery / 2)); n != 1 {
		t.Errorf("the files are read at each handshake")
	}
	if n := serial(now.Add(checkCertEvery)); n != 2 {
		t.Errorf("after the renewal: serial %d", n)
	}
	for _, b := range [][]byte{[]byte("half"), nil} {
		if err := os.WriteFile(cert, b, 0o600); err != nil {
			t.Fatal(err)
		}
		now = now.Add(3 * checkCertEvery)
		if n := serial(now); n != 2 {
			t.Errorf("with a broken file: serial %d", n)
		}
	}
	if _, err := (&fileCert{cert: cert, key: key}).get(now); err == nil {
		t.Error("a broken certificate is accepted at the start")
	}
}

// TestPerHost: one address cannot take all connections.
func TestPerHost(t *testing.T) {
	var lc net.ListenConfig
	inner, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newPerHost(inner, 2)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") }), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(p) }()
	defer func() { _ = srv.Close(); <-done }()
	get := func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 1))
		return err
	}
	var conns []net.Conn
	for i := range 3 {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := get(c); (err == nil) != (i < 2) {
			t.Errorf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
	}
	_ = conns[0].Close()
	for end := time.Now().Add(10 * time.Second); ; {
		var d net.Dialer
		c, err := d.DialContext(t.Context(), "tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		err = get(c)
		_ = c.Close()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a closed connection still counts")
		}
	}
	for a, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7/32", "[::ffff:192.0.2.7]:1": "192.0.2.7/32", "[2001:db8::1%eth0]:1": "2001:db8::/64",
	} {
		if got := netOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a))).String(); got != want {
			t.Errorf("netOf(%s) = %s, want %s", a, got, want)
		}
	}
}

// TestAdminPort: TLS of its own, with files or without, and plain health on the
// metrics port.
func TestAdminPort(t *testing.T) {
	cert, key := writeCert(t, t.TempDir(), 1)
	dir, err := os.MkdirTemp("", "bxd") //nolint:usetesting // that one's path can be too long for a unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := New(Config{
		DataDir: dir, Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", STUNListen: Off,
		AdminCert: cert, AdminKey: key, AdminURL: "https://hub.example.org/",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-s.Ready():
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	// The certificate is none of the mesh's, so the link has no pin.
	if want := len("https://hub.example.org/#claim=") + 43; len(s.OwnerLink()) != want || s.AdminURL() != "https://hub.example.org" {
		t.Errorf("link has %d characters, want %d; URL %s", len(s.OwnerLink()), want, s.AdminURL())
	}
	asked := false
	dial := func(most uint16) (*tls.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{
			InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: most,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				asked = true
				return &tls.Certificate{}, nil
			},
		}}
		c, err := d.DialContext(ctx, "tcp", s.AdminAddr().String())
		if err != nil {
			return nil, err
		}
		return c.(*tls.Conn), nil
	}
	if c, err := dial(tls.VersionTLS11); err == nil {
		_ = c.Close()
		t.Error("TLS 1.1 is accepted")
	}
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c, err := dial(v)
		if err != nil {
			t.Errorf("%s: %v", tls.VersionName(v), err)
			continue
		}
		if got := c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); got != 1 {
			t.Errorf("another certificate: serial %d", got)
		}
		_ = c.Close()
	}
	if asked {
		t.Error("the admin port asks for a client certificate")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer tr.CloseIdleConnections()
	for _, base := range []string{"http://" + s.MetricsAddr().String(), "https://" + s.AdminAddr().String()} {
		for _, path := range []string{"/healthz", "/readyz"} {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := (&http.Client{Transport: tr}).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusOK {
				t.Errorf("%s%s: status %d", base, path, res.StatusCode)
			}
		}
	}
	// No API on the metrics port.
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.MetricsAddr().String()+"/bauxite.dispatch.v1.HubService/GetHubStatus", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("the API on the metrics port: status %d", res.StatusCode)
	}
}

func TestAdminConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"cert alone": {DataDir: "d", AdminCert: "a"},
		"key alone":  {DataDir: "d", AdminKey: "a"},
		"plain URL":  {DataDir: "d", AdminURL: "http://x"},
		"path":       {DataDir: "d", AdminURL: "https://x/y"},
		"metrics":    {DataDir: "d", MetricsListen: "9"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for admin, want := range map[string]string{"": DefaultMetricsListen, Off: Off} {
		c, err := Config{DataDir: "d", AdminListen: admin}.withDefaults()
		if err != nil || c.MetricsListen != want {
			t.Errorf("metrics port beside admin %q: %q, %v", admin, c.MetricsListen, err)
		}
	}
}
