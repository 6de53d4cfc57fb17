// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/latency"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/paths"
)

// The scenarios of lab/latency, in short. Their bounds have room for a machine
// that does other things as well, and yet nothing that fills the queue of a
// bottleneck comes near them; the exact figures are those of lab/cmd/latency.

// TestLatencyFilled has the machine to itself.
func TestLatencyFilled(t *testing.T) {
	r, err := latency.Fill(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), latency.FillOptions{
		Bottleneck: latency.Bottleneck{Where: latency.Router, Rate: 20_000_000},
		Idle:       2 * time.Second, Load: 6 * time.Second, Flows: 4, Flood: 30_000_000,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("idle p50 %v, p99 %v; loaded p50 %v, p99 %v, %d of %d lost; %.0f %% of the link, %d dropped", r.Idle.P50, r.Idle.P99,
		r.Loaded.P50, r.Loaded.P99, r.Loaded.Lost(), r.Loaded.Sent, 100*r.Share, r.Dropped)
	// The queue alone is 104 ms.
	atMost(t, "what Bulk adds to the median of Critical", r.Loaded.P50-r.Idle.P50, 25*time.Millisecond)
	atMost(t, "what Bulk adds to the p99 of Critical", r.Loaded.P99-r.Idle.P99, 75*time.Millisecond)
	if r.Dropped > 200 {
		t.Errorf("the bottleneck dropped %d packets: its queue was full", r.Dropped)
	}
	if r.Loaded.Loss() > 0.01 {
		t.Errorf("%d of %d requests were lost", r.Loaded.Lost(), r.Loaded.Sent)
	}
	if r.Share < 0.6 {
		t.Errorf("Bulk took %.0f %% of the link, want most of it", 100*r.Share)
	}
}

func TestLatencyImages(t *testing.T) {
	t.Parallel()
	r, err := latency.Image(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), latency.FillOptions{
		Bottleneck: latency.Bottleneck{Where: latency.Router, Rate: 20_000_000},
		Idle:       2 * time.Second, Load: 6 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sent, %d whole, %d in part; Critical p50 %v, then %v; joint states p50 %v, then %v", r.Sent, r.Whole, r.Partial,
		r.Idle.P50, r.Loaded.P50, r.JointIdle.P50, r.JointLoaded.P50)
	if r.Whole < 50 || r.Partial > r.Whole/20 {
		t.Errorf("%d datagrams came whole and %d in part, want some and none", r.Whole, r.Partial)
	}
	atMost(t, "what images add to the median of Critical", r.Loaded.P50-r.Idle.P50, 25*time.Millisecond)
	atMost(t, "what images add to the median of joint states", r.JointLoaded.P50-r.JointIdle.P50, 40*time.Millisecond)
}

func TestLatencyLossy(t *testing.T) {
	t.Parallel()
	r, err := latency.Loses(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)),
		latency.LossOptions{Loss: 0.05, Clean: 3 * time.Second, Load: 20 * time.Second, HubAway: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first %.1f %% lost, then %.2f %% of %d, %.0f %% more was sent", 100*r.First.Loss(), 100*r.Rest.Loss(), r.Rest.Sent, 100*r.Load)
	// 9.75 % of round trips lose a packet on the way.
	if r.Rest.Loss() > 0.03 {
		t.Errorf("%.1f %% of the requests were lost, want fewer than 3", 100*r.Rest.Loss())
	}
}
