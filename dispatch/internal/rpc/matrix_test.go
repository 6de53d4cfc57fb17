// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// errEntered is what a call gets that the gate lets in.
var errEntered = connect.NewError(connect.CodeDataLoss, errors.New("let in"))

// gateHub is the API behind its three real listeners, without what is behind the
// gate.
type gateHub struct {
	*API
	tb                    testing.TB
	ca                    *ca.CA
	nodes, admins, socket string // base URLs
}

func newGateHub(t *testing.T) *gateHub {
	t.Helper()
	dir := t.TempDir()
	authority, err := ca.Open(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, "d.db"), Init: store.Meta{
		MeshID: authority.MeshID, CIDR: netip.MustParsePrefix("10.9.0.0/16"), CIDR6: netip.MustParsePrefix("fd00::/64"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	h := &gateHub{tb: t, ca: authority}
	log := slog.New(slog.DiscardHandler)
	h.API = New(Config{
		Store: st, CA: authority, Logger: log, URL: func() string { return "https://hub:8440" },
		AdminURL: func() string { return "https://hub:8441" }, AdminPin: authority.Pin(),
	})
	serve := func(handler http.Handler, tlsConfig *tls.Config) string {
		var lc net.ListenConfig
		ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := NewHTTPServer(context.Background(), handler, log)
		srv.TLSConfig = tlsConfig
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetHTTP2(true)
		srv.Protocols.SetUnencryptedHTTP2(tlsConfig == nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if tlsConfig != nil {
				_ = srv.ServeTLS(ln, "", "")
			} else {
				_ = srv.Serve(ln)
			}
		}()
		t.Cleanup(func() { _ = srv.Close(); <-done })
		scheme := map[bool]string{true: "https://", false: "http://"}[tlsConfig != nil]
		return scheme + ln.Addr().String()
	}
	nodeTLS := authority.ServerTLS([]string{"127.0.0.1"}, func(ctx context.Context, id identity.PeerID, serial []byte) error {
		_, err := st.Admit(ctx, id, serial)
		return err
	})
	h.nodes = serve(h.NodeHandler(), nodeTLS)
	h.admins = serve(h.KeyHandler(), &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: nodeTLS.GetCertificate})
	// The unix socket is plain; here it is a TCP port with its handler.
	h.socket = serve(h.AdminHandler(), nil)
	return h
}

// gateClient is somebody who calls.
type gateClient struct {
	http *http.Client
	base string
}

type bearerKey struct {
	next http.RoundTripper
	key  string
}

func (b bearerKey) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.key)
	return b.next.RoundTrip(r)
}

func (h *gateHub) transport(cert *tls.Certificate) *http.Transport {
	roots := x509.NewCertPool()
	roots.AddCert(h.ca.Root)
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	h.tb.Cleanup(tr.CloseIdleConnections)
	return tr
}

func (h *gateHub) asNode(cert *tls.Certificate) gateClient {
	return gateClient{&http.Client{Transport: h.transport(cert)}, h.nodes}
}

func (h *gateHub) asKey(key string) gateClient {
	var rt http.RoundTripper = h.transport(nil)
	if key != "" {
		rt = bearerKey{rt, key}
	}
	return gateClient{&http.Client{Transport: rt}, h.admins}
}

func (h *gateHub) asSocket() gateClient {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	h.tb.Cleanup(tr.CloseIdleConnections)
	return gateClient{&http.Client{Transport: tr}, h.socket}
}

// call calls a procedure with an empty message: "yes" where the gate let it in,
// "tls" where there was no connection, "-" where it was refused.
func (c gateClient) call(tb testing.TB, m method) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cl := connect.NewClient[emptypb.Empty, emptypb.Empty](c.http, c.base+m.procedure)
	var err error
	switch {
	case m.client:
		s := cl.CallBidiStream(ctx)
		_ = s.Send(&emptypb.Empty{})
		_, err = s.Receive()
		_ = s.CloseRequest()
		_ = s.CloseResponse()
	case m.server:
		var s *connect.ServerStreamForClient[emptypb.Empty]
		if s, err = cl.CallServerStream(ctx, connect.NewRequest(&emptypb.Empty{})); err == nil {
			s.Receive()
			err = s.Err()
			_ = s.Close()
		}
	default:
		_, err = cl.CallUnary(ctx, connect.NewRequest(&emptypb.Empty{}))
	}
	switch code := connect.CodeOf(err); {
	case err == nil:
		tb.Errorf("%s: no error, although nothing is behind the gate", m.procedure)
		return "?"
	case connect.IsWireError(err) && code == connect.CodeDataLoss:
		return "yes"
	case connect.IsWireError(err) && (code == connect.CodePermissionDenied || code == connect.CodeUnauthenticated):
		return "-"
	case !connect.IsWireError(err) && code != connect.CodeDeadlineExceeded:
		// With TLS 1.3 a client learns only afterwards that it was refused, in
		// whatever it was doing then.
		return "tls"
	}
	tb.Errorf("%s: unexpected error: %v", m.procedure, err)
	return "?"
}

