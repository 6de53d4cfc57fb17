// SPDX-License-Identifier: Apache-2.0

package home

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// ReadPSK reads a pre-shared key from a private file: 32 raw bytes, or their 64
// hexadecimal or 44 base64 characters, after which a line "epoch N" may follow.
func ReadPSK(name string) ([]byte, error) {
	psk, _, err := loadPSK(name, 0)
	return psk, err
}

// loadPSK also returns the epoch that the file names, else epoch.
func loadPSK(name string, epoch uint8) ([]byte, uint8, error) {
	raw, err := identity.ReadSecret(name)
	if err != nil {
		return nil, 0, fmt.Errorf("read pre-shared key: %w", err)
	}
	psk, named, err := parsePSK(raw)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %s: want 32 bytes, as they are or in hexadecimal or base64", err, name)
	}
	if named != nil {
		epoch = *named
	}
	return psk, epoch, nil
}

func parsePSK(raw []byte) (psk []byte, epoch *uint8, err error) {
	if len(raw) == 32 {
		return raw, nil, nil
	}
	words := strings.Fields(string(raw))
	switch {
	case len(words) == 1:
	case len(words) == 3 && words[1] == "epoch":
		n, err := strconv.ParseUint(words[2], 10, 8)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: bad epoch", ErrPSK)
		}
		e := uint8(n)
		epoch = &e
	default:
		return nil, nil, ErrPSK
	}
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString} {
		if b, err := decode(words[0]); err == nil && len(b) == 32 {
			return b, epoch, nil
		}
	}
	return nil, nil, ErrPSK
}

func formatPSK(psk []byte) []byte { return []byte(hex.EncodeToString(psk) + "\n") }

// StorePSK replaces the pre-shared key in dir by that of another epoch. Key and
// epoch are one file, so that a crash cannot part them.
func StorePSK(dir string, psk []byte, epoch uint8) error {
	text := fmt.Appendf(formatPSK(psk), "epoch %d\n", epoch)
	if err := identity.WriteFile(filepath.Join(dir, PSKFile), text, 0o600); err != nil {
		return fmt.Errorf("store pre-shared key: %w", err)
	}
	return nil
}
