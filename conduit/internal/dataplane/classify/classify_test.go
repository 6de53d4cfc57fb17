// SPDX-License-Identifier: Apache-2.0

package classify

import (
	"net/netip"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

var a, b2 = netip.MustParseAddr("10.66.0.1"), netip.MustParseAddr("10.66.0.2")

func TestDefaults(t *testing.T) {
	for name, tc := range map[string]struct {
		info packet.Info
		want packet.Lane
	}{
		"ping of 1400 bytes": {packet.Info{Proto: packet.ProtoICMP, Len: 1400}, packet.Critical},
		"ping6":              {packet.Info{Proto: packet.ProtoICMPv6, Len: 104}, packet.Critical},
		"99 bytes":           {packet.Info{Proto: packet.ProtoUDP, Len: 99, DstPort: 9}, packet.Critical},
		"100 bytes":          {packet.Info{Proto: packet.ProtoUDP, Len: 100, DstPort: 9}, packet.Bulk},
		"to 5006":            {packet.Info{Proto: packet.ProtoUDP, Len: 100, DstPort: 5006}, packet.Telemetry},
		"from 5006":          {packet.Info{Proto: packet.ProtoTCP, Len: 1350, SrcPort: 5006}, packet.Telemetry},
		"small on 5006":      {packet.Info{Proto: packet.ProtoUDP, Len: 60, DstPort: 5006}, packet.Critical},
		"other protocol":     {packet.Info{Proto: 47, Len: 500}, packet.Bulk},
	} {
		if got := New(Config{}).Class(nil, &tc.info, 1, 0); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestFragments(t *testing.T) {
	c := New(Config{})
	now := int64(time.Hour)
	first := packet.Info{Src: a, Dst: b2, Proto: 17, Len: 1350, DstPort: 5006, Fragment: packet.FirstFragment, FragmentID: 7}
	later := packet.Info{Src: a, Dst: b2, Proto: 17, Len: 60, Fragment: packet.LaterFragment, FragmentID: 7}
	if got := c.Class(nil, &later, 1, now); got != packet.Bulk {
		t.Errorf("fragment of an unknown datagram: %v, want bulk", got)
	}
	if got := c.Class(nil, &first, 1, now); got != packet.Telemetry {
		t.Errorf("first fragment: %v, want telemetry", got)
	}
	if got := c.Class(nil, &later, 1, now+1); got != packet.Telemetry {
		t.Errorf("later fragment: %v, want telemetry although it is small", got)
	}
	other := later
	other.FragmentID = 8
	if got := c.Class(nil, &other, 1, now+1); got != packet.Bulk {
		t.Errorf("fragment of another datagram: %v, want bulk", got)
	}
	if got := c.Class(nil, &later, 1, now+1+fragLife); got != packet.Bulk {
		t.Errorf("fragment after a second: %v, want bulk", got)
	}
}

// A first fragment that has the identification of an older datagram replaces it.
func TestFragmentIDReused(t *testing.T) {
	c := New(Config{})
	now := int64(time.Hour)
	first := packet.Info{Src: a, Dst: b2, Proto: 17, Len: 1350, DstPort: 5006, Fragment: packet.FirstFragment, FragmentID: 7}
	later := packet.Info{Src: a, Dst: b2, Proto: 17, Len: 800, Fragment: packet.LaterFragment, FragmentID: 7}
	c.Class(nil, &first, 1, now)
	first.DstPort = 9
	c.Class(nil, &first, 1, now+1)
	if got := c.Class(nil, &later, 1, now+2); got != packet.Bulk {
		t.Errorf("later fragment: %v, want bulk like its own first", got)
	}
}

// Many datagrams in pieces at a time are remembered, and each of them as long as
// pieces keep coming.
func TestManyFragments(t *testing.T) {
	c := New(Config{})
	now := int64(time.Hour)
	first := packet.Info{Src: a, Dst: b2, Proto: 17, Len: 1350, DstPort: 5006, Fragment: packet.FirstFragment}
	later := packet.Info{Src: a, Dst: b2, Proto: 17, Len: 800, Fragment: packet.LaterFragment}
	for id := range uint32(fragSlots) {
		first.FragmentID = id
		c.Class(nil, &first, 1, now)
	}
	for range 3 {
		now += fragLife - 1
		for id := range uint32(fragSlots) {
			later.FragmentID = id
			if got := c.Class(nil, &later, 1, now); got != packet.Telemetry {
				t.Fatalf("fragment of datagram %d: %v, want telemetry", id, got)
			}
		}
	}
	first.FragmentID, later.FragmentID = fragSlots, 0
	c.Class(nil, &first, 1, now)
	if got := c.Class(nil, &later, 1, now); got != packet.Bulk {
		t.Errorf("fragment of the oldest datagram in a full table: %v, want bulk", got)
	}
}

func TestRulesAreCopied(t *testing.T) {
	rules := []Rule{{Port: Ports{7, 7}, DSCP: []uint8{1}, Protos: []uint8{17}, Lane: packet.Telemetry}}
	c := New(Config{Rules: rules})
	rules[0].Lane = packet.Bulk
	rules[0].DSCP[0], rules[0].Protos[0] = 2, 6
	if got := c.Class(nil, &packet.Info{Proto: 17, Len: 500, DstPort: 7, TOS: 1 << 2}, 1, 0); got != packet.Telemetry {
		t.Errorf("a change of the caller's rules reached the classifier: %v, want telemetry", got)
	}
}

func TestNoOvertaking(t *testing.T) {
	c := New(Config{})
	seg := packet.Info{Proto: packet.ProtoTCP, Len: 60, Payload: 8}
	ack := packet.Info{Proto: packet.ProtoTCP, Len: 52}
	c.Queued(5, packet.Bulk)
	if got := c.Class(nil, &seg, 5, 0); got != packet.Bulk {
		t.Errorf("small segment behind its own flow: %v, want bulk", got)
	}
	if got := c.Class(nil, &ack, 5, 0); got != packet.Critical {
		t.Errorf("pure ACK: %v, want critical", got)
	}
	if got := c.Class(nil, &seg, 6, 0); got != packet.Critical {
		t.Errorf("small segment of another flow: %v, want critical", got)
	}
	for _, flags := range []uint8{1, 4} { // FIN and RST come in order, too
		end := packet.Info{Proto: packet.ProtoTCP, Len: 52, TCPFlags: flags}
		if got := c.Class(nil, &end, 5, 0); got != packet.Bulk {
			t.Errorf("flags %d behind their own flow: %v, want bulk", flags, got)
		}
	}
	c.Left(5, packet.Bulk)
	if got := c.Class(nil, &seg, 5, 0); got != packet.Critical {
		t.Errorf("small segment after its flow drained: %v, want critical", got)
	}
	c.Queued(5, packet.Telemetry)
	if got := c.Class(nil, &seg, 5, 0); got != packet.Telemetry {
		t.Errorf("small segment behind telemetry of its flow: %v, want telemetry", got)
	}
	c.Queued(5, packet.Bulk)
	if got := c.Class(nil, &seg, 5, 0); got != packet.Bulk {
		t.Errorf("small segment behind telemetry and bulk of its flow: %v, want bulk", got)
	}
}

func TestAllocs(t *testing.T) {
	c := New(Config{})
	frag := packet.Info{Src: a, Dst: b2, Fragment: packet.FirstFragment, Len: 1000}
	whole := packet.Info{Proto: packet.ProtoTCP, Len: 1000, Payload: 900}
	if n := testing.AllocsPerRun(100, func() { c.Class(nil, &frag, 1, 1); c.Class(nil, &whole, 1, 1) }); n != 0 {
		t.Errorf("allocates %v times, want 0", n)
	}
}
