// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"

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
	// First of all the secret: without it, a caller learns nothing more.
	if err := p.store.CheckSecret(ctx, tok.ID, tok.SecretHash()); err != nil {
		return nil, wireError(ctx, p.log, "join", err)
	}
	j, err := joinOf(req)
	if err != nil {
		return nil, err
	}
	j.TokenID, j.SecretHash = tok.ID, tok.SecretHash()
	j.Now = time.Now()
	j.NotAfter = j.Now.Add(p.cfg.CertLifetime)
	if j.Serial, err = ca.NewSerial(); err != nil {
		return nil, wireError(ctx, p.log, "join", err)
	}
	n, err := p.store.Enroll(ctx, j)
	if err != nil {
		p.log.InfoContext(ctx, "join refused", "token_id", tok.ID, "err", err)
		return nil, wireError(ctx, p.log, "join", err)
	}
	crt, err := p.cfg.CA.IssueNode(n, j.Serial, j.Now, j.NotAfter)
	if err != nil {
		return nil, wireError(ctx, p.log, "join", err)
	}
	p.log.InfoContext(ctx, "node joined", "node", n.ID.Short(), "name", n.Name, "virtual_ip", n.Virtual4.String(), "token_id", tok.ID)
	m := p.store.Meta()
	return &dispatchv1.ProvisionResponse{
		NodeId: n.ID.String(), Name: n.Name, CaCrt: p.cfg.CA.RootPEM(), NodeCrt: crt,
		VirtualIp: n.Virtual4.String(), VirtualIp6: n.Virtual6.String(),
		MeshCidr: m.CIDR.String(), MeshCidr6: m.CIDR6.String(), MeshId: m.MeshID,
		Psk: p.cfg.PSK, PskEpoch: p.cfg.PSKEpoch,
	}, nil
}

// joinOf checks what the machine says of itself.
func joinOf(req *dispatchv1.ProvisionRequest) (store.Join, error) {
	bad := func(text string) (store.Join, error) {
		return store.Join{}, fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_CSR_INVALID, text, "")
	}
	ed, err := publicKey(req.GetCsr())
	if err != nil {
		return bad(err.Error())
	}
	x, err := ecdh.X25519().NewPublicKey(req.GetX25519PublicKey())
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
		return store.Join{}, fail(connect.CodeInvalidArgument, dispatchv1.ErrorReason_ERROR_REASON_NAME_INVALID,
			"name is not a DNS label", "use lower-case letters, digits and hyphens, at most 63")
	}
	return store.Join{Ed25519: ed, X25519: x.Bytes(), Name: name, Facts: f}, nil
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
