// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"

	"github.com/bauxite-mesh/bauxite/conduit"
)

// Pacing says how fast each path is filled, as conduit.Pacing does.
type Pacing struct {
	// Strategy is delay-rate, fixed or none; empty means delay-rate.
	Strategy string `toml:"strategy,omitempty"`
	// Rate is that of fixed, as ParseRate reads it.
	Rate string `toml:"rate,omitempty"`
	// Floor is the share of the rate that is kept beside traffic which fills the
	// queue; nil means 0.3, and 0 that others go first.
	Floor *float64 `toml:"floor,omitempty"`
	// CriticalShare is how much of the rate Critical may take; nil means 0.4.
	CriticalShare *float64 `toml:"critical_share,omitempty"`
}

// rateUnits are what a rate may be written with.
var rateUnits = []struct {
	name string
	n    float64
}{
	{"gbit", 1e9},
	{"mbit", 1e6},
	{"kbit", 1e3},
	{"bit", 1},
}

// ParseRate reads a rate with its unit and returns bits per second: "20Mbit",
// "1.5 Gbit/s", "900kbit". Case does not count.
func ParseRate(s string) (uint64, error) {
	text := strings.TrimSpace(s)
	bad := fmt.Errorf("%.40q is no rate: write it as \"20Mbit\" or \"1.5Gbit\"", text)
	unit := strings.TrimLeft(text, "0123456789.")
	digits := text[:len(text)-len(unit)]
	unit = strings.TrimSuffix(strings.ToLower(strings.TrimLeftFunc(unit, unicode.IsSpace)), "/s")
	for _, u := range rateUnits {
		if u.name != unit {
			continue
		}
		f, err := strconv.ParseFloat(digits, 64)
		switch v := math.Round(f * u.n); {
		case err != nil:
			return 0, bad
		case v < conduit.MinPacingRate:
			return 0, fmt.Errorf("%.40q is less than %.0fkbit, too little to keep a session alive", text, conduit.MinPacingRate/1e3)
		case v > conduit.MaxPacingRate:
			return 0, fmt.Errorf("%.40q is more than %.0fGbit", text, conduit.MaxPacingRate/1e9)
		default:
			return uint64(v), nil
		}
	}
	return 0, bad
}

func (c *Config) checkPacing() error {
	p := &c.Pacing
	bad := func(key string, err error) error { return &valueError{key: "pacing." + key, err: err} }
	if err := oneOf(p.Strategy, []string{conduit.StrategyDelayRate, conduit.StrategyFixed, conduit.StrategyNone}); err != nil {
		return bad("strategy", err)
	}
	fixed := p.Strategy == conduit.StrategyFixed
	switch {
	case fixed && p.Rate == "":
		return bad("rate", errors.New(`is missing: strategy "fixed" sends at a rate, such as "20Mbit"`))
	case !fixed && p.Rate != "":
		return bad("rate", errors.New(`is for strategy = "fixed"; to bound an interface give its [[uplink]] a rate`))
	case fixed:
		if _, err := ParseRate(p.Rate); err != nil {
			return bad("rate", err)
		}
	}
	if f := p.Floor; f != nil && !(*f >= 0 && *f <= 1) {
		return bad("floor", fmt.Errorf("is %v, want 0 to 1", *f))
	}
	if f := p.CriticalShare; f != nil && !(*f > 0 && *f <= 1) {
		return bad("critical_share", fmt.Errorf("is %v, want more than 0, and at most 1", *f))
	}
	return nil
}

// PacingSettings returns the settings as the node takes them.
func (c *Config) PacingSettings() conduit.Pacing {
	out := conduit.Pacing{Strategy: c.Pacing.Strategy}
	if c.Pacing.Rate != "" {
		rate, _ := ParseRate(c.Pacing.Rate) // was checked
		out.Rate = float64(rate)
	}
	if f := c.Pacing.Floor; f != nil {
		if out.Floor = *f; *f == 0 {
			out.Floor = -1 // there, 0 is the default
		}
	}
	if f := c.Pacing.CriticalShare; f != nil {
		out.CriticalShare = *f
	}
	return out
}

// NoDSCP reports whether the outer packets stay without a code point.
func (c *Config) NoDSCP() bool { return c.Transport.DSCP != nil && !*c.Transport.DSCP }
