// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"slices"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// Suites returns the cipher suites of a setting, in order of preference:
//
//   - "chacha20poly1305", also "": AES-256-GCM only where the peer insists on it
//   - "auto": AES-256-GCM where both ends prefer it, which they do with hardware
//     for it
//   - "aes256gcm": nothing else
//
// AES-256-GCM with a random nonce stands last in each, for peers that are FIPS
// builds. Where only approved ciphers may carry data it is SuiteFIPS for all but
// "chacha20poly1305", which is an error then.
func Suites(cipher string, hardwareAES bool) ([]wire.Suite, error) {
	switch cipher {
	case "", "auto", "chacha20poly1305", "aes256gcm":
	default:
		return nil, fmt.Errorf("cipher %q: want chacha20poly1305, aes256gcm or auto", cipher)
	}
	switch {
	case fips.Only() && cipher == "chacha20poly1305":
		return nil, fmt.Errorf("cipher %q is not approved in FIPS mode", cipher)
	case fips.Only():
		return []wire.Suite{wire.SuiteFIPS}, nil
	case cipher == "aes256gcm":
		return []wire.Suite{wire.SuiteAES, wire.SuiteFIPS}, nil
	case cipher == "auto" && hardwareAES:
		return []wire.Suite{wire.SuiteAES, wire.SuiteChaCha, wire.SuiteFIPS}, nil
	}
	return []wire.Suite{wire.SuiteChaCha, wire.SuiteAES, wire.SuiteFIPS}, nil
}

// choose takes the suite whose places in both lists have the least sum, so that
// one of which either end thinks little is not taken; of equals that with the lower
// number.
func choose(ours, theirs []wire.Suite) (best wire.Suite, ok bool) {
	least := 0
	for i, s := range ours {
		j := slices.Index(theirs, s)
		if j < 0 {
			continue
		}
		if !ok || i+j < least || i+j == least && s < best {
			best, least, ok = s, i+j, true
		}
	}
	return best, ok
}
