// SPDX-License-Identifier: Apache-2.0

// Package wycheproof hands tests the vectors of Project Wycheproof. They are read
// from the module cache, into which the go command downloads them, and imported by
// nothing, so that no go.mod names them. Only tests use it.
package wycheproof

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The module, and what its contents must hash to, as go.sum would have it.
const (
	module = "github.com/c2sp/wycheproof@v0.0.0-20260105152342-fca0d3ba9f12"
	sum    = "h1:C34LW7dhWgjAaAOdNB8z2UCyJsXDjC6UTILljHuqOlI="
)

// Hex is bytes that JSON has as hexadecimal text.
type Hex []byte

// UnmarshalText reads hexadecimal text.
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// Test is a vector of any of the files that Load is used for. Fields that a file
// does not have are empty.
type Test struct {
	ID      int    `json:"tcId"`
	Comment string `json:"comment"`
	Result  string `json:"result"` // valid, invalid or acceptable

	Key Hex `json:"key"` // AEAD
	IV  Hex `json:"iv"`
	AAD Hex `json:"aad"`
	Msg Hex `json:"msg"`
	CT  Hex `json:"ct"`
	Tag Hex `json:"tag"`

	Sig Hex `json:"sig"` // Ed25519, with Msg

	Public  Hex `json:"public"` // X25519
	Private Hex `json:"private"`
	Shared  Hex `json:"shared"`

	IKM  Hex `json:"ikm"` // HKDF
	Salt Hex `json:"salt"`
	Info Hex `json:"info"`
	Size int `json:"size"`
	OKM  Hex `json:"okm"`

	Seed  Hex `json:"seed"` // ML-KEM
	M     Hex `json:"m"`
	EK    Hex `json:"ek"`
	C     Hex `json:"c"`
	KEMSS Hex `json:"K"`
}

// Group is tests with common parameters. Sizes are in bits.
type Group struct {
	KeySize   int `json:"keySize"`
	IVSize    int `json:"ivSize"`
	PublicKey struct {
		PK Hex `json:"pk"`
	} `json:"publicKey"`
	Tests []Test `json:"tests"`
}

// Load reads a file of testvectors_v1, named without its "_test.json". Where the
// vectors cannot be had, it skips the test, and fails it where CI=true.
func Load(tb testing.TB, name string) []Group {
	tb.Helper()
	dir, err := fetch()
	if err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "testvectors_v1", name+"_test.json"))
	if err != nil {
		tb.Fatal(err)
	}
	var file struct {
		Groups []Group `json:"testGroups"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		tb.Fatalf("parse %s: %v", name, err)
	}
	return file.Groups
}

// Count counts the tests that were run, so that one that runs none fails.
type Count struct{ Valid, Invalid, Acceptable int }

// Add counts t.
func (c *Count) Add(t *Test) {
	switch t.Result {
	case "valid":
		c.Valid++
	case "invalid":
		c.Invalid++
	default:
		c.Acceptable++
	}
}

// Want fails the test unless exactly these were run: the module is pinned.
func (c Count) Want(tb testing.TB, valid, invalid, acceptable int) {
	tb.Helper()
	if want := (Count{valid, invalid, acceptable}); c != want {
		tb.Errorf("ran %+v, want %+v", c, want)
	}
}

var fetch = sync.OnceValues(func() (string, error) {
	// Far from every go.mod, so that it changes none.
	cmd := exec.CommandContext(context.Background(), "go", "mod", "download", "-json", module)
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "GO111MODULE=on")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, runErr := cmd.Output()
	var m struct{ Dir, Sum, Error string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", fmt.Errorf("download %s: %w: %s", module, runErr, stderr.String())
	}
	if m.Error != "" || m.Dir == "" {
		return "", fmt.Errorf("download %s: %s", module, m.Error)
	}
	if m.Sum != sum {
		return "", fmt.Errorf("download %s: its hash is %s, want %s", module, m.Sum, sum)
	}
	return m.Dir, nil
})
