// SPDX-License-Identifier: Apache-2.0

// Package join makes a machine a node: it proves the hub by the pin in the token,
// redeems the token, distrusts the answer until it is checked, and installs the
// identity as a whole.
package join

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/config"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Why a join did not come about. A malformed token is identity.ErrToken, a
// malformed URL hub.ErrURL; the home has its own errors.
var (
	ErrTokenUnknown = errors.New("the hub does not know this join token")
	ErrTokenExpired = errors.New("the join token has expired")
	ErrTokenUsedUp  = errors.New("the join token is used up")
	ErrTokenRevoked = errors.New("the join token was revoked")
	// ErrTokenForeign: the token is for another mesh than the hub serves.
	ErrTokenForeign = errors.New("the join token belongs to another mesh")
	// ErrPin: no certificate of the server is the root that the token pins.
	ErrPin = errors.New("the server's certificate does not match the pin in the token")
	// ErrUnreachable: no TLS connection to the hub came about.
	ErrUnreachable = errors.New("hub is unreachable")
	// ErrInterrupted: the connection broke after the token was sent. The keys
	// stay, and the same command continues.
	ErrInterrupted = errors.New("the hub did not answer")
	// ErrRefused: the hub said no for another reason.
	ErrRefused = errors.New("the hub refused")
	// ErrName: the wanted node name cannot be had.
	ErrName = errors.New("bad node name")
	// ErrProxy: Config.Proxy is none.
	ErrProxy = errors.New("bad proxy")
	// ErrAnswer: what the hub sent contradicts the token or our keys.
	ErrAnswer = errors.New("the hub's answer is not valid")
	// ErrPending: an administrator has to approve the node. The keys stay, and the
	// same command goes on waiting.
	ErrPending = errors.New("the node waits for approval")
	// ErrCSRRequired: the token wants nodes that make their own key.
	ErrCSRRequired = errors.New("the join token allows only nodes that make their own key")
	// ErrNoPSK: the operator keeps the pre-shared key, and none was given.
	ErrNoPSK = errors.New("this mesh needs its pre-shared key from a file")
)

// Timeout bounds one conversation with the hub.
const Timeout = 30 * time.Second

// Config is what to join, and where to put it.
type Config struct {
	Token   string
	HubURL  string
	Home    string
	Name    string // wanted name; empty lets the hub choose
	Force   bool   // replace an identity
	PSKFile string // where the hub does not have the pre-shared key; empty otherwise
	Version string // of this program, told to the hub
	// Proxy is hub.proxy of config.toml, where it is written if it is not empty.
	Proxy string
	// HubKey lets the hub make the Ed25519 key, which is then replaced at once.
	HubKey bool
	// Wait is how long to wait for an approval; zero means not at all.
	Wait time.Duration
	// Progress, which may be nil, is told in a sentence what takes its time.
	Progress func(string)
	// DialContext replaces the dialler in tests; nil means net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Result is the node that this machine has become.
type Result struct {
	Config      *config.Config
	Certificate *identity.Certificate
}

// Run joins. When it returns an error the home is as it was, but for the keys
// that ErrInterrupted keeps.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	token, err := identity.ParseToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	u, err := hub.ParseURL(cfg.HubURL)
	if err != nil {
		return nil, err
	}
	if cfg.Name != "" && !identity.ValidName(cfg.Name) {
		return nil, fmt.Errorf("%w: %q is no DNS label: use lower-case letters, digits and '-', at most 63", ErrName, cfg.Name)
	}
	if _, err := config.ParseProxy(cfg.Proxy); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProxy, err)
	}
	var psk []byte
	if cfg.PSKFile != "" {
		if psk, err = home.ReadPSK(cfg.PSKFile); err != nil {
			return nil, err
		}
	}
	purpose := "join " + token.ID
	if cfg.HubKey {
		purpose += " hub-key"
	}
	st, err := home.Stage(cfg.Home, purpose, cfg.Force)
	if err != nil {
		return nil, err
	}
	half, err := st.Halfway()
	var res *Result
	switch {
	case err != nil:
	case half != nil:
		cfg.tell("continuing: the key that the hub made is replaced")
		res, err = rekey(ctx, st, half)
	default:
		res, err = redeem(ctx, cfg, token, u, psk, st)
	}
	// The keys that the hub may know already must not be lost.
	keep := errors.Is(err, ErrInterrupted) || errors.Is(err, ErrPending) || errors.Is(err, ErrNoPSK) || errors.Is(err, context.Canceled)
	if cerr := st.Close(keep); err == nil {
		err = cerr
	}
	return res, err
}

