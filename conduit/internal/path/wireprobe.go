// SPDX-License-Identifier: Apache-2.0

package path

import "github.com/bauxite-mesh/bauxite/conduit/internal/wire"

// flagMoved is bit 0 of a probe's flags: the addresses that the sender used
// before on this uplink are gone.
const flagMoved = 1

func probeUplink(wire.Probe) uint8      { return 0 }
func setProbeUplink(*wire.Probe, uint8) {}
