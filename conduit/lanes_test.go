// SPDX-License-Identifier: Apache-2.0

package conduit_test

import (
	"bytes"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
)

// A packet takes the lane of the first rule that matches it, else of the defaults.
func TestLanes(t *testing.T) {
	m := conduittest.NewMesh(t, 2)
	defer m.Close()
	m.Restart(t, 0, func(c *conduit.Config) {
		c.Lanes = []conduit.LaneRule{
			{Lane: "telemetry", Protocol: "udp", DstPort: conduit.PortRange{First: 7400, Last: 7499}},
			{Lane: "critical", DstPort: conduit.PortRange{First: 7450}},
		}
	})
	exchange(t, m, 0, 1, "meet")
	sent := func() [3]uint64 {
		l := status(t, m.Node(0)).Lanes
		return [3]uint64{l.Critical.TxPackets, l.Telemetry.TxPackets, l.Bulk.TxPackets}
	}
	for port, lane := range map[uint16]int{7400: 1, 7450: 1, 7499: 1, 7500: 2, 5006: 1} {
		before := sent()
		pkt := conduittest.UDP(conduittest.Addr(0), conduittest.Addr(1), 40000, port, bytes.Repeat([]byte("x"), 200))
		if err := m.App(0).Send(within(t), pkt); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the packet in its lane", func() bool { return sent()[lane] > before[lane] })
		if lane == 2 {
			continue
		}
		if after := sent(); after[2] != before[2] {
			t.Errorf("port %d: bulk went from %d to %d", port, before[2], after[2])
		}
	}
}
