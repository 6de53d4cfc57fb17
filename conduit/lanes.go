// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/classify"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// MaxLaneRules bounds Config.Lanes, so that a packet's cost stays small.
const MaxLaneRules = 256

// LaneRule puts the packets that this node sends, and that match all fields that are
// set, into a lane. The first rule that matches counts. Behind the rules stand the
// defaults: ICMP and packets under 100 bytes are Critical, TCP and UDP port 5006 is
// Telemetry, all else is Bulk.
//
// Some things no rule changes. ICMP errors and IPv6 neighbour discovery are Critical.
// All fragments of a datagram travel in the lane of the first one. A TCP segment with
// payload waits behind what its connection has in a lower lane. And a rule asks for a
// lane; the policy may refuse it, and Critical beyond the share of the rate that it
// may take is put into a lower lane.
type LaneRule struct {
	// Lane is "critical", "telemetry" or "bulk". Required.
	Lane string
	// Protocol is "tcp", "udp", "icmp" (also that of IPv6), or a number of IANA's,
	// "47". Empty means any; where ports are given, TCP and UDP.
	Protocol string
	// Port is that of either side, SrcPort the sender's, DstPort the receiver's. The
	// zero value means any.
	Port, SrcPort, DstPort PortRange
	// DSCP are code points of the inner packet, 0 to 63 (RFC 2474); ParseDSCP knows
	// their names. None means any.
	DSCP []uint8
	// Below takes packets of fewer bytes, IP header and all; 0 means any. What travels
	// in fragments is never below.
	Below int
}

// PortRange is the ports from First to Last. A Last of 0 means First alone; the zero
// value means any port.
type PortRange struct{ First, Last uint16 }

// ParsePortRange reads "7400" or "7400-7499".
func ParsePortRange(s string) (PortRange, error) {
	bad := fmt.Errorf("%.40q is no port: want 1 to 65535, or two with - between", s)
	first, last, isRange := strings.Cut(s, "-")
	lo, ok := number(first, 65535)
	if !ok || lo == 0 {
		return PortRange{}, bad
	}
	p := PortRange{First: uint16(lo)}
	if isRange {
		hi, ok := number(last, 65535)
		if !ok || hi == 0 {
			return PortRange{}, bad
		}
		p.Last = uint16(hi)
	}
	if _, err := p.ports(); err != nil {
		return PortRange{}, err
	}
	return p, nil
}

// String is the inverse of ParsePortRange; "any" for the zero value.
func (p PortRange) String() string {
	switch {
	case p == PortRange{}:
		return "any"
	case p.Last == 0 || p.Last == p.First:
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

func (p PortRange) ports() (classify.Ports, error) {
	out := classify.Ports{Lo: p.First, Hi: p.Last}
	if out.Hi == 0 {
		out.Hi = out.Lo
	}
	switch {
	case p.First == 0 && p.Last != 0:
		return out, fmt.Errorf("port range from 0 to %d: there is no port 0", p.Last)
	case out.Hi < out.Lo:
		return out, fmt.Errorf("port range %d-%d runs backwards", p.First, p.Last)
	}
	return out, nil
}

// maxDSCP is the largest code point, of 6 bits.
const maxDSCP = 63

// dscpNames are the code points that have a name: RFC 2474, 2597, 3246, 5865, 8622.
var dscpNames = []struct {
	name string
	code uint8
}{
	{"df", 0},
	{"be", 0},
	{"cs0", 0},
	{"le", 1},
	{"cs1", 8},
	{"af11", 10},
	{"af12", 12},
	{"af13", 14},
	{"cs2", 16},
	{"af21", 18},
	{"af22", 20},
	{"af23", 22},
	{"cs3", 24},
	{"af31", 26},
	{"af32", 28},
	{"af33", 30},
	{"cs4", 32},
	{"af41", 34},
	{"af42", 36},
	{"af43", 38},
	{"cs5", 40},
	{"va", 44},
	{"ef", 46},
	{"cs6", 48},
	{"cs7", 56},
}

// ParseDSCP reads a code point: its name, such as "ef", "af41" or "CS5", or its
// number, "0" to "63".
func ParseDSCP(s string) (uint8, error) {
	if n, ok := number(s, maxDSCP); ok {
		return uint8(n), nil
	}
	for _, d := range dscpNames {
		if strings.EqualFold(d.name, s) {
			return d.code, nil
		}
	}
	return 0, fmt.Errorf("%.40q is no DSCP: want 0 to 63 or a name such as ef, cs5, af41", s)
}

// number reads digits and nothing else.
func number(s string, limit uint64) (uint64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && n <= limit
}

// Check reports what is wrong with the rule, if anything.
func (r *LaneRule) Check() error {
	_, err := r.rule()
	return err
}

// rule is r as the packet path takes it.
func (r *LaneRule) rule() (out classify.Rule, err error) {
	if out.Lane, err = packet.ParseLane(r.Lane); err != nil {
		return out, err
	}
	if out.Protos, err = protocols(r.Protocol); err != nil {
		return out, err
	}
	if r.Port != (PortRange{}) || r.SrcPort != (PortRange{}) || r.DstPort != (PortRange{}) {
		if len(out.Protos) != 0 && out.Protos[0] != packet.ProtoTCP && out.Protos[0] != packet.ProtoUDP {
			return out, fmt.Errorf("protocol %s has no ports: want tcp or udp", r.Protocol)
		}
	}
	for _, p := range []struct {
		in  PortRange
		out *classify.Ports
	}{{r.Port, &out.Port}, {r.SrcPort, &out.SrcPort}, {r.DstPort, &out.DstPort}} {
		if *p.out, err = p.in.ports(); err != nil {
			return out, err
		}
	}
	for _, d := range r.DSCP {
		if d > maxDSCP {
			return out, fmt.Errorf("DSCP %d: want 0 to 63", d)
		}
	}
	if r.Below < 0 {
		return out, fmt.Errorf("below %d bytes: want 0 for any size, or more", r.Below)
	}
	out.DSCP, out.Below = slices.Clone(r.DSCP), r.Below
	return out, nil
}

func protocols(s string) ([]uint8, error) {
	switch strings.ToLower(s) {
	case "":
		return nil, nil
	case "tcp":
		return []uint8{packet.ProtoTCP}, nil
	case "udp":
		return []uint8{packet.ProtoUDP}, nil
	case "icmp":
		return []uint8{packet.ProtoICMP, packet.ProtoICMPv6}, nil
	}
	if n, ok := number(s, 255); ok {
		return []uint8{uint8(n)}, nil
	}
	return nil, fmt.Errorf("%.40q is no protocol: want tcp, udp, icmp or a number up to 255", s)
}

// laneRules returns rules as the packet path takes them.
func laneRules(rules []LaneRule) ([]classify.Rule, error) {
	if len(rules) > MaxLaneRules {
		return nil, fmt.Errorf("%d lane rules, at most %d", len(rules), MaxLaneRules)
	}
	out := make([]classify.Rule, 0, len(rules))
	for i := range rules {
		r, err := rules[i].rule()
		if err != nil {
			return nil, fmt.Errorf("lane rule %d: %w", i+1, err)
		}
		out = append(out, r)
	}
	return out, nil
}