type method struct {
	procedure      string
	client, server bool // which side streams
}

func methods() (out []method) {
	protoregistry.GlobalFiles.RangeFilesByPackage("bauxite.dispatch.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				out = append(out, method{fmt.Sprintf("/%s/%s", s.FullName(), m.Name()), m.IsStreamingClient(), m.IsStreamingServer()})
			}
		}
		return true
	})
	slices.SortFunc(out, func(a, b method) int { return strings.Compare(a.procedure, b.procedure) })
	return out
}

// enroll makes a node and its certificate.
func (h *gateHub) enroll(name string, serverKey bool) (store.Node, *tls.Certificate) {
	h.tb.Helper()
	ctx, now := context.Background(), time.Now()
	must := func(err error) {
		h.tb.Helper()
		if err != nil {
			h.tb.Fatal(err)
		}
	}
	tok, err := identity.NewToken(h.ca.Pin(), h.ca.MeshID)
	must(err)
	must(h.store.CreateToken(ctx, store.Token{ID: tok.ID, SecretHash: tok.SecretHash(), MaxUses: 1, Expires: now.Add(time.Hour)}))
	k, err := identity.GenerateKeys()
	must(err)
	serial, err := ca.NewSerial()
	must(err)
	n, err := h.store.Enroll(ctx, store.Join{
		TokenID: tok.ID, SecretHash: tok.SecretHash(), Name: name, ServerKey: serverKey, Serial: serial, Now: now, NotAfter: now.Add(time.Hour),
		Ed25519: k.Ed25519.Public().(ed25519.PublicKey), X25519: k.X25519.PublicKey().Bytes(),
	})
	must(err)
	chain, err := h.ca.IssueNode(n, serial, now, now.Add(time.Hour))
	must(err)
	ders, err := identity.ParseChainPEM(chain)
	must(err)
	return n, &tls.Certificate{Certificate: ders, PrivateKey: k.Ed25519}
}

// key makes a user where there is none of the name, and a key for him.
func (h *gateHub) key(user string, role authz.Role, life time.Duration, scopes ...authz.Permission) (text, id string) {
	h.tb.Helper()
	ctx := context.Background()
	if _, err := h.store.CreateUser(ctx, store.Grantor{}, user, role); err != nil && !errors.Is(err, store.ErrNameTaken) {
		h.tb.Fatal(err)
	}
	k, row, err := newKey(user, scopes, life, "")
	if err == nil {
		err = h.store.CreateAPIKey(ctx, store.Grantor{}, row)
	}
	if err != nil {
		h.tb.Fatal(err)
	}
	return k.String(), k.ID
}

// gateCaller is a column of the matrix.
type gateCaller struct {
	name   string
	client gateClient
	// want says what the class table means for him.
	want func(rule) bool
	// tls is whether not even a connection comes about.
	tls bool
}

