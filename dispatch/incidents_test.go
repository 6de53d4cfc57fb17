// SPDX-License-Identifier: Apache-2.0

package dispatch_test

// Each test here is named after something that went wrong in another hub of this
// kind, and shows that it cannot here.

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/dispatchtest"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// procedures returns the path of every procedure of the API.
func procedures() (out []string) {
	protoregistry.GlobalFiles.RangeFilesByPackage("bauxite.dispatch.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				out = append(out, "/"+string(s.FullName())+"/"+string(s.Methods().Get(j).Name()))
			}
		}
		return true
	})
	slices.Sort(out)
	return out
}

// post calls a procedure with an empty message, as a unary call or a stream, and
// returns the error code's name, empty where it was let in.
func post(t *testing.T, c *http.Client, base, procedure string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req := connect.NewRequest(&emptypb.Empty{})
	st, err := connect.NewClient[emptypb.Empty, emptypb.Empty](c, base+procedure).CallServerStream(ctx, req)
	if err == nil {
		st.Receive()
		err = st.Err()
		_ = st.Close()
	}
	if connect.CodeOf(err) == connect.CodeUnknown || err != nil && strings.Contains(err.Error(), "415") {
		_, err = connect.NewClient[emptypb.Empty, emptypb.Empty](c, base+procedure).CallUnary(ctx, req)
	}
	if err == nil {
		return ""
	}
	return connect.CodeOf(err).String()
}

