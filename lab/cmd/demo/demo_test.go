// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestTimeLimit(t *testing.T) {
	for _, tt := range []struct {
		text string
		want time.Duration // 0: an error
	}{
		{"", defaultSeconds * time.Second},
		{"1", time.Second},
		{"600", 10 * time.Minute},
		{"0", 0},
		{"-5", 0},
		{"soon", 0},
		{"99999999999999999999", 0},
	} {
		got, err := timeLimit(tt.text)
		if got != tt.want || (err != nil) != (tt.want == 0) {
			t.Errorf("timeLimit(%q) = %v, %v, want %v", tt.text, got, err, tt.want)
		}
	}
}

func TestCounters(t *testing.T) {
	for _, tt := range []struct{ raw, want string }{
		{`{"sent_packets": 3, "dropped": 0, "bytes": 120}`, "bytes 120, sent packets 3"},
		{`{}`, "0"},
		{`{"a": 0}`, "0"},
		{`7`, "7"},
		{``, ""},
	} {
		if got := counters(json.RawMessage(tt.raw)); got != tt.want {
			t.Errorf("counters(%s) = %q, want %q", tt.raw, got, tt.want)
		}
	}
}

func TestBar(t *testing.T) {
	if got := bar(0, 100); strings.Contains(got, "#") || len(got) != 26 {
		t.Errorf("bar at 0 = %q", got)
	}
	if got := bar(100, 100); strings.Contains(got, ".") || len(got) != 26 {
		t.Errorf("bar at the end = %q", got)
	}
}

// TestPlainScreen shows that a pipe gets whole lines without escapes.
func TestPlainScreen(t *testing.T) {
	var out bytes.Buffer
	d := &demo{screen: &screen{w: &out}}
	if err := d.step("one", func(note func(string, ...any)) error {
		note("half")
		note("all")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	err := d.step("two", func(func(string, ...any)) error { return errors.New("broken") })
	if err == nil || err.Error() != "two: broken" {
		t.Errorf("error = %v, want its step named", err)
	}
	text := out.String()
	if strings.ContainsAny(text, "\x1b\r") || strings.Contains(text, "half") || !strings.Contains(text, "✓ one: all (") || !strings.Contains(text, "✗ two\n") {
		t.Errorf("output = %q", text)
	}
}

// TestLiveScreen shows that a changing line is cleared before one that stays.
func TestLiveScreen(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, live: true, color: true}
	s.progress("at %d %%", 50)
	s.say("done")
	if got, want := out.String(), "\x1b[2mat 50 %\x1b[0m\r\x1b[Kdone\n"; got != want {
		t.Errorf("output = %q, want %q", got, want)
	}
}
