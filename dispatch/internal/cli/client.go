// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// callTimeout bounds a call that is no stream.
const callTimeout = 15 * time.Second

// hub is a way to a running hub.
type hub struct {
	http *http.Client
	base string
	// name is what people call it in messages.
	name string
	// remote is whether it is over the network, with an API key.
	remote bool
	// pin is how a remote one was known, where it was by that.
	pin string
	dir string
}

func (h *hub) fleet() dispatchv1connect.FleetServiceClient {
	return dispatchv1connect.NewFleetServiceClient(h.http, h.base)
}

func (h *hub) audit() dispatchv1connect.AuditServiceClient {
	return dispatchv1connect.NewAuditServiceClient(h.http, h.base)
}

func (h *hub) access() dispatchv1connect.AccessServiceClient {
	return dispatchv1connect.NewAccessServiceClient(h.http, h.base)
}

func (h *hub) operate() dispatchv1connect.HubServiceClient {
	return dispatchv1connect.NewHubServiceClient(h.http, h.base)
}

func (h *hub) close() { h.http.CloseIdleConnections() }

// hubFlags are those of a command that calls a hub, with more before them.
func hubFlags(more ...cli.Flag) []cli.Flag {
	return append(more, append(fromEnv(
		dataFlag(),
		&cli.StringFlag{Name: "hub", Usage: "`URL` of a hub elsewhere, as https://hub.example.org:8441"},
		&cli.StringFlag{Name: "key-file", Usage: "`FILE` with the API key for --hub (default: " + defaultKeyFileText + ")"},
		&cli.StringFlag{Name: "ca", Usage: "`FILE` with the root certificate of --hub, PEM"},
		&cli.StringFlag{Name: "pin", Usage: "`PIN` of the root certificate of --hub, the fourth part of a join token"},
	), jsonFlag())...)
}

// call opens the way to the hub that c names, makes one call in callTimeout and
// translates its error, to which what is put in front.
func call[T any](c *cli.Context, what string, f func(ctx context.Context, h *hub) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(c.Context, callTimeout)
	defer cancel()
	return callFor(ctx, c, what, f)
}

// callFor is call without its timeout.
func callFor[T any](ctx context.Context, c *cli.Context, what string, f func(ctx context.Context, h *hub) (T, error)) (res T, err error) {
	h, err := openHub(c, true)
	if err != nil {
		return res, err
	}
	defer h.close()
	if res, err = f(ctx, h); err != nil {
		return res, fmt.Errorf("%s: %w", what, h.explain(err))
	}
	return res, nil
}

// openHub finds the hub that c names: --hub, else the socket in --data, else the
// hub that the key file names. Without withKey a remote hub is called as nobody.
func openHub(c *cli.Context, withKey bool) (*hub, error) {
	to := c.String("hub")
	if dir := c.String("data"); to == "" && dir != "" {
		return socketHub(dir), nil
	}
	var kf keyFile
	name, err := keyFileName(c)
	if err == nil && withKey {
		kf, err = readKeyFile(name)
	}
	if to == "" {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if to = kf.hub; to == "" {
			return nil, usagef("--data DIR is missing; or name a hub elsewhere with --hub URL and --key-file FILE")
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failf(errDenied, "make a key on the hub's machine: bauxite-dispatch key create --data DIR --user NAME --out "+name, "read API key: %w", err)
	}
	if err != nil {
		return nil, err
	}
	t := target{url: to, ca: c.String("ca"), pin: c.String("pin"), key: kf.key}
	// What the key file says of its own hub holds for that hub only: a pin or key
	// never goes elsewhere by accident.
	if sameHub(to, kf.hub) && t.ca == "" && t.pin == "" {
		t.pin = kf.pin
	}
	return t.open()
}

func sameHub(a, b string) bool { return strings.TrimRight(a, "/") == strings.TrimRight(b, "/") }

func socketHub(dir string) *hub {
	return &hub{base: "http://hub", name: dir, dir: dir, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", dispatch.SocketPath(dir))
		},
	}}}
}

// target is a hub elsewhere.
type target struct{ url, ca, pin, key string }

func (t target) open() (*hub, error) {
	u, err := url.Parse(t.url)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, usagef("--hub: want a URL like https://hub.example.org:8441")
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case t.ca != "":
		b, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, usageError{fmt.Errorf("--ca: %w", err)}
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(b) {
			return nil, usagef("--ca %s: no PEM certificate in it", t.ca)
		}
	case t.pin != "":
		host := u.Hostname()
		cfg.InsecureSkipVerify = true // replaced by the check of the pin
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return checkPin(cs, t.pin, host) }
	}
	tr := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second,
	}
	h := &hub{base: "https://" + u.Host, name: "https://" + u.Host, remote: true, pin: t.pin}
	h.http = &http.Client{
		Transport: bearer{tr, t.key},
		// A redirect would take the key elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return h, nil
}

