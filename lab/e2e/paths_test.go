// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/paths"
	"github.com/bauxite-mesh/bauxite/lab/probe"
)

// The scenarios of lab/paths, in short. What must never happen (a packet lost,
// a packet twice) is exact; times have room for a busy machine, and the exact
// ones are those of lab/cmd/paths.

// atMost fails the test where a time is over its limit.
func atMost(t *testing.T, what string, got, limit time.Duration) {
	t.Helper()
	if got > limit {
		t.Errorf("%s took %v, want at most %v", what, got, limit)
		return
	}
	t.Logf("%s: %v", what, got.Round(time.Millisecond))
}

// whole fails the test where a packet was lost or came twice.
func whole(t *testing.T, what string, d *probe.Delivery) {
	t.Helper()
	t.Logf("%s: %v", what, d)
	if d.Sent == 0 || d.Lost > 0 || d.Duplicated > 0 {
		t.Errorf("%s: %d sent, %d lost %v, %d twice, want none lost and none twice", what, d.Sent, d.Lost, d.Missing[:min(10, len(d.Missing))], d.Duplicated)
	}
}

func TestPathsNAT(t *testing.T) {
	t.Parallel()
	none, full, port, sym := paths.NATs[0], paths.NATs[1], paths.NATs[2], paths.NATs[3]
	m, err := paths.NewMatrix(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, cell := range [][2]string{{port, port}, {full, sym}, {none, sym}, {sym, port}, {sym, sym}} {
		t.Run(cell[0]+" and "+cell[1], func(t *testing.T) {
			meeting, err := m.Prepare(within(t, startTime), cell[0], cell[1])
			if err != nil {
				t.Fatal(err)
			}
			c, err := meeting.Meet(within(t, time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if direct := c.Path == fleet.PathDirect; direct != paths.Direct(c.A, c.B) || c.Path == fleet.PathNone {
				t.Errorf("path = %s, want direct: %v", c.Path, paths.Direct(c.A, c.B))
			}
			t.Logf("%s first, then %s", c.First, c.Path)
			atMost(t, "the first answer", c.Cold, 5*time.Second)
			for _, d := range c.Known {
				atMost(t, "the first answer of a known peer", d, 3*time.Second)
			}
		})
	}
}

func TestPathsUpgrade(t *testing.T) {
	t.Parallel()
	c, err := paths.Upgrade(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, direct after %v, relay again after %v", c.Relay, c.Upgrade, c.Fallback)
	for i, what := range []string{"one way", "other way"} {
		whole(t, what, &c.Streams[i])
		if n := c.Streams[i].Reordered; n > 0 {
			t.Errorf("%s: %d out of order", what, n)
		}
	}
}

func TestPathsTwoUplinks(t *testing.T) {
	for _, cut := range []paths.Cut{paths.LinkDown, paths.Unplugged, paths.Blackholed} {
		t.Run(string(cut), func(t *testing.T) {
			t.Parallel()
			c, err := paths.CutUplinks(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)),
				paths.CutOptions{Cut: cut, Packets: 1000})
			if err != nil {
				t.Fatal(err)
			}
			if c.FlowErr != nil {
				t.Error(c.FlowErr)
			}
			for i, what := range []string{"own uplink", "peer's uplink"} {
				whole(t, what, &c.Streams[i])
				atMost(t, "the longest pause of TCP, "+what, c.FlowGap[i], 1500*time.Millisecond)
				atMost(t, "using an uplink again", c.Healed[i], 5*time.Second)
			}
		})
	}
}

func TestPathsSkew(t *testing.T) {
	t.Parallel()
	all, err := paths.Skews(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), 200, 0, 1500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		t.Logf("later by %v: %d on the wire, %d of them with copies; %v", s.Delay, s.Wire, s.Copies, &s.Stream)
		if s.Wire == 0 || s.Missed > 0 {
			t.Errorf("later by %v: saw %d packets, the capture missed %d", s.Delay, s.Wire, s.Missed)
		}
		if s.Stream.Got < s.Wire || s.Stream.Duplicated > 0 {
			t.Errorf("later by %v: %d packets on the wire, %d at the application, %d twice", s.Delay, s.Wire, s.Stream.Got, s.Stream.Duplicated)
		}
	}
}

func TestPathsRoaming(t *testing.T) {
	for _, o := range []paths.RoamOptions{
		{Move: paths.NewAddress}, {Move: paths.NewAddress, FarSide: true}, {Move: paths.HandOver, FarSide: true},
	} {
		name := string(o.Move) + ", the mover sends"
		if o.FarSide {
			name = string(o.Move) + ", the far side sends"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Limit = 15 * time.Second
			r, err := paths.Roaming(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), o)
			if err != nil {
				t.Fatal(err)
			}
			atMost(t, "traffic", r.Again, 3*time.Second)
		})
	}
}

