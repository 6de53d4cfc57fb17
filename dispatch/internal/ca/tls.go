// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// serverLifetime is that of the node port's own certificate. It lives in memory
// and is made anew at half time.
const serverLifetime = 30 * 24 * time.Hour

// ErrPeer is returned for a client certificate that is no node's.
var ErrPeer = errors.New("not a node of this mesh")

// Admit tells whether a node may connect. It is asked in each handshake.
type Admit func(ctx context.Context, id identity.PeerID, serial []byte) error

// ServerTLS returns the configuration of the node port, where machines without a
// certificate may knock to join. hosts are the names and addresses that the port's
// certificate is good for. The chain that it serves includes the root, because a
// joining machine knows the root by its pin only.
func (c *CA) ServerTLS(hosts []string, admit Admit) *tls.Config {
	clients := x509.NewCertPool()
	clients.AddCert(c.Root)
	s := &server{ca: c, hosts: hosts}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      clients,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate(time.Now()) },
		// A resumed session would skip the checks of a full handshake.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			id, err := c.Peer(cs)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			return admit(ctx, id, cs.PeerCertificates[0].SerialNumber.Bytes())
		},
	}
}

// Peer returns the node at the other end of a connection whose certificate chain
// TLS has verified.
func (c *CA) Peer(cs tls.ConnectionState) (identity.PeerID, error) {
	if len(cs.VerifiedChains) == 0 {
		return identity.PeerID{}, fmt.Errorf("%w: no verified certificate", ErrPeer)
	}
	for _, chain := range cs.VerifiedChains {
		if len(chain) != 3 || !chain[2].Equal(c.Root) {
			return identity.PeerID{}, fmt.Errorf("%w: certificate is not from this mesh's authority", ErrPeer)
		}
	}
	leaf := cs.PeerCertificates[0]
	if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		return identity.PeerID{}, fmt.Errorf("%w: certificate is not for clients", ErrPeer)
	}
	n, err := identity.FromX509(leaf)
	if err != nil {
		return identity.PeerID{}, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	if n.MeshID != c.MeshID {
		return identity.PeerID{}, fmt.Errorf("%w: certificate names another mesh", ErrPeer)
	}
	return n.ID, nil
}

type server struct {
	ca    *CA
	hosts []string

	mu   sync.Mutex // guards cert
	cert *tls.Certificate
}

func (s *server) certificate(now time.Time) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	current := s.cert != nil && bytes.Equal(s.cert.Certificate[1], s.ca.Intermediate().Raw)
	if current && now.Before(s.cert.Leaf.NotAfter.Add(-serverLifetime/2)) {
		return s.cert, nil
	}
	c, err := s.ca.issueServer(s.hosts, now)
	if err != nil {
		return nil, err
	}
	s.cert = c
	return c, nil
}

// HubURI is the URI name in the certificate of the node port. Only the hub's
// certificate carries it, together with the use for servers.
func (c *CA) HubURI() *url.URL { return &url.URL{Scheme: "spiffe", Host: c.MeshID, Path: "/hub"} }

func (c *CA) issueServer(hosts []string, now time.Time) (*tls.Certificate, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate server key: %w", err)
	}
	serial, err := NewSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: "bauxite-dispatch"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(serverLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		URIs: []*url.URL{c.HubURI()},
	}
	for _, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil {
			t.IPAddresses = append(t.IPAddresses, net.IP(a.Unmap().WithZone("").AsSlice()))
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	i := c.issuer.Load()
	der, err := x509.CreateCertificate(rand.Reader, t, i.cert, pub, i.key)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, i.cert.Raw, c.Root.Raw}, PrivateKey: key, Leaf: leaf}, nil
}