// errPin is a server that is not the one that a pin names.
var errPin = errors.New("the server is not the hub that the pin names")

// checkPin verifies a chain of which only the pin of its root is known.
func checkPin(cs tls.ConnectionState, pin, host string) error {
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range cs.PeerCertificates {
		if identity.Pin(c) == pin {
			roots.AddCert(c)
			found = true
		} else {
			inter.AddCert(c)
		}
	}
	if !found {
		return errPin
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, DNSName: host})
	return err
}

// bearer adds an API key to each request.
type bearer struct {
	next *http.Transport
	key  string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.key != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.key)
	}
	return b.next.RoundTrip(r)
}

// CloseIdleConnections makes http.Client.CloseIdleConnections work.
func (b bearer) CloseIdleConnections() { b.next.CloseIdleConnections() }

// explain turns an error of a call into one with an exit code and a hint.
func (h *hub) explain(err error) error {
	// What a file on this machine said is not the hub's fault.
	if errors.As(err, new(*fs.PathError)) || errors.As(err, new(*os.LinkError)) {
		return err
	}
	ce := new(connect.Error)
	if !errors.As(err, &ce) {
		return h.unreachable(err)
	}
	if !connect.IsWireError(err) {
		if errors.Is(err, context.Canceled) {
			return context.Canceled
		}
		return h.unreachable(err)
	}
	hint, reason := "", dispatchv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*dispatchv1.ErrorInfo); ok {
				hint, reason = info.GetHint(), info.GetReason()
			}
		}
	}
	text := ce.Message()
	if text == "" {
		text = ce.Code().String()
	}
	if reason == dispatchv1.ErrorReason_ERROR_REASON_POLICY_TESTS_FAILED {
		return failf(errTests, hint, "%s", text)
	}
	switch ce.Code() {
	case connect.CodeInvalidArgument:
		return failf(errUsage, hint, "%s", text)
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return failf(errDenied, hint, "%s", text)
	case connect.CodeNotFound:
		return failf(errNotFound, hint, "%s", text)
	case connect.CodeAborted, connect.CodeAlreadyExists, connect.CodeFailedPrecondition:
		return failf(errConflict, hint, "%s", text)
	case connect.CodeUnimplemented:
		return failf(nil, "the hub may be older than this program: compare bauxite-dispatch version with status", "the hub does not know this call")
	case connect.CodeUnavailable:
		return failf(errNoHub, hint, "%s", text)
	default:
		return failf(nil, hint, "%s", text)
	}
}

// unreachable explains an error that is not the hub's answer.
func (h *hub) unreachable(err error) error {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case errors.Is(err, fs.ErrPermission) && !h.remote:
		return failf(errDenied, "run as the user of the hub, or use --hub with an API key", "no permission to open %s", dispatch.SocketPath(h.dir))
	case !h.remote && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		return failf(errNoHub, "start it with: bauxite-dispatch serve --data "+h.dir, "no hub runs on %s", h.dir)
	case errors.Is(err, errPin):
		return failf(errNoHub, "if the hub was not made anew, something between here and the hub intercepts TLS", "%s: %w", h.name, errPin)
	case errors.As(err, &unknown):
		return failf(errNoHub, "say how to know it: --pin PIN (the fourth part of a join token) or --ca FILE", "%s: certificate of an authority that nobody here knows", h.name)
	case errors.As(err, &host):
		return failf(errNoHub, "use a name or address that its certificate holds, or start the hub with --public-url", "%s: %v", h.name, host)
	case errors.Is(err, context.DeadlineExceeded):
		return failf(errNoHub, "check the address, and that its port is open from here", "%s does not answer in time", h.name)
	case h.remote:
		return failf(errNoHub, "check the address, and that its port is open from here", "%s: %w", h.name, rootCause(err))
	}
	return failf(errNoHub, "", "%s: %w", h.name, rootCause(err))
}

// rootCause leaves away what Connect and net/http put around an error.
func rootCause(err error) error {
	if ce := new(connect.Error); errors.As(err, &ce) && ce.Unwrap() != nil {
		err = ce.Unwrap()
	}
	if ue := new(url.Error); errors.As(err, &ue) {
		err = ue.Err
	}
	return err
}
