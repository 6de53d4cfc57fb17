// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// testSuite is the tests' cipher, and grown by what a packet grows under it.
var (
	testSuite = map[bool]wire.Suite{false: wire.SuiteChaCha, true: wire.SuiteFIPS}[fips.Only()]
	grown     = session.Overhead(testSuite)
)
