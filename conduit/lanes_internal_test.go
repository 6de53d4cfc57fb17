// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/classify"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

func TestLaneRules(t *testing.T) {
	got, err := laneRules([]LaneRule{
		{Lane: "critical", Protocol: "UDP", DstPort: PortRange{7400, 7499}, DSCP: []uint8{46, 0}, Below: 300},
		{Lane: "telemetry", Port: PortRange{First: 22}},
		{Lane: "bulk", Protocol: "icmp"},
		{Lane: "bulk", Protocol: "47"},
	})
	want := []classify.Rule{
		{Lane: packet.Critical, Protos: []uint8{17}, DstPort: classify.Ports{Lo: 7400, Hi: 7499}, DSCP: []uint8{46, 0}, Below: 300},
		{Lane: packet.Telemetry, Port: classify.Ports{Lo: 22, Hi: 22}},
		{Lane: packet.Bulk, Protos: []uint8{1, 58}},
		{Lane: packet.Bulk, Protos: []uint8{47}},
	}
	if err != nil || !cmp.Equal(want, got, cmp.Comparer(func(a, b classify.Rule) bool {
		return cmp.Equal(a.Protos, b.Protos) && cmp.Equal(a.DSCP, b.DSCP) && a.Below == b.Below && a.Lane == b.Lane &&
			a.Port == b.Port && a.SrcPort == b.SrcPort && a.DstPort == b.DstPort
	})) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	for want, r := range map[string]LaneRule{
		`unknown lane "urgent"`:           {Lane: "urgent"},
		`unknown lane ""`:                 {},
		`"sctp" is no protocol`:           {Lane: "bulk", Protocol: "sctp"},
		`"256" is no protocol`:            {Lane: "bulk", Protocol: "256"},
		`protocol icmp has no ports`:      {Lane: "bulk", Protocol: "icmp", Port: PortRange{First: 1}},
		`protocol 47 has no ports`:        {Lane: "bulk", Protocol: "47", SrcPort: PortRange{First: 1}},
		`port range 9-8 runs backwards`:   {Lane: "bulk", DstPort: PortRange{9, 8}},
		`from 0 to 8: there is no port 0`: {Lane: "bulk", Port: PortRange{0, 8}},
		`DSCP 64`:                         {Lane: "bulk", DSCP: []uint8{64}},
		`below -1 bytes`:                  {Lane: "bulk", Below: -1},
	} {
		if _, err := laneRules([]LaneRule{{Lane: "bulk"}, r}); err == nil || !strings.Contains(err.Error(), "lane rule 2: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
	}
	many := make([]LaneRule, MaxLaneRules+1)
	for i := range many {
		many[i].Lane = "bulk"
	}
	if _, err := laneRules(many[:MaxLaneRules]); err != nil {
		t.Error(err)
	}
	if _, err := laneRules(many); err == nil || !strings.Contains(err.Error(), "257 lane rules, at most 256") {
		t.Errorf("too many: %v", err)
	}
}

func TestParsePortRange(t *testing.T) {
	for in, want := range map[string]PortRange{"1": {First: 1}, "65535": {First: 65535}, "7400-7499": {7400, 7499}, "8-8": {8, 8}} {
		got, err := ParsePortRange(in)
		if err != nil || got != want {
			t.Errorf("%q = %v, %v", in, got, err)
		}
		if again, err := ParsePortRange(got.String()); err != nil || again.String() != got.String() {
			t.Errorf("%q is written as %q", in, got)
		}
	}
	if got := (PortRange{}).String(); got != "any" {
		t.Errorf("no range is %q", got)
	}
	for _, in := range []string{"", "0", "65536", "-", "1-", "-1", "1-0", "0-1", "9-8", "1-2-3", " 1", "1 - 2", "+1", "0x10", "1e3", "٣", "99999999999999999999"} {
		if got, err := ParsePortRange(in); err == nil {
			t.Errorf("%q = %v", in, got)
		}
	}
}

func TestParseDSCP(t *testing.T) {
	for in, want := range map[string]uint8{"0": 0, "63": 63, "ef": 46, "EF": 46, "cs7": 56, "CS1": 8, "af41": 34, "AF13": 14, "le": 1, "va": 44, "be": 0, "df": 0} {
		if got, err := ParseDSCP(in); err != nil || got != want {
			t.Errorf("%q = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "64", "-1", "af44", "cs8", "0x2e", "ef ", "256"} {
		if got, err := ParseDSCP(in); err == nil {
			t.Errorf("%q = %d", in, got)
		}
	}
	// RFC 2474 and 2597: what the name says is what the number is.
	for _, d := range dscpNames {
		switch n := d.name; {
		case strings.HasPrefix(n, "cs"):
			if want := (n[2] - '0') * 8; d.code != want {
				t.Errorf("%s = %d, want %d", n, d.code, want)
			}
		case strings.HasPrefix(n, "af"):
			if want := (n[2]-'0')*8 + (n[3]-'0')*2; d.code != want {
				t.Errorf("%s = %d, want %d", n, d.code, want)
			}
		}
	}
}

func FuzzParsePortRange(f *testing.F) {
	for _, s := range []string{"1", "7400-7499", "9-8", "0-1", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		p, err := ParsePortRange(in)
		if err != nil {
			return
		}
		if c, err := p.ports(); err != nil || c.Lo == 0 || c.Hi < c.Lo {
			t.Errorf("%q = %+v, %v", in, c, err)
		}
		if again, err := ParsePortRange(p.String()); err != nil || again.String() != p.String() {
			t.Errorf("%q is written as %q", in, p)
		}
	})
}

func TestPacingCheck(t *testing.T) {
	for _, p := range []Pacing{
		{},
		{Strategy: "delay-rate", Floor: 1, CriticalShare: 1},
		{Floor: -1},
		{Strategy: "none", CriticalShare: 0.1},
		{Strategy: "fixed", Rate: 20e6},
		{Strategy: "fixed", Rate: MinPacingRate},
		{Strategy: "fixed", Rate: MaxPacingRate},
	} {
		if err := p.Check(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for want, p := range map[string]Pacing{
		`unknown strategy "bbr": want delay-rate, fixed or none`: {Strategy: "bbr"},
		`strategy "fixed" wants a rate`:                          {Strategy: "fixed"},
		`a rate wants the strategy "fixed"`:                      {Rate: 1e6},
		`rate 63999 bit/s: want 64000 to 100000000000`:           {Strategy: "fixed", Rate: MinPacingRate - 1},
		`rate +Inf bit/s`:                                        {Strategy: "fixed", Rate: math.Inf(1)},
		`rate NaN bit/s`:                                         {Strategy: "fixed", Rate: math.NaN()},
		`floor 1.5: want at most 1`:                              {Floor: 1.5},
		`floor NaN`:                                              {Floor: math.NaN()},
		`critical share -0.1: want more than 0, and at most 1`:   {CriticalShare: -0.1},
		`critical share 1.1`:                                     {CriticalShare: 1.1},
		`critical share NaN: want more than 0, and at most 1`:    {CriticalShare: math.NaN()},
		`rate -1 bit/s: want 64000 to 100000000000`:              {Strategy: "fixed", Rate: -1},
		`pacing: a rate wants the strategy "fixed"`:              {Strategy: "none", Rate: 1e6},
	} {
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", p, err, want)
		}
	}
	if got, want := (Pacing{}).withDefaults(), (Pacing{Strategy: "delay-rate", Floor: 0.3, CriticalShare: 0.4}); got != want {
		t.Errorf("defaults %+v", got)
	}
	given := Pacing{Strategy: "fixed", Rate: 1e6, Floor: -1, CriticalShare: 1}
	if got := given.withDefaults(); got != given {
		t.Errorf("%+v became %+v", given, got)
	}
}