func (c *Config) tell(text string) {
	if c.Progress != nil {
		c.Progress(text)
	}
}

func redeem(ctx context.Context, cfg Config, token identity.Token, u *url.URL, psk []byte, st *home.Staging) (*Result, error) {
	var csr []byte
	var err error
	if !cfg.HubKey {
		if csr, err = st.Keys.CSR(); err != nil {
			return nil, err
		}
	}
	host, _ := os.Hostname()
	proxy, err := config.ParseProxy(cfg.Proxy)
	if err != nil {
		return nil, err
	}
	c := &client{token: token, url: u, dial: cfg.DialContext, proxy: proxy}
	ans, err := cfg.approved(ctx, c, &dispatchv1.ProvisionRequest{
		Token: token.String(), Csr: csr, GenerateKey: cfg.HubKey, X25519PublicKey: st.Keys.X25519.PublicKey().Bytes(), Name: cfg.Name,
		Facts: &dispatchv1.NodeFacts{Hostname: host, Os: runtime.GOOS, Arch: runtime.GOARCH, Version: cfg.Version},
	})
	if err != nil {
		return nil, err
	}
	keys := st.Keys
	if cfg.HubKey {
		ed, err := parseHubKey(ans.GetNodeKey())
		if err != nil {
			return nil, err
		}
		keys = &identity.Keys{Ed25519: ed, X25519: st.Keys.X25519}
	}
	res, err := check(ans, token, c.root, c.meshID, keys, time.Now())
	if err != nil {
		return nil, err
	}
	if psk == nil {
		psk = ans.GetPsk()
	}
	switch len(psk) {
	case 32:
	case 0:
		return nil, ErrNoPSK
	default:
		return nil, fmt.Errorf("%w: pre-shared key of %d bytes", ErrAnswer, len(psk))
	}
	res.Config.Hub.URL, res.Config.Hub.Proxy = u.String(), cfg.Proxy
	text, err := res.Config.Marshal()
	if err != nil {
		return nil, err
	}
	files := home.Files{
		CA:          identity.MarshalChainPEM([][]byte{c.root.Raw}),
		Certificate: identity.MarshalChainPEM(res.Certificate.Chain),
		PSK:         psk, Config: text, State: home.State{Generation: ans.GetGeneration()},
	}
	if !cfg.HubKey {
		return res, st.Commit(files)
	}
	cfg.tell("the hub made a key; this machine replaces it by its own")
	half, err := halfway(st, files, ans.GetNodeKey())
	if err != nil {
		return nil, err
	}
	return rekey(ctx, st, half)
}

