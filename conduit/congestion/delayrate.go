// SPDX-License-Identifier: Apache-2.0

package congestion

// DelayRateConfig tunes a [DelayRate]. The zero value is fit for use.
type DelayRateConfig struct {
	// Initial is where the search for the rate begins, bytes per second. Zero
	// means 250e3 (2 Mbit/s). Half of what the network gave last time is a good one.
	Initial float64
	// Floor is the share of the largest rate of the last ten minutes that Bulk
	// keeps beside foreign flows that fill the queue until it drops. Zero means
	// 0.3, negative none: Bulk then yields nearly all.
	Floor float64
	// PacketSize is the wire bytes of a full Bulk packet. Zero means 1410.
	PacketSize int
}

// DelayRate finds the rate of a path from the delay of its packets and keeps
// the queue in the path's bottleneck within some milliseconds.
type DelayRate struct {
	cfg DelayRateConfig
	constant
}

// NewDelayRate returns a DelayRate that knows nothing of its path yet.
func NewDelayRate(cfg DelayRateConfig) *DelayRate {
	if cfg.Initial <= 0 {
		cfg.Initial = 250e3
	}
	return &DelayRate{cfg: cfg, constant: constant{name: "delay-rate", rate: clampRate(cfg.Initial)}}
}
