// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// DefaultPort is the hub's node port, used where an address names none.
const DefaultPort = "8440"

// ErrNotHub is returned for a server whose certificate is not that of the mesh's
// hub.
var ErrNotHub = errors.New("server is not the hub of this mesh")

// ErrURL is returned for text that is no hub URL.
var ErrURL = errors.New("malformed hub URL")

// ParseURL reads the address of a hub: an https URL without path, or "host" or
// "host:port", which stand for https with DefaultPort.
func ParseURL(s string) (*url.URL, error) {
	if s == "" || len(s) > 512 {
		return nil, fmt.Errorf("%w: want https://host:%s", ErrURL, DefaultPort)
	}
	bare := !strings.Contains(s, "://")
	if bare {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%w: want https://host:%s", ErrURL, DefaultPort)
	}
	switch {
	case u.Scheme != "https":
		return nil, fmt.Errorf("%w: scheme is %q, want https", ErrURL, u.Scheme)
	case u.Hostname() == "" || u.User != nil:
		return nil, fmt.Errorf("%w: want https://host:%s", ErrURL, DefaultPort)
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return nil, fmt.Errorf("%w: it ends with the port", ErrURL)
	}
	u.Path = ""
	if bare && u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), DefaultPort)
	}
	return u, nil
}

// VerifyServer checks that the server at the other end of a TLS connection is
// the hub of a mesh that roots vouch for, and returns the mesh id. The host name
// plays no part; see the package comment.
func VerifyServer(cs tls.ConnectionState, roots *x509.CertPool, now time.Time) (meshID string, err error) {
	if len(cs.PeerCertificates) == 0 {
		return "", fmt.Errorf("%w: no certificate", ErrNotHub)
	}
	leaf := cs.PeerCertificates[0]
	inter := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		inter.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotHub, err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" || leaf.URIs[0].Path != "/hub" {
		return "", fmt.Errorf("%w: certificate does not name a hub", ErrNotHub)
	}
	return leaf.URIs[0].Host, nil
}

// tlsConfig returns the client side of mutual TLS. meshID is the node's own.
func (c *Connector) tlsConfig(cert *tls.Certificate, meshID string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		// The standard check would want a host name; VerifyConnection does the
		// rest of it, and runs in every handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			got, err := VerifyServer(cs, c.cfg.Roots, time.Now())
			if err == nil && got != meshID {
				err = fmt.Errorf("%w: it serves mesh %s", ErrNotHub, got)
			}
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	}
}
