// SPDX-License-Identifier: Apache-2.0

package home

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestStorePSK(t *testing.T) {
	dir := t.TempDir()
	want := bytes.Repeat([]byte{3}, 32)
	if err := StorePSK(dir, want, 9); err != nil {
		t.Fatal(err)
	}
	psk, epoch, err := loadPSK(filepath.Join(dir, PSKFile), 1)
	if err != nil || !bytes.Equal(psk, want) || epoch != 9 {
		t.Errorf("loadPSK = %x, %d, %v", psk, epoch, err)
	}
}

func FuzzParsePSK(f *testing.F) {
	hexKey := strings.Repeat("0a", 32)
	for _, s := range []string{hexKey, hexKey + "\nepoch 7\n", hexKey + " epoch 256", hexKey + " x 1", "", strings.Repeat("A", 43) + "=", strings.Repeat("x", 32)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		psk, epoch, err := parsePSK(raw)
		switch {
		case err != nil && !errors.Is(err, ErrPSK):
			t.Errorf("error %v", err)
		case err == nil && len(psk) != 32:
			t.Errorf("key of %d bytes", len(psk))
		case epoch != nil && len(raw) == 32:
			t.Error("raw key with an epoch")
		}
	})
}
