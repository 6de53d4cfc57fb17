// SPDX-License-Identifier: Apache-2.0

package join

import (
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// installed checks that the home holds a whole identity and nothing of the key that
// the hub made.
func installed(t *testing.T, h *hubtest.Hub, dir string, hubKey []byte, generation uint64) {
	t.Helper()
	n, err := home.Load(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if n.Config.Node.ID != n.Certificate.ID || n.Certificate.Name != "robot7" || len(n.PSK) != 32 {
		t.Errorf("installed %+v, %+v", n.Config.Node, n.Certificate)
	}
	if k, err := parseHubKey(hubKey); err != nil || k.Equal(n.Keys.Ed25519) {
		t.Errorf("the key is the hub's: %v", err)
	}
	if st, err := home.LoadState(dir); err != nil || st.Generation != generation || h.Generation(n.Certificate.ID) != generation {
		t.Errorf("generation %d, %v; the hub counts %d", st.Generation, err, h.Generation(n.Certificate.ID))
	}
	if err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(name)
		if err == nil && string(text) == string(hubKey) || d.Name() == "halfway.json" {
			t.Errorf("%s is left", name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestHubKey(t *testing.T) {
	for _, tc := range []struct {
		name       string
		lose       int
		generation uint64
		again      func(cfg Config) error
	}{
		{"Plain", 0, 1, nil},
		// The hub replaced the key, and its answer was lost: the new one recovers.
		{"AnswerLost", 1, 2, nil},
		{"ThenJoin", 2, 2, func(cfg Config) error { _, err := Run(t.Context(), cfg); return err }},
		{"ThenRun", 2, 2, func(cfg Config) error {
			if !home.HalfJoined(cfg.Home) || home.Joined(cfg.Home) {
				t.Error("home does not tell that the join came halfway")
			}
			return Resume(t.Context(), cfg.Home)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := hubtest.New(t)
			h.Lose(tc.lose)
			var key []byte
			h.Tamper(func(r *dispatchv1.ProvisionResponse) { key = r.GetNodeKey() })
			cfg := Config{Token: h.Token(1, time.Hour).String(), HubURL: h.URL, Home: t.TempDir(), Name: "robot7", HubKey: true}
			_, err := Run(t.Context(), cfg)
			if tc.again != nil {
				if !errors.Is(err, ErrInterrupted) {
					t.Fatalf("Run = %v, want ErrInterrupted", err)
				}
				if _, err := home.Load(cfg.Home, time.Now()); !errors.Is(err, home.ErrNotJoined) {
					t.Errorf("Load = %v: there is an identity before the key is replaced", err)
				}
				err = tc.again(cfg)
			}
			if err != nil {
				t.Fatal(err)
			}
			installed(t, h, cfg.Home, key, tc.generation)
			if n := h.Redeemed(); n != 1 {
				t.Errorf("redeemed %d times", n)
			}
		})
	}
}

// TestHubKeyRefused: a key is neither taken where none was asked for, nor missed.
func TestHubKeyRefused(t *testing.T) {
	h := hubtest.New(t)
	for name, f := range map[string]func(*dispatchv1.ProvisionResponse){
		"None":    func(r *dispatchv1.ProvisionResponse) { r.NodeKey = nil },
		"Garbage": func(r *dispatchv1.ProvisionResponse) { r.NodeKey = []byte("-----BEGIN") },
		"Another": func(r *dispatchv1.ProvisionResponse) {
			r.NodeKey = append([]byte{}, r.GetNodeKey()...)
			r.NodeKey[len(r.NodeKey)/2] ^= 1
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.Tamper(f)
			refused(t, Config{Token: h.Token(1, time.Hour).String(), HubURL: h.URL, HubKey: true}, ErrAnswer)
		})
	}
}

func FuzzParseHubKey(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := parseHubKey(text); err == nil && len(k) != ed25519.PrivateKeySize || err != nil && !errors.Is(err, ErrAnswer) {
			t.Errorf("parseHubKey = %d bytes, %v", len(k), err)
		}
	})
}
