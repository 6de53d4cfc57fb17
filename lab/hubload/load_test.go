// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
)

func open(t *testing.T, cfg Config) (context.Context, *Lab) {
	t.Helper()
	cfg.Bin = build.ForTest(t).Dispatch
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	l, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return ctx, l
}

// TestLoad makes every measurement in small: two scopes of 25 nodes.
func TestLoad(t *testing.T) {
	ctx, l := open(t, Config{Sites: 2})
	joins, err := l.Join(ctx, 50)
	if err != nil {
		t.Fatal(err)
	}
	if joins.Addresses != 50 || joins.Latency.Count != 50 {
		t.Errorf("joins: %+v", joins)
	}
	conn, f, err := l.Connect(ctx, ConnectConfig{Nodes: 50, Rate: 500, Settle: time.Millisecond, Idle: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if conn.RSSAfter == 0 || conn.Losses != 0 || f.Up() != 50 {
		t.Errorf("connect: %+v, %d up%s", conn, f.Up(), f.Errors())
	}
	if v := f.Views(); v.Snapshots != 50 || v.Duplicates != 0 {
		t.Errorf("after the first sync: %+v", v)
	}
	// In its scope each node hears of the others that come.
	if f.presence.Load() == 0 {
		t.Error("nobody heard of anybody's presence")
	}

	for change, want := range map[string]int{ChangeTags: 25, ChangeJoin: 25, ChangeRevoke: 50} {
		r, err := l.Fanout(ctx, f, FanoutConfig{Change: change, Changes: 2, Pause: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if r.Watchers != want || r.Missed != 0 || r.Strays != 0 || r.Latency.Count != 2*want {
			t.Errorf("fanout of %s: %+v, want %d watchers", change, r, want)
		}
	}

	sig, err := l.Signal(ctx, f, SignalConfig{Rate: 200, Duration: 500 * time.Millisecond, Senders: 25, Absent: 10})
	if err != nil {
		t.Fatal(err)
	}
	if sig.Sent != 100 || sig.Absent != 10 || sig.Refused != 10 || sig.Lost != 0 || sig.Latency.Count != 90 {
		t.Errorf("signal: %+v", sig)
	}

	f.cfg.FirstRetry = 300 * time.Millisecond
	back, err := l.Resync(ctx, f, ResyncConfig{Missed: 4})
	if err != nil {
		t.Fatal(err)
	}
	// Each of the four joins concerns one of the two scopes.
	if back.Snapshots != 0 || back.Resyncs != 0 || back.Duplicates != 0 || back.Deltas != 4*25 || f.Up() != 50 {
		t.Errorf("resync: %+v, %d up%s", back, f.Up(), f.Errors())
	}
	if n := f.disorder.Load(); n != 0 {
		t.Errorf("%d events out of order", n)
	}
}

// TestState finds the nodes of an earlier run, and a node that sends what it has
// stored gets no snapshot from the hub that was stopped in between.
func TestState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	ctx, l := open(t, Config{Dir: dir})
	if err := l.Enrol(ctx, 3); err != nil {
		t.Fatal(err)
	}
	l.Close()
	ctx, l = open(t, Config{Dir: dir})
	if err := l.Enrol(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if len(l.ids) != 3 {
		t.Errorf("%d nodes, want the 3 of before", len(l.ids))
	}
	f, err := l.Gather(ctx, 3, 0, FleetConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Up() != 3 {
		t.Errorf("%d nodes are up", f.Up())
	}
}

func TestTokenPin(t *testing.T) {
	pin := "0123456789012345678901234567890123456789012"
	for _, bad := range []string{"", "bxt1.a.b", "bxt2.a.b." + pin, "bxt1.a.b.short"} {
		if _, err := tokenPin(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if got, err := tokenPin("bxt1.a.b." + pin + ".mesh"); err != nil || got != pin {
		t.Errorf("pin = %q, %v", got, err)
	}
}
