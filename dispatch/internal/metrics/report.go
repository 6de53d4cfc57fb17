// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"unique"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Limits of a report.
const (
	MaxPaths   = 256
	MaxDenied  = 64
	MaxRule    = 128 // bytes of a rule's name
	MaxVersion = 64  // bytes of a version
	MaxStatus  = 32  // bytes of a discovery status
	MaxKind    = 16  // bytes of a path's kind

	maxLoss = 1_000_000 // ppm
)

// ErrInvalid is returned for a report that breaks a limit.
var ErrInvalid = errors.New("report is not valid")

// Lanes in the order of their figures.
var laneNames = [numLanes]string{"critical", "telemetry", "bulk"}

const numLanes = 3

// pathKinds are the kinds that are told apart; all others are the first.
var pathKinds = [...]string{other, "direct", "turn", "peer-relay", "hub-relay"}

// other stands for every value that the hub does not know.
const other = "other"

// path is one path of the newest report, as small as it can be.
type path struct {
	peer   identity.PeerID
	tx, rx uint64
	rtt    uint32 // µs
	// loss is in ppm and has 24 bits, kind is an index of pathKinds.
	lossKind uint32
}

func (p path) kind() uint8  { return uint8(p.lossKind >> 24) }
func (p path) loss() uint32 { return p.lossKind & (1<<24 - 1) }

type ruleCount struct {
	rule unique.Handle[string]
	n    uint64
}

// Validate reports whether r keeps the limits. Errors: ErrInvalid.
func Validate(r *dispatchv1.ReportMetricsRequest) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
	}
	switch {
	case r.GetStarted() < 0:
		return bad("started is negative")
	case len(r.GetLanes()) > numLanes:
		return bad("%d lanes, at most %d", len(r.GetLanes()), numLanes)
	case len(r.GetPaths()) > MaxPaths:
		return bad("%d paths, at most %d", len(r.GetPaths()), MaxPaths)
	case len(r.GetDenied()) > MaxDenied:
		return bad("%d denied rules, at most %d", len(r.GetDenied()), MaxDenied)
	case r.GetRosDiscoveryPort() > math.MaxUint16:
		return bad("ros_discovery_port %d", r.GetRosDiscoveryPort())
	case !printable(r.GetRosDiscoveryStatus(), MaxStatus):
		return bad("ros_discovery_status: want at most %d printable characters", MaxStatus)
	case !printable(r.GetVersion(), MaxVersion):
		return bad("version: want at most %d printable characters", MaxVersion)
	}
	var seen [numLanes]bool
	for _, l := range r.GetLanes() {
		i := slices.Index(laneNames[:], l.GetLane())
		if i < 0 || seen[i] {
			return bad("lanes: want each of critical, telemetry and bulk once at most")
		}
		seen[i] = true
	}
	for _, p := range r.GetPaths() {
		if _, ok := parsePeer(p.GetPeer()); !ok {
			return bad("paths: peer is no peer id")
		}
		if !printable(p.GetKind(), MaxKind) {
			return bad("paths: kind: want at most %d printable characters", MaxKind)
		}
		if p.GetLossPpm() > maxLoss {
			return bad("paths: loss_ppm is over %d", maxLoss)
		}
	}
	for rule := range r.GetDenied() {
		if rule == "" || !printable(rule, MaxRule) {
			return bad("denied: rule: want 1 to %d printable characters", MaxRule)
		}
	}
	return nil
}

// printable tells whether s is at most limit bytes of printable ASCII.
func printable(s string, limit int) bool {
	if len(s) > limit {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// parsePeer is identity.ParsePeerID without its garbage: a report can have
// hundreds.
func parsePeer(s string) (id identity.PeerID, ok bool) {
	if len(s) != identity.PeerIDLen {
		return id, false
	}
	var acc, n uint
	k := 0
	for i := range len(s) {
		c := s[i] | 0x20 // lower case
		switch {
		case c >= 'a' && c <= 'z' && s[i] >= 'A':
			c -= 'a'
		case s[i] >= '2' && s[i] <= '7':
			c = s[i] - '2' + 26
		default:
			return identity.PeerID{}, false
		}
		acc, n = acc<<5|uint(c), n+5
		if n >= 8 && k < len(id) {
			n -= 8
			id[k] = byte(acc >> n)
			k++
		}
	}
	if acc&(1<<n-1) != 0 { // stray bits
		return identity.PeerID{}, false
	}
	return id, true
}

func stateOf(r *dispatchv1.ReportMetricsRequest) state {
	return state{
		started: r.GetStarted(), policy: r.GetPolicyVersion(), generation: r.GetPolicyGeneration(), psk: r.GetPskEpoch(),
		port: uint16(r.GetRosDiscoveryPort()), ros: unique.Make(r.GetRosDiscoveryStatus()), version: unique.Make(r.GetVersion()),
	}
}

// countersOf returns the counters of r without the denied ones. A lane that r does
// not have is where it was.
func countersOf(r *dispatchv1.ReportMetricsRequest, before *counters) counters {
	c := *before
	for _, l := range r.GetLanes() {
		k := c[slices.Index(laneNames[:], l.GetLane())*perLane:]
		k[txPackets], k[txBytes], k[rxPackets], k[rxBytes] = l.GetTxPackets(), l.GetTxBytes(), l.GetRxPackets(), l.GetRxBytes()
		k[laneDropped] = l.GetDropped()
	}
	c[dropped] = r.GetDropped()
	return c
}

// appendPaths appends the paths of a valid report to dst.
func appendPaths(dst []path, r *dispatchv1.ReportMetricsRequest) []path {
	for _, p := range r.GetPaths() {
		id, _ := parsePeer(p.GetPeer())
		kind := max(0, slices.Index(pathKinds[:], p.GetKind()))
		dst = append(dst, path{
			peer: id, tx: p.GetTxBytes(), rx: p.GetRxBytes(), rtt: uint32(min(p.GetRttUs(), math.MaxUint32)),
			lossKind: uint32(kind)<<24 | p.GetLossPpm(),
		})
	}
	return dst
}

// appendRules appends the denied rules of r to dst in order of their names.
func appendRules(dst []ruleCount, r *dispatchv1.ReportMetricsRequest) []ruleCount {
	for rule, n := range r.GetDenied() {
		dst = append(dst, ruleCount{unique.Make(rule), n})
	}
	slices.SortFunc(dst, func(a, b ruleCount) int { return cmp.Compare(a.rule.Value(), b.rule.Value()) })
	return dst
}

// growth returns how much the rules of now have counted since before. A rule that
// is new or counts less began at 0; both lists are in order.
func growth(before, now []ruleCount) (sum uint64) {
	for _, r := range now {
		for len(before) > 0 && before[0].rule.Value() < r.rule.Value() {
			before = before[1:]
		}
		d := r.n
		if len(before) > 0 && before[0].rule == r.rule && before[0].n <= r.n {
			d -= before[0].n
		}
		sum = addSat(sum, d)
	}
	return sum
}

// addSat adds without wrapping around.
func addSat(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}