func (h *gateHub) callers(t *testing.T) (out []gateCaller) {
	nobody := func(rule) bool { return false }
	_, cert := h.enroll("robot", false)
	_, serverCert := h.enroll("plain", true)
	gone, goneCert := h.enroll("gone", false)
	late, lateCert := h.enroll("late", false)
	stays := h.asNode(lateCert)
	if got := stays.call(t, methods()[0]); got == "tls" {
		t.Fatal("a node cannot connect")
	}
	for _, n := range []store.Node{gone, late} {
		if err := h.store.RevokeNode(t.Context(), n.ID, "test"); err != nil {
			t.Fatal(err)
		}
	}
	other, err := ca.Open(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	foreign := *h
	foreign.ca = other
	_, foreignCert := foreign.enroll("foreign", false)
	out = []gateCaller{
		{"no certificate", h.asNode(nil), func(r rule) bool { return r.class == anonymous }, false},
		{"other mesh", h.asNode(foreignCert), nobody, true},
		{"node", h.asNode(cert), func(r rule) bool { return r.class == anonymous || r.class == node }, false},
		{"server's key", h.asNode(serverCert), func(r rule) bool { return r.class == anonymous || r.class == node && r.serverKey }, false},
		{"revoked node", h.asNode(goneCert), nobody, true},
		{"revoked, connected", stays, nobody, false},
		{"no key", h.asKey(""), func(r rule) bool { return r.class == visitor }, false},
	}
	asRole := func(role authz.Role, scopes ...authz.Permission) func(rule) bool {
		return func(r rule) bool {
			return r.class == visitor || r.class == user && (r.permission == "" || authz.Allowed(role, scopes, r.permission))
		}
	}
	for _, r := range authz.Roles() {
		k, _ := h.key(string(r), r, time.Hour)
		out = append(out, gateCaller{string(r), h.asKey(k), asRole(r), false})
	}
	scoped, _ := h.key("scoped", authz.Admin, time.Hour, authz.NodesRead, authz.BackupsWrite)
	expired, _ := h.key("owner", authz.Owner, -time.Second)
	revoked, id := h.key("owner", authz.Owner, time.Hour)
	if _, err := h.store.RevokeAPIKey(t.Context(), store.Grantor{}, id); err != nil {
		t.Fatal(err)
	}
	orphan, _ := h.key("deleted", authz.Owner, time.Hour)
	if err := h.store.DeleteUser(t.Context(), store.Grantor{}, "deleted", 1); err != nil {
		t.Fatal(err)
	}
	lowered, _ := h.key("lowered", authz.Owner, time.Hour)
	if _, err := h.store.SetUserRole(t.Context(), store.Grantor{}, "lowered", authz.Viewer, 1); err != nil {
		t.Fatal(err)
	}
	good, _ := h.key("owner", authz.Owner, time.Hour)
	wrong := good[:len(good)-2] + map[bool]string{true: "AA", false: "QA"}[!strings.HasSuffix(good, "AA")]
	return append(out,
		gateCaller{"scoped admin", h.asKey(scoped), asRole(authz.Admin, authz.NodesRead, authz.BackupsWrite), false},
		gateCaller{"lowered owner", h.asKey(lowered), asRole(authz.Viewer), false},
		gateCaller{"expired key", h.asKey(expired), nobody, false},
		gateCaller{"revoked key", h.asKey(revoked), nobody, false},
		gateCaller{"deleted user", h.asKey(orphan), nobody, false},
		gateCaller{"wrong secret", h.asKey(wrong), nobody, false},
		gateCaller{"no key at all", h.asKey("bxk1"), nobody, false},
		gateCaller{"socket", h.asSocket(), func(r rule) bool { return r.class == visitor || r.class == user || r.class == socket }, false},
	)
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestMatrix calls every procedure as everybody, over the real listeners, and
// compares what is let in with the class table and with a file in which a change
// shows in a review. What is not in the table is denied to all.
func TestMatrix(t *testing.T) {
	h := newGateHub(t)
	h.gate.entered = func() error { return errEntered }
	callers := h.callers(t)
	// Here the point is not how often somebody may fail.
	h.keys.burst = 1 << 20
	var b strings.Builder
	for _, c := range callers {
		fmt.Fprintf(&b, "# %s:", c.name)
		if c.tls {
			b.WriteString(" no connection\n")
		} else {
			b.WriteByte('\n')
		}
		allowed := 0
		for _, m := range methods() {
			got := c.client.call(t, m)
			want := map[bool]string{true: "yes", false: "-"}[c.want(classes[m.procedure])]
			if c.tls {
				want = "tls"
			}
			if got != want {
				t.Errorf("%s calls %s: %s, want %s", c.name, m.procedure, got, want)
			}
			if got == "yes" {
				allowed++
				b.WriteString("  " + strings.TrimPrefix(m.procedure, "/bauxite.dispatch.v1.") + "\n")
			}
		}
		t.Logf("%-20s %d of %d", c.name, allowed, len(methods()))
	}
	const name = "testdata/matrix.golden"
	if *update {
		if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("who may call what has changed (-want +got), rewrite with -update if that is meant:\n%s", d)
	}
}

// TestAuthorizeDefault: nobody may call what is in no table, and nothing is let in
// that no listener vouches for.
func TestAuthorizeDefault(t *testing.T) {
	for _, c := range []class{0, anonymous, visitor, node, user, socket} {
		if authorize(&caller{class: c, role: authz.Owner}, "/bauxite.dispatch.v1.NoService/None") == nil {
			t.Errorf("class %d may call what is not in the table", c)
		}
	}
	for p := range classes {
		if authorize(&caller{}, p) == nil {
			t.Errorf("a call of %s that no listener vouches for is let in", p)
		}
		if authorize(&caller{class: user}, p) == nil && classes[p].permission != "" {
			t.Errorf("a user without a role may call %s", p)
		}
	}
}
