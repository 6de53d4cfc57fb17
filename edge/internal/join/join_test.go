// SPDX-License-Identifier: Apache-2.0

package join

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestJoin(t *testing.T) {
	h := hubtest.New(t)
	dir := filepath.Join(t.TempDir(), "home")
	res, err := Run(t.Context(), Config{Token: h.Token(1, time.Hour).String(), HubURL: h.URL, Home: dir, Name: "robot7"})
	if err != nil {
		t.Fatal(err)
	}
	n, err := home.Load(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if n.Certificate.Name != "robot7" || n.Certificate.ID != res.Certificate.ID || n.Config.Hub.URL != h.URL || len(n.PSK) != 32 || n.Config.PSK.Epoch != 1 {
		t.Errorf("joined as %+v with %+v", n.Certificate, n.Config)
	}
	if got, want := n.Config.Node.MeshCIDRs[0], netip.MustParsePrefix("10.66.0.0/16"); got != want {
		t.Errorf("mesh prefix = %v, want %v", got, want)
	}
}

// refused runs a join that must fail and checks that the home is not even made.
func refused(t *testing.T, cfg Config, want error) {
	t.Helper()
	root := t.TempDir()
	if cfg.Home == "" {
		cfg.Home = filepath.Join(root, "home")
	}
	if _, err := Run(t.Context(), cfg); !errors.Is(err, want) {
		t.Errorf("Run = %v, want %v", err, want)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRefusals(t *testing.T) {
	h := hubtest.New(t)
	other := hubtest.New(t)
	good := func() identity.Token { return h.Token(1, time.Hour) }

	unknown := good()
	unknown.Secret = other.Token(1, time.Hour).Secret
	used := good()
	if _, err := Run(t.Context(), Config{Token: used.String(), HubURL: h.URL, Home: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	badPin := good()
	badPin.Pin = other.Pin()
	foreign := good()
	foreign.MeshID = "othermesh"
	foreignPin := foreign
	foreignPin.Pin = other.Pin()
	web := httptest.NewTLSServer(http.NotFoundHandler())
	web.Config.ErrorLog = log.New(t.Output(), "", 0)
	defer web.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()

	for _, tc := range []struct {
		name  string
		token string
		url   string
		want  error
	}{
		{"Malformed", "bxt1.nonsense", h.URL, identity.ErrToken},
		{"Unknown", unknown.String(), h.URL, ErrTokenUnknown},
		{"Expired", h.Token(1, -time.Second).String(), h.URL, ErrTokenExpired},
		{"UsedUp", used.String(), h.URL, ErrTokenUsedUp},
		{"WrongPin", badPin.String(), h.URL, ErrPin},
		{"ForeignMesh", foreign.String(), h.URL, ErrTokenForeign},
		{"ForeignHub", foreignPin.String(), h.URL, ErrTokenForeign},
		{"WebServer", good().String(), web.URL, ErrPin},
		{"NoTLS", good().String(), strings.Replace(plain.URL, "http", "https", 1), ErrUnreachable},
		{"Closed", good().String(), "https://127.0.0.1:1", ErrUnreachable},
		{"NoHost", good().String(), "https://hub.invalid:8440", ErrUnreachable},
		{"URL", good().String(), "ftp://hub", hub.ErrURL},
	} {
		t.Run(tc.name, func(t *testing.T) {
			refused(t, Config{Token: tc.token, HubURL: tc.url}, tc.want)
		})
	}
	t.Run("Name", func(t *testing.T) {
		refused(t, Config{Token: good().String(), HubURL: h.URL, Name: "Not A Name"}, ErrName)
	})
	t.Run("PSKFile", func(t *testing.T) {
		refused(t, Config{Token: good().String(), HubURL: h.URL, PSKFile: filepath.Join(t.TempDir(), "none")}, os.ErrNotExist)
	})
}

// Nothing that the hub says is believed against the token or the keys.
func TestTamperedAnswer(t *testing.T) {
	h := hubtest.New(t)
	evil := hubtest.NewCA(t, h.MeshID)
	_, foreign := h.Enroll("victim")
	for name, f := range map[string]func(*dispatchv1.ProvisionResponse){
		"NoCA":    func(r *dispatchv1.ProvisionResponse) { r.CaCrt = nil },
		"OtherCA": func(r *dispatchv1.ProvisionResponse) { r.CaCrt = identity.MarshalChainPEM([][]byte{evil.Root.Raw}) },
		"TwoCAs": func(r *dispatchv1.ProvisionResponse) {
			r.CaCrt = append(r.CaCrt, identity.MarshalChainPEM([][]byte{evil.Root.Raw})...)
		},
		"NoCert":      func(r *dispatchv1.ProvisionResponse) { r.NodeCrt = []byte("x") },
		"OthersCert":  func(r *dispatchv1.ProvisionResponse) { r.NodeCrt = identity.MarshalChainPEM(foreign.Certificate) },
		"OtherID":     func(r *dispatchv1.ProvisionResponse) { r.NodeId = identity.PeerID{9}.String() },
		"OtherName":   func(r *dispatchv1.ProvisionResponse) { r.Name = "mallory" },
		"OtherIP":     func(r *dispatchv1.ProvisionResponse) { r.VirtualIp = "10.66.9.9" },
		"OtherIP6":    func(r *dispatchv1.ProvisionResponse) { r.VirtualIp6 = "fd66::9999" },
		"OtherMesh":   func(r *dispatchv1.ProvisionResponse) { r.MeshId = "x" },
		"AllTraffic":  func(r *dispatchv1.ProvisionResponse) { r.MeshCidr = "0.0.0.0/0" },
		"OtherPrefix": func(r *dispatchv1.ProvisionResponse) { r.MeshCidr = "10.99.0.0/16" },
		"ShortPSK":    func(r *dispatchv1.ProvisionResponse) { r.Psk = r.GetPsk()[:16] },
		"Epoch":       func(r *dispatchv1.ProvisionResponse) { r.PskEpoch = 256 },
	} {
		t.Run(name, func(t *testing.T) {
			h.Tamper(f)
			refused(t, Config{Token: h.Token(1, time.Hour).String(), HubURL: h.URL}, ErrAnswer)
		})
	}
}

// cutConn breaks after the request went out.
type cutConn struct {
	net.Conn
	cut *atomic.Bool
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.cut.Load() {
		return 0, errors.New("cut")
	}
	return n, err
}

// A join whose answer got lost goes on with the same keys, and the token counts
// once.
func TestInterruptedJoinContinues(t *testing.T) {
	h := hubtest.New(t)
	token := h.Token(1, time.Hour).String()
	dir := filepath.Join(t.TempDir(), "home")
	var cut atomic.Bool
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return &cutConn{c, &cut}, err
	}
	h.Tamper(func(*dispatchv1.ProvisionResponse) { cut.Store(true) })
	cfg := Config{Token: token, HubURL: h.URL, Home: dir, DialContext: dial}
	if _, err := Run(t.Context(), cfg); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("Run = %v, want ErrInterrupted", err)
	}
	if home.Joined(dir) || h.Redeemed() != 1 {
		t.Fatalf("joined %v, redeemed %d", home.Joined(dir), h.Redeemed())
	}
	cut.Store(false)
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := home.Load(dir, time.Now()); err != nil || h.Redeemed() != 1 {
		t.Errorf("load: %v; redeemed %d times", err, h.Redeemed())
	}
}

func TestOperatorsPSK(t *testing.T) {
	h := hubtest.New(t)
	h.Tamper(func(r *dispatchv1.ProvisionResponse) { r.Psk = nil })
	token := h.Token(1, time.Hour).String()
	dir := filepath.Join(t.TempDir(), "home")
	if _, err := Run(t.Context(), Config{Token: token, HubURL: h.URL, Home: dir}); !errors.Is(err, ErrNoPSK) {
		t.Fatalf("Run = %v, want ErrNoPSK", err)
	}
	psk := filepath.Join(t.TempDir(), "psk")
	if err := os.WriteFile(psk, []byte(strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Config{Token: token, HubURL: h.URL, Home: dir, PSKFile: psk}); err != nil {
		t.Fatal(err)
	}
	if n, err := home.Load(dir, time.Now()); err != nil || n.PSK[0] != 0xab || h.Redeemed() != 1 {
		t.Errorf("load: %v; redeemed %d times", err, h.Redeemed())
	}
}

// The token is not spent where the identity could not be kept anyway.
func TestHomeIsCheckedFirst(t *testing.T) {
	h := hubtest.New(t)
	token := h.Token(1, time.Hour).String()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Config{Token: token, HubURL: h.URL, Home: filepath.Join(file, "home")}); !errors.Is(err, home.ErrUnwritable) {
		t.Errorf("Run = %v, want ErrUnwritable", err)
	}
	dir := t.TempDir()
	if _, err := Run(t.Context(), Config{Token: h.Token(1, time.Hour).String(), HubURL: h.URL, Home: dir}); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Config{Token: token, HubURL: h.URL, Home: dir}); !errors.Is(err, home.ErrExists) {
		t.Errorf("Run = %v, want ErrExists", err)
	}
	if h.Redeemed() != 1 {
		t.Errorf("redeemed %d times, want 1", h.Redeemed())
	}
	if _, err := Run(t.Context(), Config{Token: token, HubURL: h.URL, Home: dir, Force: true}); err != nil {
		t.Errorf("Run with force = %v", err)
	}
}
