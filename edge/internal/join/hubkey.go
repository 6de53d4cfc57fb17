// SPDX-License-Identifier: Apache-2.0

package join

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/config"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
)

// The plain flow: the hub makes the Ed25519 key. It has then been in two places,
// so the node replaces it before it does anything else, and only then is there an
// identity. What came of it so far is in the home, for the next join or run.

// Resume finishes a join in dir that came halfway, which home.HalfJoined tells.
func Resume(ctx context.Context, dir string) error {
	st, err := home.Resume(dir)
	if err != nil {
		return err
	}
	half, err := st.Halfway()
	if err == nil && half == nil {
		err = fmt.Errorf("%w: nothing to continue", home.ErrNotJoined)
	}
	if err == nil {
		_, err = rekey(ctx, st, half)
	}
	return errors.Join(err, st.Close(err != nil && !gone(err)))
}

// gone reports whether err means that the halfway identity has no future.
func gone(err error) bool { return errors.Is(err, ErrRefused) || errors.Is(err, ErrAnswer) }

// parseHubKey reads the key that the hub made.
func parseHubKey(text []byte) (ed25519.PrivateKey, error) {
	b, rest := pem.Decode(text)
	if b == nil || b.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, fmt.Errorf("%w: node.key is no PEM key", ErrAnswer)
	}
	k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: node.key: %w", ErrAnswer, err)
	}
	ed, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: node.key is a %T", ErrAnswer, k)
	}
	return ed, nil
}

// halfway stores an answer with a key of the hub.
func halfway(st *home.Staging, f home.Files, key []byte) (*home.Halfway, error) {
	h := &home.Halfway{
		CA: f.CA, Certificate: f.Certificate, Key: key, PSK: f.PSK, Config: f.Config,
		Generation: f.State.Generation, Attempt: make([]byte, 16),
	}
	_, _ = rand.Read(h.Attempt) // never fails since Go 1.24
	return h, st.SetHalfway(h)
}

// rekey replaces the key that the hub made by the node's own and puts the identity
// in force.
func rekey(ctx context.Context, st *home.Staging, half *home.Halfway) (*Result, error) {
	cfg, err := config.Parse(half.Config)
	if err != nil {
		return nil, err
	}
	old, link, roots, err := linkOf(half, cfg)
	if err != nil {
		return nil, err
	}
	chain, generation, err := link.Rekey(ctx, st.Keys)
	if err != nil && ctx.Err() == nil {
		// The hub may have done so before, and its answer was lost: then the old
		// certificate is denied, and the new keys can prove themselves.
		var rerr error
		chain, generation, rerr = link.Recover(ctx, hub.Recovery{
			Keys: st.Keys, MeshID: cfg.Node.MeshID, Generation: half.Generation + 1, Attempt: [16]byte(half.Attempt),
		})
		if rerr == nil {
			err = nil
		} else if final(err) || errors.Is(rerr, hub.ErrRevoked) {
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInterrupted, err)
	}
	cert, err := identity.ParseCertificate(chain)
	if err == nil {
		err = cert.Verify(roots, time.Now())
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: node.crt: %w", ErrAnswer, err)
	case cert.ID != st.Keys.ID():
		return nil, fmt.Errorf("%w: node.crt is for other keys than this machine's", ErrAnswer)
	case cert.Name != old.Name || cert.MeshID != old.MeshID || cert.Virtual4 != old.Virtual4 || cert.Virtual6 != old.Virtual6:
		return nil, fmt.Errorf("%w: node.crt has another name or address than before", ErrAnswer)
	}
	cfg.Node.ID = cert.ID
	text, err := cfg.Marshal()
	if err != nil {
		return nil, err
	}
	return &Result{Config: cfg, Certificate: cert}, st.Commit(home.Files{
		CA: half.CA, Certificate: identity.MarshalChainPEM(chain), PSK: half.PSK, Config: text,
		State: home.State{Generation: generation},
	})
}

// linkOf returns a link to the hub with the identity that the hub made.
func linkOf(half *home.Halfway, cfg *config.Config) (*identity.Certificate, *hub.Connector, *x509.CertPool, error) {
	key, err := parseHubKey(half.Key)
	if err != nil {
		return nil, nil, nil, err
	}
	chain, err := identity.ParseChainPEM(half.Certificate)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", home.ErrIdentity, err)
	}
	cert, err := identity.ParseCertificate(chain)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", home.ErrIdentity, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(half.CA) {
		return nil, nil, nil, fmt.Errorf("%w: no root", home.ErrIdentity)
	}
	proxy, err := config.ParseProxy(cfg.Hub.Proxy)
	if err != nil {
		return nil, nil, nil, err
	}
	link, err := hub.New(hub.Config{
		URL: cfg.Hub.URL, Roots: roots, Proxy: proxy,
		Certificate: func() (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: chain, PrivateKey: key}, nil
		},
	})
	return cert, link, roots, err
}

// final reports whether the hub will not replace the key whatever happens.
func final(err error) bool {
	if errors.Is(err, hub.ErrRevoked) {
		return true
	}
	code := connect.CodeOf(err)
	return connect.IsWireError(err) && (code == connect.CodePermissionDenied || code == connect.CodeInvalidArgument)
}
