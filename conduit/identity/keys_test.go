// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestKeysPEM(t *testing.T) {
	k := newKeys(t)
	ed, x, err := k.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseKeysPEM(ed, x)
	if err != nil {
		t.Fatal(err)
	}
	if !back.Ed25519.Equal(k.Ed25519) || !back.X25519.Equal(k.X25519) || back.ID() != k.ID() {
		t.Error("the keys changed")
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := marshalKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2][]byte{
		"exchanged":  {x, ed},
		"twice ed":   {ed, ed},
		"P-256":      {ed, p256},
		"empty":      {nil, x},
		"no PEM":     {[]byte("key"), x},
		"other type": {[]byte(strings.ReplaceAll(string(ed), "PRIVATE", "PUBLIC")), x},
		"not PKCS 8": {[]byte("-----BEGIN PRIVATE KEY-----\nAQ==\n-----END PRIVATE KEY-----\n"), x},
	} {
		if got, err := ParseKeysPEM(pair[0], pair[1]); err == nil || got != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCSR(t *testing.T) {
	k := newKeys(t)
	der, err := k.CSR()
	if err != nil {
		t.Fatal(err)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil || req.CheckSignature() != nil {
		t.Fatalf("%v, %v", err, req.CheckSignature())
	}
	if !k.Ed25519.Public().(ed25519.PublicKey).Equal(req.PublicKey) {
		t.Error("the request is for another key")
	}
}

func TestLoadKeys(t *testing.T) {
	k := newKeys(t)
	ed, x, err := k.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	edFile, xFile := filepath.Join(dir, "ed.key"), filepath.Join(dir, "x.key")
	for name, data := range map[string][]byte{edFile: ed, xFile: x} {
		if err := WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadKeys(edFile, xFile)
	if err != nil || got.ID() != k.ID() {
		t.Fatalf("LoadKeys = %v", err)
	}
	if _, err := LoadKeys(edFile, filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := LoadKeys(filepath.Join(dir, "none"), xFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		mode os.FileMode
		ok   bool
	}{{0o600, true}, {0o400, true}, {0o640, false}, {0o604, false}, {0o601, false}, {0o666, false}} {
		if runtime.GOOS == "windows" && !tc.ok {
			continue // its files have no such modes
		}
		name := filepath.Join(dir, "secret")
		if err := WriteFile(name, []byte("s3cret"), tc.mode); err != nil {
			t.Fatal(err)
		}
		b, err := ReadSecret(name)
		switch {
		case tc.ok && (err != nil || string(b) != "s3cret"):
			t.Errorf("mode %04o: %q, %v", tc.mode, b, err)
		case !tc.ok && (!errors.Is(err, ErrExposed) || b != nil):
			t.Errorf("mode %04o: %q, %v, want ErrExposed", tc.mode, b, err)
		}
	}
	for size, ok := range map[int]bool{maxSecret: true, maxSecret + 1: false} {
		name := filepath.Join(dir, "big")
		if err := WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := ReadSecret(name); (err == nil) != ok || ok && len(b) != size {
			t.Errorf("%d bytes: %d, %v", size, len(b), err)
		}
	}
	if _, err := ReadSecret(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := ReadSecret(dir); err == nil {
		t.Error("a directory was read")
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	for _, data := range []string{"old", "", "new"} {
		if err := WriteFile(name, []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || string(got) != data {
			t.Errorf("reads back as %q, %v", got, err)
		}
	}
	if fi, err := os.Stat(name); runtime.GOOS != "windows" && (err != nil || fi.Mode().Perm() != 0o640) {
		t.Errorf("mode is %v, %v", fi.Mode(), err)
	}
	// A directory cannot be replaced: the temporary file must be gone afterwards.
	blocked := filepath.Join(dir, "blocked")
	if err := os.MkdirAll(filepath.Join(blocked, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(blocked, []byte("x"), 0o600); err == nil || !strings.Contains(err.Error(), blocked) {
		t.Errorf("WriteFile over a directory = %v", err)
	}
	if err := WriteFile(filepath.Join(dir, "none", "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("WriteFile without a directory = %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left in the directory: %v, %v", left, err)
	}
}