func TestPathsHubAway(t *testing.T) {
	for _, lan := range []bool{false, true} {
		name := "public"
		if lan {
			name = "one LAN"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := paths.HubAway(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), 4*time.Second, lan)
			if err != nil {
				t.Fatal(err)
			}
			whole(t, "one way", &r.Streams[0])
			whole(t, "other way", &r.Streams[1])
			atMost(t, "connecting again without the hub", r.Back, 8*time.Second)
		})
	}
}

func TestPathsUDPBlocked(t *testing.T) {
	t.Parallel()
	r, err := paths.UDPBlocked(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if r.Path != fleet.PathHubRelay {
		t.Errorf("path = %s, want %s", r.Path, fleet.PathHubRelay)
	}
	t.Logf("alone %v of %d, beside %.1f Mbit/s of Bulk %v of %d", r.Idle.P99, r.Idle.Got, r.BulkMbit, r.Loaded.P99, r.Loaded.Got)
	if r.Idle.Got < r.Idle.Sent || r.Loaded.Got < r.Loaded.Sent*99/100 || r.BulkMbit <= 0.1 {
		t.Errorf("%d of %d answered alone, %d of %d beside Bulk, want all; Bulk %.2f Mbit/s", r.Idle.Got, r.Idle.Sent, r.Loaded.Got, r.Loaded.Sent, r.BulkMbit)
	}
	atMost(t, "the first answer", r.First, 5*time.Second)
	atMost(t, "the first answer of a known peer", r.Known, 4*time.Second)
	atMost(t, "Critical beside Bulk, p99", r.Loaded.P99, 1500*time.Millisecond)
}

// TestPathsAttack has the machine to itself.
func TestPathsAttack(t *testing.T) {
	sys := paths.Bauxite(build.ForTest(t))
	all, err := paths.Attacks(within(t, time.Minute), netns.New(t), sys, 1500*time.Millisecond, paths.JunkOf(sys)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		t.Logf("%s: %d/s, p99 %v in quiet, %v under attack", a.Junk, a.Rate, a.Quiet.P99, a.Loaded.P99)
		if a.Answers > 0 {
			t.Errorf("%s: %d packets went to the attacker", a.Junk, a.Answers)
		}
		if a.Loaded.Got < a.Loaded.Sent*98/100 {
			t.Errorf("%s: %d of %d answered", a.Junk, a.Loaded.Got, a.Loaded.Sent)
		}
		if grown := a.Grown(); grown > 32<<20 {
			t.Errorf("%s: memory grew by %d bytes", a.Junk, grown)
		}
	}
	if !slices.ContainsFunc(all, func(a paths.Attack) bool { return a.Rate > 5000 }) {
		t.Errorf("the attacker came to no rate worth the name: %+v", all)
	}
}

func TestPathsNarrow(t *testing.T) {
	t.Run("from the start", func(t *testing.T) {
		t.Parallel()
		r, err := paths.NarrowPath(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), 1280)
		if err != nil {
			t.Fatal(err)
		}
		atMost(t, "the first full-size packet", r.Full, 3*time.Second)
		if r.Mbit <= 0.5 {
			t.Errorf("a TCP transfer ran at %.2f Mbit/s", r.Mbit)
		}
	})
	t.Run("under a flow", func(t *testing.T) {
		t.Parallel()
		r, err := paths.Narrowing(within(t, time.Minute), netns.New(t), paths.Bauxite(build.ForTest(t)), 1280, 6*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		atMost(t, "the pause of TCP when the path became narrow", r.FlowGap, 4*time.Second)
		if r.Found > 1280-28 {
			t.Errorf("the path's MTU is %d, then %d", r.Wide, r.Found)
		}
		whole(t, "small packets", &r.Critical)
	})
}
