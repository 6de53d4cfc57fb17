// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/hubload"
)

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"},
		{"joins", "--nodes", "0"},
		{"joins", "--nodes", "many"},
		{"joins", "extra"},
		{"fanout", "--change", "weather"},
	} {
		var out, errs bytes.Buffer
		err := newApp(&out, &errs).RunContext(t.Context(), append([]string{"hubload"}, args...))
		if !errors.As(err, new(usageError)) {
			t.Errorf("hubload %s: %v, want a usage error", strings.Join(args, " "), err)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, cmd := range []string{"joins", "connect", "fanout", "resync", "signal", "all"} {
		var out bytes.Buffer
		if err := newApp(&out, &out).RunContext(t.Context(), []string{"hubload", cmd, "--help"}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"hubload " + cmd + " --nodes", "--json", "--state"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("help of %s lacks %q:\n%s", cmd, want, out.String())
			}
		}
	}
}

// TestVerdicts: a figure beside its goal, either way.
func TestVerdicts(t *testing.T) {
	lat := func(p99 time.Duration) hubload.Latency { return hubload.Latency{Count: 1, P99: p99} }
	var w bytes.Buffer
	tests := []struct {
		name string
		got  bool
		want bool
	}{
		{"joins", joinsText(&w, hubload.JoinsResult{PerSecond: 500}), true},
		{"few joins", joinsText(&w, hubload.JoinsResult{PerSecond: 499}), false},
		{"memory", connectText(&w, hubload.ConnectResult{KBPerNodeWhole: 128}), true},
		{"much memory", connectText(&w, hubload.ConnectResult{KBPerNodeWhole: 128.1}), false},
		{"to all", fanoutText(&w, hubload.FanoutResult{Watchers: 10000, Latency: lat(500 * time.Millisecond)}), true},
		{"to a scope, slowly", fanoutText(&w, hubload.FanoutResult{Watchers: 200, Latency: lat(26 * time.Millisecond)}), false},
		{"to all but one", fanoutText(&w, hubload.FanoutResult{Watchers: 200, Missed: 1}), false},
		{"back", resyncText(&w, []hubload.ResyncResult{{Seconds: 30}}), true},
		{"one snapshot", resyncText(&w, []hubload.ResyncResult{{Seconds: 3}, {Seconds: 3, Snapshots: 1}}), false},
		{"signals", signalText(&w, hubload.SignalResult{Latency: lat(5 * time.Millisecond), Absent: 2, Refused: 2}), true},
		{"one lost", signalText(&w, hubload.SignalResult{Lost: 1}), false},
		{"one not sent back", signalText(&w, hubload.SignalResult{Absent: 2, Refused: 1}), false},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: met = %v, want %v", tt.name, tt.got, tt.want)
		}
	}
}
