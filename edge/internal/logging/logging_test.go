// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestNew(t *testing.T) {
	for _, tc := range []struct {
		format, level string
		colour        bool
		want          string
	}{
		{"json", "info", false, `"part":"hub","err":"boom",`},
		{"console", "warn", false, "WRN link is down err=boom part=hub"},
		{"console", "debug", true, "\x1b["},
		{"json", "error", false, ""},
	} {
		var b bytes.Buffer
		l, err := New(&b, tc.format, tc.level, tc.colour)
		if err != nil {
			t.Fatal(err)
		}
		l.With("part", "hub").Warn("link is down", "err", errors.New("boom"))
		if got := b.String(); !strings.Contains(got, tc.want) || (tc.want == "") != (got == "") {
			t.Errorf("%s %s: %q, want %q in it", tc.format, tc.level, got, tc.want)
		}
	}
	for _, bad := range [][2]string{{"xml", "info"}, {"json", "loud"}, {"json", "fatal"}, {"", "info"}} {
		if _, err := New(nil, bad[0], bad[1], false); err == nil {
			t.Errorf("New(%q, %q) accepted", bad[0], bad[1])
		}
	}
}
