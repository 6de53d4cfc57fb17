// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	msec := time.Millisecond
	var hundred []time.Duration
	for _, i := range rand.Perm(100) {
		hundred = append(hundred, time.Duration(i+1)*msec)
	}
	tests := []struct {
		name string
		in   []time.Duration
		want Latency
	}{
		{"none", nil, Latency{}},
		{"one", []time.Duration{3 * msec}, Latency{1, 3 * msec, 3 * msec, 3 * msec, 3 * msec}},
		{"two", []time.Duration{9 * msec, 3 * msec}, Latency{2, 3 * msec, 9 * msec, 9 * msec, 9 * msec}},
		{"hundred", hundred, Latency{100, 50 * msec, 90 * msec, 99 * msec, 100 * msec}},
	}
	for _, tt := range tests {
		if got := Summarize(tt.in); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
	b, err := json.Marshal(Summarize([]time.Duration{1500 * time.Microsecond}))
	if want := `{"count":1,"p50_ms":1.5,"p90_ms":1.5,"p99_ms":1.5,"max_ms":1.5}`; err != nil || string(b) != want {
		t.Errorf("JSON = %s, %v; want %s", b, err, want)
	}
}

func TestParseStat(t *testing.T) {
	line := "42 (a ) b) S 1 42 42 0 -1 4194560 2 0 0 0 150 50 0 0 20 0 9 0 1 2 3"
	if d, err := parseStat(line); err != nil || d != 2*time.Second {
		t.Errorf("CPU time = %v, %v; want 2s", d, err)
	}
	for _, bad := range []string{"", "42 (x", "42 (x) S 1", "42 (x) S 1 2 3 4 5 6 7 8 9 10 a b c"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParseStatus(t *testing.T) {
	v := parseStatus([]byte("Name:\thub\nVmHWM:\t   200 kB\nVmRSS:\t   100 kB\nThreads:\t7\n"))
	if v["VmRSS"] != 100 || v["VmHWM"] != 200 || v["Threads"] != 7 {
		t.Errorf("status = %v", v)
	}
}
