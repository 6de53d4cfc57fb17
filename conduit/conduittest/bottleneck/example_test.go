// SPDX-License-Identifier: Apache-2.0

package bottleneck_test

import (
	"fmt"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest/bottleneck"
	"github.com/bauxite-mesh/bauxite/conduit/congestion"
)

// Four connections through a link of 20 Mbit/s with a queue of 256 KiB, which nobody
// keeps empty: 256 KiB take 104 ms.
func Example() {
	s := bottleneck.Scenario{
		Seed: 1,
		Link: bottleneck.Link{Rate: 20 * bottleneck.Mbit},
		Robots: []bottleneck.Robot{{
			Strategy: congestion.NewNull,
			Flows:    bottleneck.Flows(bottleneck.CUBIC, 4, time.Second),
		}},
	}
	r, idle := bottleneck.Run(s), bottleneck.Run(s.Idle())
	fmt.Println((r.CriticalP99 - idle.CriticalP99).Round(time.Millisecond))
	// Output: 104ms
}