// check believes nothing of the answer that the pinned root or our own keys do
// not confirm.
func check(ans *dispatchv1.ProvisionResponse, token identity.Token, root *x509.Certificate, meshID string, keys *identity.Keys, now time.Time) (*Result, error) {
	bad := func(format string, a ...any) (*Result, error) {
		return nil, fmt.Errorf("%w: %s", ErrAnswer, fmt.Sprintf(format, a...))
	}
	ca, err := identity.ParseChainPEM(ans.GetCaCrt())
	if err != nil {
		return bad("ca.crt: %v", err)
	}
	if len(ca) != 1 || string(ca[0]) != string(root.Raw) {
		return bad("ca.crt is not the root that the token pins")
	}
	chain, err := identity.ParseChainPEM(ans.GetNodeCrt())
	if err != nil {
		return bad("node.crt: %v", err)
	}
	cert, err := identity.ParseCertificate(chain)
	if err != nil {
		return bad("node.crt: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	if err := cert.Verify(pool, now); err != nil {
		return bad("node.crt: %v", err)
	}
	id := keys.ID()
	switch {
	case cert.ID != id:
		return bad("node.crt is for other keys than this machine's")
	case ans.GetNodeId() != id.String():
		return bad("it names another node")
	case cert.MeshID != meshID, ans.GetMeshId() != meshID, token.MeshID != "" && token.MeshID != meshID:
		return bad("it speaks of another mesh")
	case ans.GetName() != cert.Name || !identity.ValidName(cert.Name):
		return bad("node.crt has another name")
	case ans.GetVirtualIp() != cert.Virtual4.String(), cert.Virtual6.IsValid() != (ans.GetVirtualIp6() != ""):
		return bad("node.crt has another address")
	case ans.GetPskEpoch() > 255:
		return bad("pre-shared key epoch %d", ans.GetPskEpoch())
	}
	if cert.Virtual6.IsValid() {
		if a, err := netip.ParseAddr(ans.GetVirtualIp6()); err != nil || a != cert.Virtual6 {
			return bad("node.crt has another IPv6 address")
		}
	}
	cfg := &config.Config{
		Hub: config.Hub{URL: "https://placeholder.invalid"},
		Node: config.Node{
			Name: cert.Name, ID: id, MeshID: meshID, VirtualIP: cert.Virtual4, VirtualIP6: cert.Virtual6,
		},
		PSK: config.PSK{Epoch: uint8(ans.GetPskEpoch())},
	}
	for _, p := range []struct {
		text string
		in   netip.Addr
	}{{ans.GetMeshCidr(), cert.Virtual4}, {ans.GetMeshCidr6(), cert.Virtual6}} {
		if !p.in.IsValid() && p.text == "" {
			continue
		}
		pre, err := netip.ParsePrefix(p.text)
		if err != nil || !pre.Contains(p.in) {
			return bad("mesh prefix %.50q does not hold the node's address", p.text)
		}
		cfg.Node.MeshCIDRs = append(cfg.Node.MeshCIDRs, pre)
	}
	if err := cfg.Validate(); err != nil {
		return bad("%v", err)
	}
	return &Result{Config: cfg, Certificate: cert}, nil
}

// refusal turns an error of the hub into one of ours.
func refusal(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return fmt.Errorf("%w: %w", ErrInterrupted, err)
	}
	for _, d := range ce.Details() {
		v, derr := d.Value()
		info, ok := v.(*dispatchv1.ErrorInfo)
		if derr != nil || !ok {
			continue
		}
		switch info.GetReason() {
		case dispatchv1.ErrorReason_ERROR_REASON_TOKEN_INVALID:
			return ErrTokenUnknown
		case dispatchv1.ErrorReason_ERROR_REASON_TOKEN_EXPIRED:
			return ErrTokenExpired
		case dispatchv1.ErrorReason_ERROR_REASON_TOKEN_USED_UP:
			return ErrTokenUsedUp
		case dispatchv1.ErrorReason_ERROR_REASON_TOKEN_REVOKED:
			return ErrTokenRevoked
		case dispatchv1.ErrorReason_ERROR_REASON_TOKEN_FOREIGN:
			return ErrTokenForeign
		case dispatchv1.ErrorReason_ERROR_REASON_NAME_INVALID:
			return fmt.Errorf("%w: %.200s", ErrName, ce.Message())
		case dispatchv1.ErrorReason_ERROR_REASON_CSR_REQUIRED:
			return ErrCSRRequired
		case dispatchv1.ErrorReason_ERROR_REASON_APPROVAL_PENDING:
			return &pending{ce.Message(), time.Duration(info.GetRetryAfterMs()) * time.Millisecond}
		default:
			return fmt.Errorf("%w: %.200s", ErrRefused, ce.Message())
		}
	}
	if !connect.IsWireError(err) || ce.Code() == connect.CodeUnavailable || ce.Code() == connect.CodeDeadlineExceeded {
		return fmt.Errorf("%w: %w", ErrInterrupted, err)
	}
	return fmt.Errorf("%w: %.200s", ErrRefused, ce.Message())
}
