// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// TestDenied shuts a peer out in each of the three ways while it talks: the
// session ends at once, and no handshake brings it back.
func TestDenied(t *testing.T) {
	for _, tc := range []struct {
		name   string
		denial func(*identity.Certificate) conduit.Denial
	}{
		{"Node", func(c *identity.Certificate) conduit.Denial { return conduit.Denial{ID: c.ID} }},
		{"Key", func(c *identity.Certificate) conduit.Denial { return conduit.Denial{Ed25519: c.Ed25519} }},
		{"Serial", func(c *identity.Certificate) conduit.Denial {
			return conduit.Denial{Serial: append([]byte{0}, c.Serial.Bytes()...), Until: time.Now().Add(time.Hour)}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := conduittest.NewMesh(t, 3)
			exchange(t, m, 0, 1, "before")
			exchange(t, m, 0, 2, "before")
			m.Hub.Deny(tc.denial(m.Certificate(1)))
			start := time.Now()
			eventually(t, "end of the session", func() bool {
				p := status(t, m.Node(0)).Peers[0]
				return p.Name == "node1" && p.Path.Type == "none" && p.Path.Reason != ""
			})
			if d := time.Since(start); d > time.Second {
				t.Errorf("session ended after %v, want 1 s at most", d)
			}
			// Both directions: one initiates, the other knocks.
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := m.Node(0).Connect(ctx, m.Certificate(1).ID, nil); err == nil {
				t.Error("connected to a peer that is shut out")
			} else if tc.name != "Serial" && !errors.Is(err, conduit.ErrDenied) {
				t.Errorf("Connect = %v, want ErrDenied", err)
			}
			eventually(t, "goodbye at the other end", func() bool { return status(t, m.Node(1)).Peers[0].Path.Type == "none" })
			if err := m.Node(1).Connect(ctx, m.Certificate(0).ID, nil); err == nil {
				t.Error("a peer that is shut out connected")
			}
			if p := status(t, m.Node(0)).Peers[0]; p.Path.Type != "none" {
				t.Errorf("peer = %+v", p)
			}
			exchange(t, m, 0, 2, "others go on")
		})
	}
}

// TestDenialEnds tells that a denial of a certificate leaves a newer one alone, and
// that one that ran out is forgotten.
func TestDenialEnds(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	old := m.Certificate(1)
	m.Hub.Deny(conduit.Denial{ID: old.ID, Until: time.Now().Add(-time.Second)})
	m.Hub.Deny(conduit.Denial{Serial: old.Serial.Bytes()})
	c, err := m.CA.Issue(m.Keys(1), old.Name, old.Virtual4, old.Virtual6, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Node(1).SetCertificate(c); err != nil {
		t.Fatal(err)
	}
	exchange(t, m, 0, 1, "with the new one")
}
