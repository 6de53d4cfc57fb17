// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit"
)

const lanes = `
[[uplink]]
name = "wwan*"
rate = "4.5Mbit"

[pacing]
strategy = "fixed"
rate = "20 Mbit/s"
floor = 0
critical_share = 0.25

[[lane]] # discovery
lane = "telemetry"
proto = "udp"
port = "7400-7499"

[[lane]]
lane = "critical"
proto = "tcp"
src_port = 40000
dst_port = "22"
dscp = ["ef", 40, "CS6"]
below = 300

[[lane]]
lane = "critical"
dscp = "va"

[[lane]]
lane = "bulk"
`

// withPart returns a whole file with a text in the place of [pacing].
func withPart(t testing.TB, part string) string {
	t.Helper()
	base := text(t, sample())
	out := strings.Replace(base, "\n[pacing]\n", "\n"+part, 1)
	if out == base {
		t.Fatal("nothing replaced")
	}
	return out
}

func TestLanes(t *testing.T) {
	c, err := Parse([]byte(strings.Replace(withPart(t, lanes), "[transport]", "[transport]\ndscp = false", 1)))
	if err != nil {
		t.Fatal(err)
	}
	want := []conduit.LaneRule{
		{Lane: "telemetry", Protocol: "udp", Port: conduit.PortRange{First: 7400, Last: 7499}},
		{
			Lane: "critical", Protocol: "tcp", SrcPort: conduit.PortRange{First: 40000}, DstPort: conduit.PortRange{First: 22},
			DSCP: []uint8{46, 40, 48}, Below: 300,
		},
		{Lane: "critical", DSCP: []uint8{44}},
		{Lane: "bulk"},
	}
	if d := cmp.Diff(want, c.LaneRules()); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
	pacing := conduit.Pacing{Strategy: "fixed", Rate: 20e6, Floor: -1, CriticalShare: 0.25}
	if got := c.PacingSettings(); got != pacing || got.Check() != nil {
		t.Errorf("pacing %+v, want %+v", got, pacing)
	}
	if got := c.UplinkRules(); len(got) != 1 || got[0].Rate != 4.5e6 {
		t.Errorf("uplinks %+v", got)
	}
	if !c.NoDSCP() {
		t.Error("dscp = false is not read")
	}
	again, err := Parse([]byte(text(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c.Lanes, again.Lanes); d != "" {
		t.Errorf("round trip (-want +got):\n%s", d)
	}

	// Nothing said is the node's own default.
	c, err = Parse([]byte(text(t, sample())))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.LaneRules()) != 0 || c.PacingSettings() != (conduit.Pacing{}) || c.NoDSCP() {
		t.Errorf("defaults: %+v %+v", c.LaneRules(), c.PacingSettings())
	}
	c, err = Parse([]byte(withPart(t, "[transport]\ndscp = true\n[pacing]\nfloor = 1\ncritical_share = 1\n")))
	if err == nil {
		t.Errorf("two tables of one name: %+v", c)
	}
	c, err = Parse([]byte(withPart(t, "[pacing]\nfloor = 1\ncritical_share = 1\n")))
	if err != nil || c.PacingSettings() != (conduit.Pacing{Floor: 1, CriticalShare: 1}) {
		t.Errorf("whole numbers: %+v, %v", c, err)
	}
}

func TestLaneErrors(t *testing.T) {
	rules := strings.Repeat("[[lane]]\nlane='bulk'\n", conduit.MaxLaneRules+1)
	one := func(s string) string {
		return "[[lane]]\nlane = 'bulk'\ndscp = 'ef'\n[[lane]]\nlane = 'bulk'\n" + s + "\n"
	}
	for _, tc := range []struct{ name, in, want string }{
		{"Key", one("prot = 'udp'"), "unknown key lane.prot; did you mean lane.p"},
		{"NoLane", "[[lane]]\nport = 7\n", "lane.lane: is missing: critical, telemetry or bulk"},
		{"Lane", "[[lane]]\nlane = 'crit'\n", `lane.lane: "crit" is not one of critical, telemetry, bulk; did you mean critical?`},
		{"Proto", one("proto = 'sctp'"), `lane.proto: "sctp" is no protocol: want tcp, udp, icmp or a number up to 255`},
		{"ProtoType", one("proto = 6"), "lane.proto"},
		{"NoPorts", one("proto = 'icmp'\nport = 7"), "lane.port: protocol icmp has no ports"},
		{"Port", one("port = 65536"), `lane.port: "65536" is no port`},
		{"PortZero", one("dst_port = 0"), `lane.dst_port: "0" is no port`},
		{"PortNegative", one("src_port = -7"), `lane.src_port: "-7" is no port`},
		{"PortBackwards", one("src_port = '9-8'"), `lane.src_port: port range 9-8 runs backwards`},
		{"PortText", one("port = 'ssh'"), `lane.port: "ssh" is no port`},
		{"PortFloat", one("port = 7.5"), `lane.port: want a port, such as 7400 or "7400-7499"`},
		{"PortList", one("port = [7]"), `lane.port: want a port`},
		{"DSCP", one("dscp = ['cs1', 'cs8']"), `lane.dscp: "cs8" is no DSCP`},
		{"DSCPNumber", one("dscp = 64"), `lane.dscp: "64" is no DSCP`},
		{"DSCPNone", one("dscp = []"), `lane.dscp: is empty`},
		{"DSCPType", one("dscp = true"), `lane.dscp: want a code point`},
		{"DSCPTable", one("dscp = {a=1}"), `lane.dscp: want a code point`},
		{"DSCPMany", one("dscp = [" + strings.Repeat("1,", 65) + "]"), `lane.dscp: has 65 code points`},
		{"Below", one("below = -1"), `lane.below: is -1`},
		{"BelowType", one("below = '3'"), `lane.below`},
		{"Twice", one("dscp = [46]"), `lane.lane: rule 1 takes the same packets`},
		{"Unreached", "[[lane]]\nlane='bulk'\n[[lane]]\nlane='critical'\nport=7\n", `lane.lane: rule 1 takes every packet, so this one gets none`},
		{"Many", rules, "at most 256"},
		{"Strategy", "[pacing]\nstrategy = 'fix'\n", `pacing.strategy: "fix" is not one of delay-rate, fixed, none; did you mean fixed?`},
		{"NoRate", "[pacing]\nstrategy = 'fixed'\n", `pacing.rate: is missing`},
		{"RateFor", "[pacing]\nrate = '20Mbit'\n", `pacing.rate: is for strategy = "fixed"`},
		{"Rate", "[pacing]\nstrategy = 'fixed'\nrate = '20MB'\n", `pacing.rate: "20MB" is no rate: write it as "20Mbit"`},
		{"RateType", "[pacing]\nstrategy = 'fixed'\nrate = 20\n", `pacing.rate`},
		{"Floor", "[pacing]\nfloor = 1.5\n", `pacing.floor: is 1.5, want 0 to 1`},
		{"FloorNegative", "[pacing]\nfloor = -1\n", `pacing.floor: is -1`},
		{"FloorNaN", "[pacing]\nfloor = nan\n", `pacing.floor: is NaN`},
		{"Share", "[pacing]\ncritical_share = 0\n", `pacing.critical_share: is 0, want more than 0`},
		{"ShareHigh", "[pacing]\n\ncritical_share = 2.0\n", `pacing.critical_share: is 2`},
		{"PacingKey", "[pacing]\ncritical_shar = 1\n", `did you mean pacing.critical_share?`},
		{"UplinkRate", "[[uplink]]\nname = 'a'\nrate = '1kbit'\n", `uplink.rate: "1kbit" is less than 64kbit`},
		{"UplinkIgnored", "[[uplink]]\nname = 'a'\nignore = true\nrate = '1Mbit'\n", `nothing to meter`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := withPart(t, tc.in)
			_, err := Parse([]byte(in))
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error = %v, want %q in it", err, tc.want)
			}
			if tc.name == "Many" {
				return // about the file, not about a line
			}
			_, after, _ := strings.Cut(err.Error(), "line ")
			digits := after[:len(after)-len(strings.TrimLeft(after, "0123456789"))]
			line, err2 := strconv.Atoi(digits)
			if err2 != nil {
				t.Fatalf("error %q has no line", err)
			}
			// What is wrong stands in the last line, but where it is what is missing.
			first := strings.Count(in[:strings.Index(in, tc.in)], "\n") + 1
			last := first + strings.Count(tc.in, "\n") - 1
			switch tc.name {
			case "NoLane", "NoRate":
				last = first
			case "Twice", "Unreached", "UplinkIgnored":
				last--
			}
			if line != last {
				t.Errorf("error %q names line %d, want %d", err, line, last)
			}
		})
	}
	// Without a line there is a number.
	c := sample()
	c.Lanes = []Lane{{Lane: "critical", DSCP: int64(1)}, {}}
	if err := c.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "lane 2: lane: is missing") {
		t.Errorf("error = %v", err)
	}
	top := "lane = [{lane='bulk', port=1},\n{lane='x'}]\n"
	if _, err := Parse([]byte(top + text(t, sample()))); err == nil || !strings.Contains(err.Error(), "line 1: lane.lane: ") {
		t.Errorf("inline tables: %v", err)
	}
}

