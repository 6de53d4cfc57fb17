// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// suites are what the tests' nodes offer, unless a test says otherwise: those of a
// plain build, or the one of a FIPS build.
func suites() []wire.Suite {
	if fips.Only() {
		return []wire.Suite{wire.SuiteFIPS}
	}
	return []wire.Suite{wire.SuiteChaCha, wire.SuiteAES}
}

// needChaCha skips a test whose bytes are fixed for ChaCha20-Poly1305, or that
// needs two suites.
func needChaCha(t *testing.T) {
	t.Helper()
	if fips.Only() {
		t.Skip("a FIPS build has neither ChaCha20-Poly1305 nor a second suite")
	}
}
