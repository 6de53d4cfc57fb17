// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/ca"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

type provisioning struct {
	*API
	dispatchv1connect.UnimplementedProvisioningServiceHandler
}

// maxFact bounds each of the facts, in bytes; longer ones are cut.
const maxFact = 128

func (p provisioning) Provision(ctx context.Context, req *dispatchv1.ProvisionRequest) (*dispatchv1.ProvisionResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tok, err := identity.ParseToken(req.GetToken())
	if err != nil {
		return nil, wireError(ctx, p.log, "join", store.ErrTokenInvalid)
	}
	// Whose pin and mesh these are, TLS has shown already.
	if tok.Pin != p.cfg.CA.Pin() || tok.MeshID != "" && tok.MeshID != p.cfg.CA.MeshID {
		return nil, fail(connect.CodePermissionDenied, dispatchv1.ErrorReason_ERROR_REASON_TOKEN_FOREIGN, refused,
			"the token belongs to another hub: check the URL")
	}
	// First of all the secret: without it, a caller learns nothing more. It is looked
	// up before the address is: behind one address, those who fail must not keep
	// out those who do not.
	ip := callerOf(ctx).ip
	if err := p.store.CheckSecret(ctx, tok.ID, tok.SecretHash()); err != nil {
		if errors.Is(err, store.ErrTokenInvalid) {
			if limited := p.keys.mayTry(ip); limited != nil {
				return nil, limited
			}
			p.keys.failed(ip)
			p.log.InfoContext(ctx, "join refused", "token_id", tok.ID, "from", ip.String(), "err", err)
		}
		return nil, wireError(ctx, p.log, "join", err)
	}
	j, key, err := p.joinOf(req)
	if err != nil {
		return nil, err
	}
	// A member that comes again costs a certificate and an audit entry each time,
	// which stay. The X25519 key is what it keeps.
	member, err := p.store.Member(ctx, j.X25519)
	if err != nil {
		return nil, wireError(ctx, p.log, "join", err)
	}
	if member && !p.rejoins.allow(identity.PeerID(j.X25519), time.Now()) {
		return nil, tooMany()
	}
	j.TokenID, j.SecretHash, j.Now = tok.ID, tok.SecretHash(), time.Now()
	c, err := p.issue(j.Now)
	if err != nil {
		return nil, wireError(ctx, p.log, "join", err)
	}
	j.Serial, j.NotAfter = c.Serial, c.NotAfter
	n, err := p.store.Enroll(store.WithActor(ctx, "token:"+tok.ID), j)
	if err != nil {
		p.log.InfoContext(ctx, "join refused", "token_id", tok.ID, "err", err)
		return nil, wireError(ctx, p.log, "join", err)
	}
	if n.State == store.Pending {
		p.log.InfoContext(ctx, "node waits for approval", "node", n.ID.Short(), "name", n.Name, "token_id", tok.ID)
		return nil, fail(connect.CodeFailedPrecondition, dispatchv1.ErrorReason_ERROR_REASON_APPROVAL_PENDING,
			"node "+n.Name+" waits for approval", "an administrator approves it with: bauxite-dispatch node approve "+n.Name)
	}
	crt, err := p.cfg.CA.IssueNode(n, c.Serial, j.Now, c.NotAfter)
	if err != nil {
		return nil, wireError(ctx, p.log, "join", err)
	}
	p.log.InfoContext(ctx, "node joined", "node", n.ID.Short(), "name", n.Name, "virtual_ip", n.Virtual4.String(), "token_id", tok.ID)
	m := p.store.Meta()
	psk, epoch := p.cfg.MeshKey()
	return &dispatchv1.ProvisionResponse{
		NodeId: n.ID.String(), Name: n.Name, CaCrt: p.cfg.CA.RootPEM(), NodeCrt: crt,
		VirtualIp: n.Virtual4.String(), VirtualIp6: n.Virtual6.String(),
		MeshCidr: m.CIDR.String(), MeshCidr6: m.CIDR6.String(), MeshId: m.MeshID,
		Psk: psk, PskEpoch: epoch, NodeKey: key, Generation: n.Generation,
	}, nil
}

// issue chooses what is to be signed at now.
func (a *API) issue(now time.Time) (store.Issue, error) {
	if err := a.cfg.CA.CheckClock(now); err != nil {
		return store.Issue{}, err
	}
	serial, err := ca.NewSerial()
	return store.Issue{Serial: serial, NotAfter: now.Add(a.cfg.CertLifetime)}, err
}

// joinOf checks what the machine says of itself. Where the hub is to make the key,
// it is in the answer, as PEM, and nowhere else.
func (p provisioning) joinOf(req *dispatchv1.ProvisionRequest) (j store.Join, key []byte, err error) {
	bad := func(text string) (store.Join, []byte, error) {
		return store.Join{}, nil, fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID, text, "")
	}
	var ed ed25519.PublicKey
	switch {
	case !req.GetGenerateKey():
		ed, err = publicKey(req.GetCsr())
	case len(req.GetCsr()) > 0:
		return bad("csr: is there, though the hub is to make the key")
	default:
		ed, key, err = makeKey()
	}
	if err != nil {
		return bad(err.Error())
	}
	x, err := fips.NewX25519PublicKey(req.GetX25519PublicKey())
	if err != nil {
		return bad("x25519_public_key: want 32 bytes")
	}
	f := store.Facts{
		Hostname: fact(req.GetFacts().GetHostname()), OS: fact(req.GetFacts().GetOs()),
		Arch: fact(req.GetFacts().GetArch()), Version: fact(req.GetFacts().GetVersion()),
	}
	name := req.GetName()
	if name == "" {
		name = chooseName(f.Hostname)
	}
	if !identity.ValidName(name) {
		return store.Join{}, nil, fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_NAME_INVALID,
			"name is not a DNS label", "use lower-case letters, digits and hyphens, at most 63")
	}
	return store.Join{Ed25519: ed, X25519: x.Bytes(), ServerKey: key != nil, Name: name, Facts: f}, key, nil
}

// makeKey makes an Ed25519 key and its PEM.
func makeKey() (ed25519.PublicKey, []byte, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	return pub, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// publicKey returns the key of a certificate request, whose signature proves that
// the sender has the private one. Nothing else of the request is used.
func publicKey(der []byte) (ed25519.PublicKey, error) {
	if len(der) > 4096 {
		return nil, errors.New("csr: too large")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("csr: malformed")
	}
	ed, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("csr: key is not Ed25519")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("csr: bad signature")
	}
	return ed, nil
}

// chooseName makes a node name of a host name; "node" where nothing is left of it.
func chooseName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	name := strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && (unicode.IsLower(r) || unicode.IsDigit(r)) {
			return r
		}
		return '-'
	}, host)
	name = strings.Trim(name[:min(len(name), 63)], "-")
	if name == "" || name == "localhost" {
		return "node"
	}
	return name
}

// fact makes text from outside fit for tables and logs.
func fact(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), maxFact)], "")
}
