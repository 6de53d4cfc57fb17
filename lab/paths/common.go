// SPDX-License-Identifier: Apache-2.0

package paths

import (
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// System is a tunnel under test.
type System = world.System

// Bauxite is the system under test.
func Bauxite(bin build.Binaries) System { return world.Bauxite(bin) }

const (
	never        = world.Never
	interval     = world.Interval
	criticalSize = world.CriticalSize
)

// leg is one cable of the internet: 5 ms, so a round trip between two hosts is
// 20 ms, and as much to the hub.
var leg = world.Cable(5*time.Millisecond, 0)
