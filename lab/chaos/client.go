// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// callTimeout bounds one call: no answer at all is a failure of its own.
const callTimeout = 10 * time.Second

// clients makes calls as operators and as machines do, and tells the killer of
// each request that was sent and each answer that came.
type clients struct {
	hub  *hub
	root *x509.Certificate

	fleet  dispatchv1connect.FleetServiceClient
	policy dispatchv1connect.PolicyServiceClient
	hubs   dispatchv1connect.HubServiceClient

	sent, answered atomic.Pointer[func()]
}

func newClients(ctx context.Context, h *hub) (*clients, error) {
	c := &clients{hub: h}
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", h.socket())
		},
		MaxIdleConnsPerHost: 16,
	}
	hc := &http.Client{Transport: hooked{c, tr}}
	c.fleet = dispatchv1connect.NewFleetServiceClient(hc, "http://hub")
	c.policy = dispatchv1connect.NewPolicyServiceClient(hc, "http://hub")
	c.hubs = dispatchv1connect.NewHubServiceClient(hc, "http://hub")
	t, err := c.fleet.CreateToken(ctx, &dispatchv1.CreateTokenRequest{})
	if err != nil {
		return nil, fmt.Errorf("create token: %w", err)
	}
	return c, c.findRoot(ctx, t.GetToken())
}

// hooked tells c of requests and answers.
type hooked struct {
	c    *clients
	next http.RoundTripper
}

func (h hooked) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r.Body = &sentBody{ReadCloser: r.Body, sent: func() { call(&h.c.sent) }}
	}
	resp, err := h.next.RoundTrip(r)
	if err == nil {
		call(&h.c.answered)
	}
	return resp, err
}

// sentBody calls sent when the last byte was read: the write follows at once.
type sentBody struct {
	io.ReadCloser
	sent func()
}

func (b *sentBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && b.sent != nil {
		b.sent()
		b.sent = nil
	}
	return n, err
}

func call(p *atomic.Pointer[func()]) {
	if f := p.Load(); f != nil {
		(*f)()
	}
}

var errPin = errors.New("server does not have the pinned root")

// findRoot finds the root that a token "bxt1.<id>.<secret>.<pin>…" pins.
func (c *clients) findRoot(ctx context.Context, token string) error {
	f := strings.Split(token, ".")
	if len(f) < 4 {
		return errors.New("malformed join token")
	}
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // the pin takes the name's place
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, crt := range cs.PeerCertificates {
				h := sha256.Sum256(crt.RawSubjectPublicKeyInfo)
				if base64.RawURLEncoding.EncodeToString(h[:]) == f[3] {
					c.root = crt
					return nil
				}
			}
			return errPin
		},
	}}
	conn, err := d.DialContext(ctx, "tcp", c.hub.addr)
	if err != nil {
		return fmt.Errorf("find root of the mesh: %w", err)
	}
	return conn.Close()
}

// tls is how nodes connect; cert is nil before they have joined.
func (c *clients) tls(cert *tls.Certificate) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true, // a hub has no host name
		VerifyConnection: func(cs tls.ConnectionState) error {
			roots, inter := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(c.root)
			for _, crt := range cs.PeerCertificates[1:] {
				inter.AddCert(crt)
			}
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			})
			return err
		},
	}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	return cfg
}

// node returns a client with a connection of its own, and what closes that.
func (c *clients) node(cert *tls.Certificate) (*http.Client, func()) {
	tr := &http.Transport{TLSClientConfig: c.tls(cert), ForceAttemptHTTP2: true}
	return &http.Client{Transport: hooked{c, tr}}, tr.CloseIdleConnections
}

// url is the base of the node port.
func (c *clients) url() string { return "https://" + c.hub.addr }

// outcome is what a caller knows of its call.
type outcome int

const (
	acked    outcome = iota
	lost             // no answer, or one that does not say
	refused          // an answer that says that nothing was done
	unserved         // the hub does not have it
	unsent           // nobody was there to hear it
)

func outcomeOf(err error) outcome {
	if err == nil {
		return acked
	}
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" {
		return unsent
	}
	if !connect.IsWireError(err) {
		return lost
	}
	code := connect.CodeOf(err)
	if code == connect.CodeUnimplemented {
		return unserved
	}
	if slices.Contains(refusals, code) {
		return refused
	}
	return lost
}

// refusals say that nothing was done.
var refusals = []connect.Code{
	connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied,
	connect.CodeResourceExhausted, connect.CodeFailedPrecondition, connect.CodeAborted, connect.CodeOutOfRange,
	connect.CodeUnauthenticated,
}