func TestRate(t *testing.T) {
	for in, want := range map[string]uint64{
		"20Mbit": 20e6, "20 mbit/s": 20e6, "1.5Gbit": 1.5e9, "900kbit": 900e3, "64kbit": 64e3, "64000bit": 64e3, " 100 GBit ": 100e9, ".5Mbit": 500e3,
	} {
		if n, err := ParseRate(in); err != nil || n != want {
			t.Errorf("%q = %d, %v; want %d", in, n, err, want)
		}
	}
	for _, in := range []string{
		"", "20", "Mbit", "20MB", "20MB/s", "20Mbps", "20M", "1.2.3Mbit", "1e3Mbit", "-5Mbit", "+5Mbit", "٣Mbit", ".Mbit", "0Mbit", "63kbit", "101Gbit",
		"infGbit", "NaNMbit", "0x10Mbit", "5 M bit", "20Mbit/s/s", "20Mbit/h",
	} {
		if n, err := ParseRate(in); err == nil {
			t.Errorf("%q = %d", in, n)
		}
	}
}

func FuzzRate(f *testing.F) {
	for _, s := range []string{"20Mbit", "1.5 Gbit/s", "64kbit", "100Gbit", "99999999999999999999bit"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		n, err := ParseRate(in)
		if err != nil {
			return
		}
		if n < conduit.MinPacingRate || n > conduit.MaxPacingRate {
			t.Errorf("%q = %d", in, n)
		}
		if again, err := ParseRate(strconv.FormatUint(n, 10) + "bit"); err != nil || again != n {
			t.Errorf("%q = %d is read as %d, %v", in, n, again, err)
		}
	})
}

// What the README shows can be written so.
func TestReadme(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "```toml\n")
	shown, _, ok := strings.Cut(rest, "```")
	base, _, ok2 := strings.Cut(text(t, sample()), "\n[transport]\n")
	if !ok || !ok2 {
		t.Fatal("no example, or nowhere to put it")
	}
	c, err := Parse([]byte(base + "\n" + shown))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.LaneRules()) != 2 || len(c.UplinkRules()) != 2 {
		t.Errorf("read as %+v", c)
	}
}
