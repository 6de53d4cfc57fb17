// SPDX-License-Identifier: Apache-2.0

package fips

import (
	"crypto/ecdh"
	"crypto/fips140"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		build, enabled bool
		version        string
		want           string // part of the error, or none
	}{
		"plain":                       {false, false, "latest", ""},
		"plain with mode on":          {false, true, "latest", ""},
		"certified, on":               {true, true, "v1.0.0", ""},
		"certified, off":              {true, false, "v1.0.0", "FIPS mode is off"},
		"tag without module":          {true, false, "latest", `linked with module "latest", want "v1.0.0"`},
		"tag, mode on by environment": {true, true, "latest", `linked with module "latest"`},
		"newer module":                {true, true, "v1.26.0", `linked with module "v1.26.0"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := check(tc.build, tc.enabled, tc.version)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrModule) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want ErrModule with %q", err, tc.want)
			}
		})
	}
}

// What the test binary itself is must pass too: it is built as the programs are.
func TestCheckOfThisBuild(t *testing.T) {
	if err := Check(); err != nil {
		t.Error(err)
	}
	if Build && !Only() {
		t.Error("a FIPS build lets ciphers pass that are not approved")
	}
	t.Logf("build %v, enabled %v, enforced %v, module %s", Build, fips140.Enabled(), Enforced(), fips140.Version())
}

func TestX25519(t *testing.T) {
	a, err := GenerateX25519()
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewX25519PrivateKey(a.Bytes())
	if err != nil || !a.Equal(b) {
		t.Fatalf("read back: %v", err)
	}
	p, err := NewX25519PublicKey(a.PublicKey().Bytes())
	if err != nil || !p.Equal(b.PublicKey()) {
		t.Fatalf("read public key: %v", err)
	}
	if _, err := a.ECDH(p); err != nil {
		t.Error(err)
	}
	if _, err := NewX25519PublicKey(make([]byte, 31)); err == nil {
		t.Error("a public key of 31 bytes was taken")
	}
	// The positive control of enforcement, and the end of the island.
	if _, err := ecdh.X25519().GenerateKey(rand.Reader); (err != nil) != Enforced() {
		t.Errorf("bare X25519 with enforcement %v: %v", Enforced(), err)
	}
}
