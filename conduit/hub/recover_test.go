// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

func connector(t *testing.T, h *hubtest.Hub, cert *tls.Certificate) *Connector {
	t.Helper()
	c, err := New(Config{URL: h.URL, Roots: h.Roots(), Certificate: func() (*tls.Certificate, error) { return cert, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRecover(t *testing.T) {
	h := hubtest.New(t)
	keys, cert := h.Enroll("a")
	c := connector(t, h, cert)
	r := Recovery{Keys: keys, MeshID: h.MeshID, Attempt: [16]byte{1}}
	chain, generation, err := c.Recover(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if is, err := identity.ParseCertificate(chain); err != nil || is.ID != keys.ID() || generation != 1 {
		t.Errorf("recovered %+v, generation %d, %v", is, generation, err)
	}
	// The same attempt again is the same node, another one with that generation is
	// a copy.
	if _, generation, err = c.Recover(t.Context(), r); err != nil || generation != 1 {
		t.Errorf("again: generation %d, %v", generation, err)
	}
	r.Attempt[0] = 2
	if _, _, err = c.Recover(t.Context(), r); !errors.Is(err, ErrCloneSuspected) {
		t.Errorf("copy: %v, want ErrCloneSuspected", err)
	}
	stranger, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = c.Recover(t.Context(), Recovery{Keys: stranger, MeshID: h.MeshID}); !errors.Is(err, ErrRecoveryRefused) {
		t.Errorf("stranger: %v, want ErrRecoveryRefused", err)
	}
	for why, want := range map[dispatchv1.ErrorReason]error{
		dispatchv1.ErrorReason_ERROR_REASON_NODE_REVOKED:       ErrRevoked,
		dispatchv1.ErrorReason_ERROR_REASON_RECOVERY_EXHAUSTED: ErrRecoveryExhausted,
		dispatchv1.ErrorReason_ERROR_REASON_CHALLENGE_INVALID:  ErrChallenge,
	} {
		h.Refuse(keys.ID(), why)
		if _, _, err = c.Recover(t.Context(), r); !errors.Is(err, want) {
			t.Errorf("%v: %v, want %v", why, err, want)
		}
	}
	if _, _, err := c.Recover(t.Context(), Recovery{Keys: keys, MeshID: "othermesh"}); !errors.Is(err, ErrNotHub) {
		t.Errorf("hub of another mesh: %v, want ErrNotHub", err)
	}
}

func TestRekeyAndLeave(t *testing.T) {
	h := hubtest.New(t)
	old, cert := h.Enroll("a")
	c := connector(t, h, cert)
	keys, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	chain, generation, err := c.Rekey(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	if is, err := identity.ParseCertificate(chain); err != nil || is.ID != keys.ID() || is.ID == old.ID() || is.Name != "a" || generation != 1 {
		t.Errorf("new keys: %+v, generation %d, %v", is, generation, err)
	}
	if _, _, err := c.Rekey(t.Context(), keys); err == nil {
		t.Error("the old certificate was good twice")
	}
	c = connector(t, h, &tls.Certificate{Certificate: chain, PrivateKey: keys.Ed25519})
	if err := c.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Recover(t.Context(), Recovery{Keys: keys, MeshID: h.MeshID, Generation: 1}); !errors.Is(err, ErrRecoveryRefused) {
		t.Errorf("recover after leaving: %v", err)
	}
}

// TestPlain: what a person is told of a refused certificate names it.
func TestPlain(t *testing.T) {
	alert := connect.NewError(connect.CodeUnavailable, errors.New("remote error: tls: bad certificate"))
	if got := plain(alert).Error(); !strings.HasPrefix(got, "the hub refuses this node's certificate") {
		t.Errorf("plain = %q", got)
	}
	if got := plain(connect.NewError(connect.CodeUnavailable, ErrDown)); !errors.Is(got, ErrDown) || got.Error() != ErrDown.Error() {
		t.Errorf("plain = %v, want %v", got, ErrDown)
	}
	if plain(nil) != nil {
		t.Error("plain of nothing is something")
	}
}
