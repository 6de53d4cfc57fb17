// SPDX-License-Identifier: Apache-2.0

package home

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestState(t *testing.T) {
	dir := t.TempDir()
	if s, err := LoadState(dir); err != nil || s.Generation != 0 || s.Attempt != nil {
		t.Errorf("state of an old home = %+v, %v", s, err)
	}
	if err := os.Mkdir(filepath.Join(dir, CertsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	want := State{Generation: 7, Attempt: bytes.Repeat([]byte{9}, 16)}
	if err := want.Store(dir); err != nil {
		t.Fatal(err)
	}
	if s, err := LoadState(dir); err != nil || s.Generation != 7 || !bytes.Equal(s.Attempt, want.Attempt) {
		t.Errorf("state = %+v, %v, want %+v", s, err, want)
	}
}

func FuzzParseState(f *testing.F) {
	for _, s := range []string{`{"generation":3}`, `{"generation":1,"recovery_id":"AAAAAAAAAAAAAAAAAAAAAA=="}`, `{"recovery_id":"AA=="}`, ``, `[]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseState(text)
		if err != nil && !errors.Is(err, ErrIdentity) {
			t.Errorf("error %v", err)
		}
		if n := len(s.Attempt); n != 0 && n != 16 {
			t.Errorf("attempt of %d bytes", n)
		}
	})
}

func FuzzParseHalfway(f *testing.F) {
	for _, s := range []string{`{"recovery_id":"AAAAAAAAAAAAAAAAAAAAAA==","generation":2}`, `{}`, `[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		switch h, err := parseHalfway(text); {
		case err != nil && !errors.Is(err, ErrIdentity):
			t.Errorf("error %v", err)
		case err == nil && len(h.Attempt) != 16:
			t.Errorf("attempt of %d bytes", len(h.Attempt))
		}
	})
}
