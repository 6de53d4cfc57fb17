// SPDX-License-Identifier: Apache-2.0

package dispatch_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// adminClient returns a client of the admin port with an API key, if any.
func adminClient(t *testing.T, h *dispatchtest.Hub, key string) *http.Client {
	t.Helper()
	tok, err := identity.ParseToken(h.Token(1))
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, tok.Pin, nil)
	c.Transport.(*http.Transport).TLSClientConfig.VerifyConnection = func(cs tls.ConnectionState) error {
		roots, inter := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(cs.PeerCertificates[len(cs.PeerCertificates)-1])
		inter.AddCert(cs.PeerCertificates[1])
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: "127.0.0.1"})
		return err
	}
	if key != "" {
		c.Transport = bearer{c.Transport, key}
	}
	return c
}

type bearer struct {
	http.RoundTripper
	key string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.key)
	return b.RoundTripper.RoundTrip(r)
}

// owner claims the hub and returns the key.
func owner(t *testing.T, h *dispatchtest.Hub) string {
	t.Helper()
	_, secret, ok := strings.Cut(h.OwnerLink(), "claim=")
	if !ok {
		t.Fatalf("owner link %q", h.OwnerLink())
	}
	res, err := dispatchv1connect.NewAccessServiceClient(adminClient(t, h, ""), "https://"+h.AdminAddr().String()).
		ClaimOwner(testContext(t), &dispatchv1.ClaimOwnerRequest{Secret: secret, Name: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetKey()
}

// Who may do what was checked in the API or in the pages, not in both.
func TestIncident08OneAuthorization(t *testing.T) {
	h := dispatchtest.Start(t)
	base := "https://" + h.AdminAddr().String()
	stranger := adminClient(t, h, "")
	for _, p := range procedures() {
		if strings.HasSuffix(p, "/ClaimOwner") {
			continue // it has the link's secret for a credential
		}
		if code := post(t, stranger, base, p); code != "unauthenticated" && code != "permission_denied" {
			t.Errorf("%s on the admin port without a key = %q", p, code)
		}
	}
	// A key of the admin port is worth nothing where nodes call, and the other way round.
	key := owner(t, h)
	for _, p := range []string{"/bauxite.dispatch.v1.FleetService/ListNodes", "/bauxite.dispatch.v1.HubService/CreateBackup"} {
		c := stranger
		c.Transport = bearer{adminClient(t, h, "").Transport, key}
		if code := post(t, c, h.URL(), p); code != "unauthenticated" && code != "permission_denied" {
			t.Errorf("%s on the node port with a key = %q", p, code)
		}
	}
	if code := post(t, adminClient(t, h, key), base, "/bauxite.dispatch.v1.FleetService/ListNodes"); code != "" {
		t.Errorf("the owner cannot list nodes: %s", code)
	}
	if code := post(t, adminClient(t, h, key), base, "/bauxite.dispatch.v1.TopologyService/WatchTopology"); code != "permission_denied" {
		t.Errorf("an owner watches as a node would: %q", code)
	}
}

// Accounts were found by their e-mail address, which its holder can change.
func TestIncident15IdentityOfUsers(t *testing.T) {
	schema := sources(t, "internal/store/migrations", ".sql")
	for name, text := range schema {
		if regexp.MustCompile(`(?i)\be-?mail\b`).MatchString(stripSQLComments(text)) {
			t.Errorf("%s has an e-mail column", name)
		}
	}
	if !strings.Contains(schema["00002_hub.sql"], "PRIMARY KEY (iss, sub)") {
		t.Error("identities of a provider are not keyed by (iss, sub)")
	}
}

func stripSQLComments(s string) string { return regexp.MustCompile(`--[^\n]*`).ReplaceAllString(s, "") }

// No protection against other origins' pages, no security headers, and a log that
// everybody could read.
func TestIncident18WebHeadersAndOrigins(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	base := "https://" + h.AdminAddr().String()
	key := owner(t, h)
	do := func(origin, site string) (status int, header http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/bauxite.dispatch.v1.FleetService/ListNodes", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if origin != "" {
			r.Header.Set("Origin", origin)
			r.Header.Set("Sec-Fetch-Site", site)
		}
		res, err := adminClient(t, h, key).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode, res.Header
	}
	status, got := do("", "")
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	for header, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
	} {
		if got.Get(header) != want {
			t.Errorf("%s = %q, want %q", header, got.Get(header), want)
		}
	}
	if csp := got.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src") || strings.Contains(csp, "unsafe") {
		t.Errorf("Content-Security-Policy = %q", csp)
	}
	if status, _ := do("https://evil.example.org", "cross-site"); status != http.StatusForbidden {
		t.Errorf("a page of another origin: status %d", status)
	}
	// The audit log needs a permission that not every role has.
	access := dispatchv1connect.NewAccessServiceClient(adminClient(t, h, key), base)
	for role, want := range map[string]string{"viewer": "permission_denied", "auditor": ""} {
		if _, err := access.CreateUser(ctx, &dispatchv1.CreateUserRequest{Name: role, Role: role}); err != nil {
			t.Fatal(err)
		}
		k, err := access.CreateKey(ctx, &dispatchv1.CreateKeyRequest{User: role})
		if err != nil {
			t.Fatal(err)
		}
		if code := post(t, adminClient(t, h, k.GetKey()), base, "/bauxite.dispatch.v1.AuditService/ListAuditEntries"); code != want {
			t.Errorf("%s reads the audit log: %q, want %q", role, code, want)
		}
	}
}