// One-use tokens used by several machines at once: the check and the use were two
// transactions.
func TestIncident01SingleUseToken(t *testing.T) {
	h := dispatchtest.Start(t)
	token := h.Token(1)
	var ok atomic.Int32
	var wg sync.WaitGroup
	for range 200 {
		m := newMachine(t, h)
		wg.Go(func() {
			_, err := m.provision(token, "")
			switch {
			case err == nil:
				ok.Add(1)
			case reason(err) != dispatchv1.ErrorReason_ERROR_REASON_TOKEN_USED_UP:
				t.Errorf("join = %v", err)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 1 {
		t.Errorf("%d machines joined with a token for one", ok.Load())
	}
}

// A race in the change of a user's role made an admin an owner.
func TestIncident02RoleRace(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	c := dispatchv1connect.NewAccessServiceClient(h.Admin(), "http://hub")
	u, err := c.CreateUser(ctx, &dispatchv1.CreateUserRequest{Name: "eve", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	var ok atomic.Int32
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			role := []string{"admin", "operator", "auditor"}[i%3]
			_, err := c.SetUserRole(ctx, &dispatchv1.SetUserRoleRequest{Name: "eve", Role: role, Version: u.GetUser().GetVersion()})
			switch {
			case err == nil:
				ok.Add(1)
			case reason(err) != dispatchv1.ErrorReason_ERROR_REASON_CONFLICT:
				t.Errorf("set role = %v", err)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 1 {
		t.Errorf("%d changes of one version succeeded", ok.Load())
	}
}

// forged returns a certificate that says all that a node's does, signed by nobody
// whom the hub knows.
func forged(t *testing.T, m *machine) tls.Certificate {
	t.Helper()
	own := parseCert(t, m.res.GetNodeCrt())
	leaf, err := x509.ParseCertificate(own.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf.PublicKey = pub
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: leaf.Issuer, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	_, caKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, pub, caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, own.Chain[1]}, PrivateKey: key}
}

// A credential was taken because it was there, not because it was valid.
func TestIncident03ForgedCredential(t *testing.T) {
	h := dispatchtest.Start(t)
	m := join(t, h, "m")
	tok, err := identity.ParseToken(h.Token(1))
	if err != nil {
		t.Fatal(err)
	}
	crt := forged(t, m)
	c := client(t, tok.Pin, &crt)
	for _, p := range procedures() {
		if code := post(t, c, h.URL(), p); !slices.Contains([]string{"unavailable", "unknown", "canceled"}, code) {
			t.Errorf("%s with a forged certificate = %q, want no connection at all", p, code)
		}
	}
}

// Private keys that only the page did not show were in the API's answers.
func TestIncident04NoPrivateKeys(t *testing.T) {
	allowed := []string{
		"bauxite.dispatch.v1.ProvisionResponse.node_key", // once, in the plain flow
		"bauxite.dispatch.v1.ProvisionResponse.psk", "bauxite.dispatch.v1.GetMeshKeyResponse.psk",
		"bauxite.dispatch.v1.ProvisionRequest.token", "bauxite.dispatch.v1.CreateTokenResponse.token",
		"bauxite.dispatch.v1.ClaimOwnerRequest.secret", "bauxite.dispatch.v1.ClaimOwnerResponse.key",
		"bauxite.dispatch.v1.CreateKeyResponse.key", "bauxite.dispatch.v1.GetTurnCredentialsResponse.password",
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("bauxite.dispatch.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Messages().Len() {
			m := f.Messages().Get(i)
			for j := range m.Fields().Len() {
				d := m.Fields().Get(j)
				n := string(d.Name())
				secret := n == "key" || n == "token" || n == "psk" || strings.Contains(n, "secret") || strings.Contains(n, "private") ||
					strings.Contains(n, "password") || strings.HasSuffix(n, "_key") && !strings.Contains(n, "public")
				bytesOrText := d.Kind() == protoreflect.BytesKind || d.Kind() == protoreflect.StringKind
				if secret && bytesOrText && !slices.Contains(allowed, string(d.FullName())) {
					t.Errorf("field %s may hold a secret: if it must, list it here", d.FullName())
				}
			}
		}
		return true
	})
}

// A procedure that nobody had classified was open to all.
func TestIncident05DefaultDeny(t *testing.T) {
	h := dispatchtest.Start(t)
	tok, err := identity.ParseToken(h.Token(1))
	if err != nil {
		t.Fatal(err)
	}
	open := []string{"Provision", "BeginRecovery", "Recover"}
	for _, p := range procedures() {
		code := post(t, client(t, tok.Pin, nil), h.URL(), p)
		name := p[strings.LastIndex(p, "/")+1:]
		if slices.Contains(open, name) {
			continue // they check for themselves
		}
		if code != "unauthenticated" && code != "permission_denied" {
			t.Errorf("%s without any credential = %q", p, code)
		}
	}
}

// Keys and passwords that were the same in every installation.
func TestIncident06NoDefaultSecrets(t *testing.T) {
	a, b := dispatchtest.Start(t), dispatchtest.Start(t)
	for _, f := range []string{"psk", "audit.key", "ca/root.key", "ca/intermediate.key"} {
		x, errX := os.ReadFile(filepath.Join(a.Dir(), f))
		y, errY := os.ReadFile(filepath.Join(b.Dir(), f))
		if err := errors.Join(errX, errY); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(x, y) {
			t.Errorf("%s is the same in two installations", f)
		}
		if fi, err := os.Stat(filepath.Join(a.Dir(), f)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f, fi.Mode(), err)
		}
	}
	if a.FirstToken() == b.FirstToken() {
		t.Error("two installations have the same first token")
	}
	users, err := dispatchv1connect.NewAccessServiceClient(a.Admin(), "http://hub").ListUsers(testContext(t), &dispatchv1.ListUsersRequest{})
	if err != nil || len(users.GetUsers()) != 0 {
		t.Errorf("a fresh hub has users: %v, %v", users, err)
	}
}

// A field that was not meant to be set from outside made an admin.
func TestIncident07MassAssignment(t *testing.T) {
	may := map[string][]string{
		"role":  {"CreateUserRequest", "SetUserRoleRequest"},
		"state": nil, "generation": {"RecoverRequest"}, "key_origin": nil, "approved_by": nil, "virtual_ip": nil, "created_by": nil,
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("bauxite.dispatch.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Messages().Len() {
			m := f.Messages().Get(i)
			if !strings.HasSuffix(string(m.Name()), "Request") {
				continue
			}
			for field, in := range may {
				d := m.Fields().ByName(protoreflect.Name(field))
				// In a oneof it says what is looked for.
				if d != nil && d.ContainingOneof() == nil && !slices.Contains(in, string(m.Name())) {
					t.Errorf("%s.%s can be set from outside", m.Name(), field)
				}
			}
		}
		return true
	})
}

// A blocked machine got a valid certificate again.
func TestIncident09Revocation(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	m, peer := join(t, h, "m"), join(t, h, "peer")
	w := peer.watch(ctx, nil)
	w.until("sync", func() bool { return w.peers[m.id.String()] != nil })
	own := m.watch(ctx, nil)
	own.until("sync", func() bool { return own.epoch != 0 })
	if err := h.Revoke(ctx, m.id, "stolen"); err != nil {
		t.Fatal(err)
	}
	w.until("denial", func() bool { return w.peers[m.id.String()] == nil })
	for own.st.Receive() {
	}
	check := func(when string) {
		t.Helper()
		if _, err := m.renew(m.keys); err == nil {
			t.Errorf("%s: renews", when)
		}
		token := h.Token(3)
		_, err := m.provision(token, "")
		wantReason(t, when+": rejoin", err, dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED)
		_, err = m.recover(ctx, token, 0, nil, m.keys.Ed25519)
		wantReason(t, when+": recovery", err, dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED)
		st, err := dispatchv1connect.NewTopologyServiceClient(m.http, h.URL()).
			WatchTopology(ctx, &dispatchv1.WatchTopologyRequest{Epoch: own.epoch, Rv: own.rv})
		if err == nil {
			st.Receive()
			err = st.Err()
			_ = st.Close()
		}
		if err == nil {
			t.Errorf("%s: resumes its watch", when)
		}
	}
	check("at once")
	h.Restart()
	check("after a restart")
}

// A block list by the hash of the certificate let the same key in with another.
func TestIncident10DenyByKey(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	m := join(t, h, "m")
	if _, err := fleetOf(h).RevokeNode(ctx, &dispatchv1.RevokeNodeRequest{
		Subject: &dispatchv1.RevokeNodeRequest_Ed25519PublicKey{Ed25519PublicKey: m.keys.Ed25519.Public().(ed25519.PublicKey)},
	}); err != nil {
		t.Fatal(err)
	}
	// The same Ed25519 key with another X25519 key: another PeerID, another certificate.
	n := newMachine(t, h)
	n.keys.Ed25519 = m.keys.Ed25519
	if _, err := n.provision(h.Token(1), ""); err == nil {
		t.Error("a revoked key joins under another id")
	}
}

// A connection that was open before its certificate was revoked stayed good for new
// calls.
func TestIncident12RevokedOnOpenConnection(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	m := join(t, h, "m")
	if _, err := m.provisioning().GetMeshKey(ctx, &dispatchv1.GetMeshKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	serial := parseCert(t, m.res.GetNodeCrt()).Serial.Bytes()
	if _, err := fleetOf(h).RevokeNode(ctx, &dispatchv1.RevokeNodeRequest{Subject: &dispatchv1.RevokeNodeRequest_Serial{Serial: serial}}); err != nil {
		t.Fatal(err)
	}
	_, err := m.provisioning().GetMeshKey(ctx, &dispatchv1.GetMeshKeyRequest{})
	wantReason(t, "a call over the open connection", err, dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED)
	if _, err := m.renew(m.keys); err == nil {
		t.Error("a revoked certificate renews itself over the open connection")
	}
	// The node itself is in good standing: it proves its key and gets another.
	res, err := m.recover(ctx, h.Token(1), 0, nil, m.keys.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	m.useCert(h.Token(1), res.GetNodeCrt())
	if _, err := m.renew(m.keys); err != nil {
		t.Errorf("with its new certificate: %v", err)
	}
}

// A node spoke from addresses that were not its own.
func TestIncident11AddressInCertificate(t *testing.T) {
	h := dispatchtest.Start(t)
	m := join(t, h, "m")
	leaf, err := x509.ParseCertificate(parseCert(t, m.res.GetNodeCrt()).Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ip := range leaf.IPAddresses {
		got = append(got, ip.String())
	}
	if want := []string{m.res.GetVirtualIp(), m.res.GetVirtualIp6()}; !slices.Equal(got, want) {
		t.Errorf("addresses in the certificate = %v, want %v", got, want)
	}
}

// A resumed TLS session skipped the checks of a new one.
func TestIncident12NoResumption(t *testing.T) {
	h := dispatchtest.Start(t)
	m := join(t, h, "m")
	cfg := m.http.Transport.(*http.Transport).TLSClientConfig.Clone()
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	cfg.NextProtos = []string{"h2"}
	for range 3 {
		c, err := tls.Dial("tcp", h.NodeAddr().String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = c.Read(make([]byte, 64)) // tickets come after the handshake
		if c.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		_ = c.Close()
	}
}

// What a request asked for stood in the certificate.
func TestIncident14OnlyTheKeyOfTheRequest(t *testing.T) {
	h := dispatchtest.Start(t)
	m := newMachine(t, h)
	req := m.request(h.Token(1), "m")
	var err error
	req.Csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "hub", Organization: []string{"admins"}}, DNSNames: []string{"hub", "evil.example.org"},
		IPAddresses: []net.IP{net.IPv4(10, 66, 0, 1)}, URIs: []*url.URL{{Scheme: "spiffe", Host: "x", Path: "/hub"}},
	}, m.keys.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	res, err := m.stranger(req.GetToken()).Provision(testContext(t), req)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(parseCert(t, res.GetNodeCrt()).Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(leaf.Subject.String(), "admins") || len(leaf.IPAddresses) != 2 || len(leaf.URIs) != 1 ||
		!strings.HasSuffix(leaf.URIs[0].Path, m.id.String()) || slices.Contains(leaf.DNSNames, "evil.example.org") || leaf.IsCA {
		t.Errorf("certificate = %v, %v, %v, %v", leaf.Subject, leaf.DNSNames, leaf.IPAddresses, leaf.URIs)
	}
}

// A connection that says nothing was held for ever.
func TestIncident19SilentConnection(t *testing.T) {
	h := dispatchtest.Start(t)
	for _, addr := range []net.Addr{h.NodeAddr(), h.AdminAddr()} {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("%s: %v, want the hub to hang up", addr, err)
		}
	}
}

// The sender of a message was read from the message, and anybody could put an end
// to another's stream.
func TestIncident22StreamOwner(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a, b, c := join(t, h, "a"), join(t, h, "b"), join(t, h, "c")
	sa, sb := a.signal(ctx), b.signal(ctx)
	c.signal(ctx) // another node's stream takes nobody's place
	if err := sa.Send(&dispatchv1.ExchangeCandidatesRequest{To: b.id.String(), Body: []byte(c.id.String())}); err != nil {
		t.Fatal(err)
	}
	if res, err := sb.Receive(); err != nil || res.GetDelivery().GetFrom() != a.id.String() {
		t.Errorf("delivery = %v, %v; want it from a", res, err)
	}
}

// The identity was read from the wrong name of the certificate.
func TestIncident13OneName(t *testing.T) {
	h, ctx := dispatchtest.Start(t), testContext(t)
	a, b := join(t, h, "a"), join(t, h, "b")
	// The common name is a person's help and no more: b's certificate says "b", and
	// renaming a to what b was called changes nobody's identity.
	fleet := fleetOf(h)
	b.rename(ctx, t, fleet, "b", "c")
	a.rename(ctx, t, fleet, "a", "b")
	leaf, err := x509.ParseCertificate(parseCert(t, b.res.GetNodeCrt()).Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(leaf.URIs) != 1 || !strings.Contains(leaf.Subject.CommonName, "b") {
		t.Fatalf("names in the certificate = %v, %v", leaf.Subject, leaf.URIs)
	}
	res, err := b.renew(b.keys)
	if err != nil {
		t.Fatal(err)
	}
	if c := parseCert(t, res.GetNodeCrt()); c.ID != b.id || c.Name != "c" {
		t.Errorf("renewed as %s %s, want %s c", c.ID.Short(), c.Name, b.id.Short())
	}
	if _, err := b.renew(a.keys); err == nil {
		t.Error("a node renews with the keys of the one that has its old name")
	}
}
