// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"
	"unicode"

	"github.com/bauxite-mesh/bauxite/conduit"
)

// MaxUplinks bounds the rules about interfaces.
const MaxUplinks = 32

// Uplink is a rule about the interfaces whose names match; the first that matches
// counts, and interfaces without a rule are used.
type Uplink struct {
	// Name is a pattern of path.Match, such as "wwan*". Required.
	Name string `toml:"name"`
	// Metered keeps Telemetry and Bulk off while an interface that is not metered
	// reaches the peer.
	Metered bool `toml:"metered,omitempty"`
	// Ignore leaves the interface alone.
	Ignore bool `toml:"ignore,omitempty"`
	// Budget is what may be sent and received in a day (UTC); an interface that has
	// spent it serves only where no other does: as ParseBytes reads it. Empty means no
	// limit.
	Budget string `toml:"budget,omitempty"`
	// Rate bounds what is sent over it, as ParseRate reads it. Empty means no bound.
	Rate string `toml:"rate,omitempty"`
}

// Bonding says how each lane uses the paths over several interfaces: one of Modes.
type Bonding struct {
	Critical  string `toml:"critical,omitempty"`  // empty means duplicate
	Telemetry string `toml:"telemetry,omitempty"` // empty means redundant-adaptive
	Bulk      string `toml:"bulk,omitempty"`      // empty means balance
}

// Modes are the ways to use several paths.
var Modes = []string{"duplicate", "redundant-adaptive", "balance", "active-backup"}

// checkPattern checks a pattern for the names of interfaces.
func checkPattern(p string) error {
	switch _, err := path.Match(p, ""); {
	case p == "":
		return errors.New("is missing: the interface that is meant, such as \"wwan*\", or \"*\" for each")
	case err != nil:
		return fmt.Errorf("%.64q is no pattern: '*' stands for any letters, '?' for one, [a-c] for a range", p)
	case len(p) > 64 || strings.ContainsFunc(p, func(r rune) bool { return r == '/' || unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return fmt.Errorf("%.64q can match no interface", p)
	}
	return nil
}

// units are what a number of bytes may be written with.
var units = []struct {
	name string
	n    uint64
}{
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"B", 1},
}

// ParseBytes reads a number of bytes with its unit: "500MB", "1.5 GB", "2GiB". Units
// of 1000 and of 1024 are told apart, and their case does not count.
func ParseBytes(s string) (uint64, error) {
	text := strings.TrimSpace(s)
	digits := strings.TrimRightFunc(text, unicode.IsLetter)
	unit := strings.ToLower(text[len(digits):])
	number := strings.TrimSpace(digits)
	bad := fmt.Errorf("%.40q is no size: write it as \"500MB\" or \"1.5GB\"", text)
	for _, u := range units {
		if strings.ToLower(u.name) != unit {
			continue
		}
		if number == "" || strings.Trim(number, "0123456789.") != "" {
			return 0, bad
		}
		f, err := strconv.ParseFloat(number, 64)
		switch v := f * float64(u.n); {
		case err != nil:
			return 0, bad
		case v < 1:
			return 0, errors.New("is 0: leave it out for no limit, or write ignore = true")
		case v > math.MaxInt64/2:
			return 0, fmt.Errorf("%.40q is more than any interface carries in a day", text)
		case strings.Contains(number, "."):
			return uint64(math.Round(v)), nil
		}
		n, err := strconv.ParseUint(number, 10, 64) // floats have 53 bits
		if err != nil {
			return 0, bad
		}
		return n * u.n, nil
	}
	return 0, bad
}

func (c *Config) checkUplinks() error {
	if n := len(c.Uplinks); n > MaxUplinks {
		return &valueError{key: "uplink", err: fmt.Errorf("has %d rules, at most %d", n, MaxUplinks)}
	}
	seen := make(map[string]bool)
	for i, u := range c.Uplinks {
		bad := func(key string, err error) error { return &valueError{"uplink." + key, i, err} }
		if err := checkPattern(u.Name); err != nil {
			return bad("name", err)
		}
		if seen[u.Name] {
			return bad("name", fmt.Errorf("a rule for %q stands above, and the first one counts", u.Name))
		}
		seen[u.Name] = true
		if u.Budget != "" {
			if _, err := ParseBytes(u.Budget); err != nil {
				return bad("budget", err)
			}
		}
		if u.Rate != "" {
			if _, err := ParseRate(u.Rate); err != nil {
				return bad("rate", err)
			}
		}
		if u.Ignore && (u.Metered || u.Budget != "" || u.Rate != "") {
			return bad("ignore", errors.New("leaves nothing to meter: remove it, or metered, budget and rate"))
		}
	}
	return nil
}

// UplinkRules returns the rules as the node takes them.
func (c *Config) UplinkRules() []conduit.UplinkRule {
	out := make([]conduit.UplinkRule, 0, len(c.Uplinks))
	for _, u := range c.Uplinks {
		budget, _ := ParseBytes(u.Budget) // was checked; 0 where there is none
		var rate uint64
		if u.Rate != "" {
			rate, _ = ParseRate(u.Rate)
		}
		out = append(out, conduit.UplinkRule{Name: u.Name, Ignore: u.Ignore, Metered: u.Metered, Budget: budget, Rate: rate})
	}
	return out
}

// BondingModes returns the modes as the node takes them.
func (c *Config) BondingModes() conduit.Bonding { return conduit.Bonding(c.Bonding) }
