// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"fmt"
	"math"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane"
	"github.com/bauxite-mesh/bauxite/conduit/policy"
)

// Strategies of Pacing.
const (
	StrategyDelayRate = "delay-rate"
	StrategyFixed     = "fixed"
	StrategyNone      = "none"
)

// Defaults and limits of Pacing. Rates are in bits per second.
const (
	DefaultPacingFloor   = 0.3
	DefaultCriticalShare = 0.4
	// MinPacingRate is the least rate that can be asked for; a slower link cannot
	// carry what keeps a session alive.
	MinPacingRate = 64e3
	// MaxPacingRate is the largest.
	MaxPacingRate = 100e9
)

// Pacing says how fast the node sends on each path, so that what waits does so here,
// where Critical passes it, and not in a modem's queue. The zero value has the
// defaults.
type Pacing struct {
	// Strategy is "delay-rate", also the zero value, which measures what each path
	// carries; "fixed", which sends at Rate; or "none", which sends at once.
	Strategy string
	// Rate is that of "fixed", for each path, in bits per second on the wire.
	Rate float64
	// Floor is for "delay-rate" beside traffic of others that fills the bottleneck's
	// queue, where giving way would leave nothing: the share of the largest rate of
	// the last ten minutes that is kept all the same, at the cost of delay. Zero means
	// 0.3; a negative value means none: others go first.
	Floor float64
	// CriticalShare is how much of the rate Critical may take before the rest of it is
	// put into a lower lane; zero means 0.4.
	CriticalShare float64
}

// Check reports what is wrong with p, if anything.
func (p *Pacing) Check() error {
	switch p.Strategy {
	case "", StrategyDelayRate, StrategyNone:
		if p.Rate != 0 {
			return fmt.Errorf("pacing: a rate wants the strategy %q", StrategyFixed)
		}
	case StrategyFixed:
		if p.Rate == 0 {
			return fmt.Errorf("pacing: strategy %q wants a rate", StrategyFixed)
		}
		if err := checkRate(p.Rate); err != nil {
			return fmt.Errorf("pacing: %w", err)
		}
	default:
		return fmt.Errorf("pacing: unknown strategy %.40q: want %s, %s or %s", p.Strategy, StrategyDelayRate, StrategyFixed, StrategyNone)
	}
	if math.IsNaN(p.Floor) || p.Floor > 1 {
		return fmt.Errorf("pacing: floor %v: want at most 1", p.Floor)
	}
	if !(p.CriticalShare >= 0 && p.CriticalShare <= 1) {
		return fmt.Errorf("pacing: critical share %v: want more than 0, and at most 1", p.CriticalShare)
	}
	return nil
}

// checkRate checks a rate in bits per second.
func checkRate(rate float64) error {
	if !(rate >= MinPacingRate && rate <= MaxPacingRate) {
		return fmt.Errorf("rate %v bit/s: want %.0f to %.0f", rate, float64(MinPacingRate), float64(MaxPacingRate))
	}
	return nil
}

// withDefaults returns p with its defaults filled in.
func (p Pacing) withDefaults() Pacing {
	if p.Strategy == "" {
		p.Strategy = StrategyDelayRate
	}
	if p.Floor == 0 {
		p.Floor = DefaultPacingFloor
	}
	if p.CriticalShare == 0 {
		p.CriticalShare = DefaultCriticalShare
	}
	return p
}

// strategy makes what paces a path.
func (n *Node) strategy(to *dataplane.Peer, way dataplane.Path) congestion.Strategy {
	p := n.cfg.Pacing.withDefaults()
	switch p.Strategy {
	case StrategyNone:
		return congestion.NewNull()
	case StrategyFixed:
		return congestion.NewFixed(p.Rate / 8)
	}
	return n.rates.remember(to.ID, way, func(initial float64) congestion.Strategy {
		return congestion.NewDelayRate(congestion.DelayRateConfig{Initial: initial, Floor: p.Floor})
	})
}

// overBudget tells of a budget that is exceeded. It runs in the packet path.
func (n *Node) overBudget(a policy.Alarm) {
	n.log.Warn("more than its budget allows", "rule", a.Rule, "node", a.Node.Short(), "lane", a.Lane, "packets", a.Packets, "denied", a.Denied)
}