// sources reads the files below dir whose names end so, by base name.
func sources(t *testing.T, dir, ext string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ext) || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		out[filepath.Base(path)] = string(b)
		return err
	})
	if err != nil || len(out) == 0 {
		t.Fatalf("read %s: %d files, %v", dir, len(out), err)
	}
	return out
}

// A secret was compared in variable time.
func TestIncident20ConstantTime(t *testing.T) {
	// Whatever compares a secret, or the hash of one, does it by these.
	constant := regexp.MustCompile(`subtle\.ConstantTimeCompare|hmac\.Equal`)
	for _, f := range []string{"internal/store/tokens.go", "internal/authz/key.go", "internal/rpc/recover.go"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !constant.Match(b) {
			t.Errorf("%s compares no secret in constant time", f)
		}
		if regexp.MustCompile(`bytes\.Equal\([^)]*([sS]ecret|[hH]ash)`).Match(b) {
			t.Errorf("%s compares a secret in variable time", f)
		}
	}
}

// A cipher of the hub's own with a fixed nonce, and a CA key that lay about.
func TestIncident21NoCipherOfItsOwn(t *testing.T) {
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			switch p := strings.Trim(i.Path.Value, `"`); p {
			case "crypto/aes", "crypto/cipher", "crypto/des", "crypto/rc4", "math/rand":
				t.Errorf("%s imports %s: the hub encrypts nothing itself", path, p)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Statements put together from text.
func TestIncident24ParametersOnly(t *testing.T) {
	fset := token.NewFileSet()
	err := filepath.WalkDir("internal/store", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !strings.HasSuffix(sel.Sel.Name, "Context") {
				return true
			}
			for _, a := range call.Args {
				if b, ok := a.(*ast.BinaryExpr); ok && b.Op == token.ADD {
					t.Errorf("%s: a statement is put together", fset.Position(b.Pos()))
				}
				if c, ok := a.(*ast.CallExpr); ok {
					if s, ok := c.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Sprintf" {
						t.Errorf("%s: a statement is put together", fset.Position(c.Pos()))
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Floods of the kind that HTTP/2 invites.
func TestIncident23StreamsPerConnection(t *testing.T) {
	h := dispatchtest.Start(t)
	m := join(t, h, "m")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// All over one connection: the seventeenth waits for one of the others to end.
	m.http.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{StrictMaxConcurrentRequests: true}
	c := dispatchv1connect.NewTopologyServiceClient(m.http, h.URL())
	for open := 0; open < 16; {
		st, err := c.WatchTopology(ctx, &dispatchv1.WatchTopologyRequest{})
		if err != nil {
			t.Fatalf("stream: %v", err)
		}
		defer st.Close()
		if st.Receive() {
			open++
			continue
		}
		if connect.CodeOf(st.Err()) != connect.CodeResourceExhausted || open < 10 {
			t.Fatalf("stream %d: %v", open, st.Err())
		}
		select { // a node opens one in a second
		case <-time.After(time.Second):
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
	short, end := context.WithTimeout(ctx, 500*time.Millisecond)
	defer end()
	if st, err := c.WatchTopology(short, &dispatchv1.WatchTopologyRequest{}); err == nil && st.Receive() {
		t.Error("a connection has more than 16 streams")
	}
}
