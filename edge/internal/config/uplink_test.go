// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bauxite-mesh/bauxite/conduit"
)

const uplinks = `
[[uplink]]
name = "wwan*"
metered = true
budget = "500MB"

[[uplink]] # the one to the arm
name = "eth1"
ignore = true

[bonding]
critical = "active-backup"
telemetry = "duplicate"
bulk = "redundant-adaptive"
`

// withUplinks returns a whole file with a text in the place of [bonding].
func withUplinks(t testing.TB, part string) string {
	t.Helper()
	base := text(t, sample())
	out := strings.Replace(base, "\n[bonding]\n", "\n"+part, 1)
	if out == base {
		t.Fatal("nothing replaced")
	}
	return out
}

func TestUplinks(t *testing.T) {
	c, err := Parse([]byte(strings.Replace(withUplinks(t, uplinks), "[transport]", "[transport]\nrelay = true", 1)))
	if err != nil {
		t.Fatal(err)
	}
	want := []conduit.UplinkRule{{Name: "wwan*", Metered: true, Budget: 500e6}, {Name: "eth1", Ignore: true}}
	if d := cmp.Diff(want, c.UplinkRules()); d != "" {
		t.Errorf("rules (-want +got):\n%s", d)
	}
	if got, want := c.BondingModes(), (conduit.Bonding{Critical: "active-backup", Telemetry: "duplicate", Bulk: "redundant-adaptive"}); got != want {
		t.Errorf("bonding %+v", got)
	}
	if !c.Transport.Relay {
		t.Error("relay is not read")
	}
	again, err := Parse([]byte(text(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c.Uplinks, again.Uplinks); d != "" {
		t.Errorf("round trip (-want +got):\n%s", d)
	}

	// Nothing said is the node's own default.
	c, err = Parse([]byte(text(t, sample())))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.UplinkRules()) != 0 || c.BondingModes() != (conduit.Bonding{}) || c.Transport.Relay {
		t.Errorf("defaults: %+v %+v", c.UplinkRules(), c.BondingModes())
	}
}

func TestUplinkErrors(t *testing.T) {
	rules := strings.Repeat("[[uplink]]\nname='a'\n", MaxUplinks+1)
	for _, tc := range []struct{ name, in, want string }{
		{"Key", "[[uplink]]\nname = 'a'\nmetred = true\n", "unknown key uplink.metred; did you mean uplink.metered?"},
		{"BondingKey", "[bonding]\ncritcal = 'balance'\n", "unknown key bonding.critcal; did you mean bonding.critical?"},
		{"Mode", "[bonding]\ncritical = 'duplicat'\n", `"duplicat" is not one of duplicate, redundant-adaptive, balance, active-backup; did you mean duplicate?`},
		{"ModeFar", "[bonding]\nbulk = 'x'\n", `"x" is not one of`},
		{"ModeType", "[bonding]\nbulk = 3\n", "bonding.bulk"},
		{"Pattern", "[[uplink]]\nname = 'wwan['\n", `"wwan[" is no pattern`},
		{"PatternEmpty", "[[uplink]]\nname = ''\n", `or "*" for each`},
		{"PatternBlank", "[[uplink]]\nname = 'w lan'\n", `can match no interface`},
		{"NoName", "[[uplink]]\nname = 'a'\n[[uplink]] # second\nmetered = true\n", "uplink.name: is missing"},
		{"Twice", "[[uplink]]\nname = 'a'\n [[ uplink ]]\nname = 'a'\n", "stands above"},
		{"Ignored", "[[uplink]]\nname = 'a'\nignore = true\nbudget = '1GB'\n", "nothing to meter"},
		{"Budget", "[[uplink]]\nname = 'a'\nbudget = '500 bananas'\n", `"500 bananas" is no size: write it as "500MB"`},
		{"BudgetUnit", "[[uplink]]\nname = 'a'\nbudget = '500'\n", `is no size`},
		{"BudgetNumber", "[[uplink]]\nname = 'a'\nbudget = 500\n", "uplink.budget"},
		{"BudgetZero", "[[uplink]]\nname = 'a'\nbudget = '0MB'\n", "leave it out for no limit, or write ignore = true"},
		{"BudgetNegative", "[[uplink]]\nname = 'a'\nbudget = '-1MB'\n", "is no size"},
		{"BudgetHuge", "[[uplink]]\nname = 'a'\nbudget = '9e9TB'\n", "is no size"},
		{"BudgetHuger", "[[uplink]]\nname = 'a'\nbudget = '99999999TB'\n", "more than any interface"},
		{"Bool", "[[uplink]]\nname = 'a'\nmetered = 'yes'\n", "uplink.metered"},
		{"Many", rules, "at most 32"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := withUplinks(t, tc.in)
			_, err := Parse([]byte(in))
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error = %v, want %q in it", err, tc.want)
			}
			if tc.name == "Many" {
				return // about the file, not about a line
			}
			_, after, ok := strings.Cut(err.Error(), "line ")
			if !ok {
				t.Fatalf("error %q has no line", err)
			}
			line := 0
			for _, c := range after {
				if c < '0' || c > '9' {
					break
				}
				line = line*10 + int(c-'0')
			}
			first := strings.Count(in[:strings.Index(in, tc.in)], "\n") + 1
			if last := first + strings.Count(tc.in, "\n"); line < first || line >= last {
				t.Errorf("error %q names line %d, want %d to %d", err, line, first, last-1)
			}
		})
	}
	// Without a line there is a number.
	c := sample()
	c.Uplinks = []Uplink{{Name: "a"}, {}}
	if err := c.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "uplink 2: name: is missing") {
		t.Errorf("error = %v", err)
	}
	top := "uplink = [{name='a'},\n{name=''}]\n"
	if _, err := Parse([]byte(top + text(t, sample()))); err == nil || !strings.Contains(err.Error(), "line 1: uplink.name: is missing") {
		t.Errorf("inline tables: %v", err)
	}
	c = sample()
	c.Bonding.Bulk = "x"
	if err := c.Validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "bonding.bulk") {
		t.Errorf("error = %v", err)
	}
}

func TestBytes(t *testing.T) {
	for in, want := range map[string]uint64{
		"500MB": 500e6, "500 mb": 500e6, "1.5GB": 1.5e9, "2GiB": 2 << 30, "1000kB": 1e6, "1kib": 1024, "7B": 7, ".5kB": 500,
		" 3TB ": 3e12, "1TiB": 1 << 40, "2MiB": 2 << 20, "4000000000000000001B": 4000000000000000001,
	} {
		if n, err := ParseBytes(in); err != nil || n != want {
			t.Errorf("%q = %d, %v; want %d", in, n, err, want)
		}
	}
	for _, in := range []string{"", "MB", "5", "1.2.3MB", "NaNMB", "InfGB", "1e3MB", "0x10MB", "5 M B", "+5MB", "-5MB", "٣MB", ".GB", "0B", "0.0001B", "99999999TB"} {
		if n, err := ParseBytes(in); err == nil {
			t.Errorf("%q = %d", in, n)
		}
	}
}

func FuzzBytes(f *testing.F) {
	for _, s := range []string{"500MB", "1.5 GB", "2GiB", "0B", "18446744073709551615B", "9223372036854775807TB", "999999.5TB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		n, err := ParseBytes(in)
		if err != nil {
			return
		}
		if n == 0 || n > math.MaxInt64 {
			t.Errorf("%q = %d", in, n)
		}
		if again, err := ParseBytes(strconv.FormatUint(n, 10) + "B"); err != nil || again != n {
			t.Errorf("%q = %d is read as %d, %v", in, n, again, err)
		}
	})
}
