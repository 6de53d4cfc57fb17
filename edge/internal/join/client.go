// SPDX-License-Identifier: Apache-2.0

package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// maxAnswer bounds the hub's answer, in bytes.
const maxAnswer = 64 << 10

// client makes one call to a hub that only the token's pin identifies.
type client struct {
	token identity.Token
	url   *url.URL
	dial  dialer
	// proxy picks an HTTP proxy; nil means none.
	proxy func(*http.Request) (*url.URL, error)

	// Known after the handshake.
	root   *x509.Certificate
	meshID string
}

// provision proves the hub first and sends the token only then.
func (c *client) provision(ctx context.Context, req *dispatchv1.ProvisionRequest) (*dispatchv1.ProvisionResponse, error) {
	conn, err := c.handshake(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// One connection, the one that was proved: a second dial finds nothing.
	conns := make(chan net.Conn, 1)
	conns <- conn
	var p http.Protocols
	p.SetHTTP2(true)
	tr := &http.Transport{
		Protocols: &p, DisableCompression: true,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case conn := <-conns:
				return conn, nil
			default:
				return nil, errors.New("connection lost")
			}
		},
	}
	defer tr.CloseIdleConnections()
	rpc := dispatchv1connect.NewProvisioningServiceClient(&http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, c.url.String(), connect.WithReadMaxBytes(maxAnswer))
	ans, err := rpc.Provision(ctx, req)
	if err != nil {
		return nil, refusal(err)
	}
	return ans, nil
}

// connect opens a TCP connection to the hub, through the proxy where there is one.
func (c *client) connect(ctx context.Context) (net.Conn, error) {
	dial := c.dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	port := c.url.Port()
	if port == "" {
		port = "443"
	}
	addr := net.JoinHostPort(c.url.Hostname(), port)
	if c.proxy != nil {
		switch proxy, err := c.proxy(&http.Request{URL: c.url}); {
		case err != nil:
			return nil, fmt.Errorf("pick a proxy: %w", err)
		case proxy != nil:
			pctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return through(pctx, dial, proxy, addr)
		}
	}
	return dial(ctx, "tcp", addr)
}

func (c *client) handshake(ctx context.Context) (*tls.Conn, error) {
	raw, err := c.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: c.url.Hostname(),
		// The second one lets any web server come as far as the pin.
		NextProtos: []string{"h2", "http/1.1"},
		// The pin replaces the system's roots and the host name.
		InsecureSkipVerify: true,
		VerifyConnection:   c.verify,
	})
	hctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(hctx); err != nil {
		_ = raw.Close()
		if errors.Is(err, ErrPin) || errors.Is(err, ErrTokenForeign) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
		_ = conn.Close()
		return nil, fmt.Errorf("%w: it speaks no HTTP/2; a proxy that ends TLS cannot be in between", ErrUnreachable)
	}
	return conn, nil
}

// verify finds the pinned root among the certificates that the server sent, and
// accepts the server if that root vouches for it as a hub.
func (c *client) verify(cs tls.ConnectionState) error {
	pool := x509.NewCertPool()
	for _, cert := range cs.PeerCertificates {
		if identity.Pin(cert) == c.token.Pin {
			c.root = cert
			pool.AddCert(cert)
		}
	}
	if c.root == nil {
		// Who this is instead is a claim without proof, good for a message only.
		if id := claimedMesh(cs); id != "" && c.token.MeshID != "" && id != c.token.MeshID {
			return fmt.Errorf("%w: it is for %s, the hub serves %s", ErrTokenForeign, c.token.MeshID, id)
		}
		return ErrPin
	}
	id, err := hub.VerifyServer(cs, pool, time.Now())
	var inv x509.CertificateInvalidError
	if errors.As(err, &inv) && inv.Reason == x509.Expired {
		return fmt.Errorf("%w: certificate is not valid at this machine's time, %s", ErrUnreachable, time.Now().UTC().Format(time.DateTime))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPin, err)
	}
	if c.token.MeshID != "" && id != c.token.MeshID {
		return fmt.Errorf("%w: it is for %s, the hub serves %s", ErrTokenForeign, c.token.MeshID, id)
	}
	c.meshID = id
	return nil
}

func claimedMesh(cs tls.ConnectionState) string {
	leaf := cs.PeerCertificates[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" || !identity.ValidName(leaf.URIs[0].Host) {
		return ""
	}
	return leaf.URIs[0].Host
}
