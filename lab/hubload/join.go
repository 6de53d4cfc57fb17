// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	procProvision   = "/bauxite.dispatch.v1.ProvisioningService/Provision"
	procWatch       = "/bauxite.dispatch.v1.TopologyService/WatchTopology"
	procSignal      = "/bauxite.dispatch.v1.SignalingService/ExchangeCandidates"
	procPolicy      = "/bauxite.dispatch.v1.PolicyService/GetPolicy"
	procCreateToken = "/bauxite.dispatch.v1.FleetService/CreateToken"
	procRevokeNode  = "/bauxite.dispatch.v1.FleetService/RevokeNode"
	procUpdateNode  = "/bauxite.dispatch.v1.FleetService/UpdateNode"

	dialTimeout = 20 * time.Second
	// localAddrs is how many loopback addresses nodes dial from: ports of closed
	// connections stay taken for a minute.
	localAddrs = 200
)

var errPin = errors.New("server does not have the pinned root")

// localAddr is where node i dials from.
func localAddr(i int) *net.TCPAddr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%localAddrs))}
}

// dial opens a TLS connection, which the caller reads in its own goroutine.
func dial(ctx context.Context, addr string, local int, cfg *tls.Config) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := net.Dialer{LocalAddr: localAddr(local), KeepAlive: -1}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	nc := tls.Client(raw, cfg)
	if err := nc.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	c, err := newConn(nc, addr)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return c, nil
}

// verifier checks hubs against a root. A chain that it has seen is not checked
// again: ten thousand nodes in one process would spend more on that than the hub
// spends on them.
type verifier struct {
	root *x509.Certificate

	mu   sync.Mutex // guards seen
	seen [32]byte   // hash of the leaf
}

func (v *verifier) check(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errPin
	}
	leaf := cs.PeerCertificates[0]
	h := sha256.Sum256(leaf.Raw)
	v.mu.Lock()
	defer v.mu.Unlock()
	if h == v.seen {
		return nil
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(v.root)
	for _, c := range cs.PeerCertificates[1:] {
		inter.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return err
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].Path != "/hub" {
		return errors.New("certificate does not name a hub")
	}
	v.seen = h
	return nil
}

func (v *verifier) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // the host name plays no part; check does the rest
		VerifyConnection:   v.check,
	}
}

// tokenPin returns the root's pin of a token "bxt1.<id>.<secret>.<pin>[...]".
func tokenPin(token string) (string, error) {
	f := strings.Split(token, ".")
	if len(f) < 4 || f[0] != "bxt1" || len(f[3]) != 43 {
		return "", errors.New("malformed join token")
	}
	return f[3], nil
}

// pinnedRoot finds the root that a token pins, by connecting without a
// certificate.
func pinnedRoot(ctx context.Context, addr, token string) (*x509.Certificate, error) {
	pin, err := tokenPin(token)
	if err != nil {
		return nil, err
	}
	var root *x509.Certificate
	c, err := dial(ctx, addr, 0, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				h := sha256.Sum256(c.RawSubjectPublicKeyInfo)
				if base64.RawURLEncoding.EncodeToString(h[:]) == pin {
					root = c
					return (&verifier{root: c}).check(cs)
				}
			}
			return errPin
		},
	})
	if err != nil {
		return nil, fmt.Errorf("find root of the mesh: %w", err)
	}
	c.close()
	return root, nil
}

// Identity is an enrolled node, as its files would hold it.
type Identity struct {
	ID    string
	Name  string
	IP    string
	Site  int
	Key   ed25519.PrivateKey
	Chain [][]byte // DER, the node's first
}

// applicant is a machine with its keys and its request ready.
type applicant struct {
	site int
	key  ed25519.PrivateKey
	req  *dispatchv1.ProvisionRequest
}

func newApplicant(i, site int) (*applicant, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	_ = pub
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("create certificate request: %w", err)
	}
	name := fmt.Sprintf("robot-%05d", i)
	return &applicant{site: site, key: key, req: &dispatchv1.ProvisionRequest{
		Csr: csr, X25519PublicKey: x.PublicKey().Bytes(), Name: name,
		Facts: &dispatchv1.NodeFacts{Hostname: name, Os: "linux", Arch: "arm64", Version: "hubload"},
	}}, nil
}

// join redeems token over a connection of its own.
func (a *applicant) join(ctx context.Context, addr string, v *verifier, token string, local int) (*Identity, error) {
	a.req.Token = token
	b, err := proto.Marshal(a.req)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	c, err := dial(ctx, addr, local, v.config())
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	res := &dispatchv1.ProvisionResponse{}
	var done bool
	var failed error
	err = c.call(procProvision, b, func(b []byte, err error) {
		if done, failed = true, err; err == nil {
			failed = proto.Unmarshal(b, res)
		}
	})
	if err == nil {
		err = c.read(func() bool { return done })
	}
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	id := &Identity{ID: res.GetNodeId(), Name: res.GetName(), IP: res.GetVirtualIp(), Site: a.site, Key: a.key}
	for rest := res.GetNodeCrt(); ; {
		var p *pem.Block
		if p, rest = pem.Decode(rest); p == nil {
			break
		}
		id.Chain = append(id.Chain, p.Bytes)
	}
	if id.ID == "" || len(id.Chain) == 0 {
		return nil, errors.New("join: the answer has no certificate")
	}
	return id, nil
}
