// SPDX-License-Identifier: Apache-2.0

package packet

import "fmt"

// Lane is a priority class. The numbers are those of the wire format.
type Lane uint8

// The lanes, the most urgent first.
const (
	Critical  Lane = 0
	Telemetry Lane = 1
	Bulk      Lane = 2
	// NumLanes is how many lanes there are.
	NumLanes = 3
)

var laneNames = [NumLanes]string{"critical", "telemetry", "bulk"}

// String returns "critical", "telemetry" or "bulk".
func (l Lane) String() string {
	if int(l) < len(laneNames) {
		return laneNames[l]
	}
	return fmt.Sprintf("lane(%d)", uint8(l))
}

// ParseLane is the inverse of String.
func ParseLane(s string) (Lane, error) {
	for i, n := range laneNames {
		if n == s {
			return Lane(i), nil
		}
	}
	return 0, fmt.Errorf("unknown lane %q: want critical, telemetry or bulk", s)
}

// MarshalText implements encoding.TextMarshaler.
func (l Lane) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Lane) UnmarshalText(b []byte) error {
	v, err := ParseLane(string(b))
	if err == nil {
		*l = v
	}
	return err
}
