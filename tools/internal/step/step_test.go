// SPDX-License-Identifier: Apache-2.0

package step

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestRunnerCountsAndNames(t *testing.T) {
	var out bytes.Buffer
	r := NewRunner(&out)
	ctx := t.Context()
	quiet := func(_ context.Context, log *Log) error { log.Printf("secret of the good"); return nil }
	bad := func(_ context.Context, log *Log) error { log.Printf("what went wrong"); return errors.New("broken") }
	skip := func(context.Context, *Log) error { return Skip("no tool") }

	if !r.Run(ctx, "good", quiet) {
		t.Error("Run(good) = false")
	}
	if r.Run(ctx, "bad", bad) {
		t.Error("Run(bad) = true")
	}
	if !r.Run(ctx, "absent", skip) {
		t.Error("Run(absent) = false")
	}
	err := r.Finish(ctx)
	if err == nil || err.Error() != "failed: bad" {
		t.Errorf("Finish() = %v, want failed: bad", err)
	}
	got := out.String()
	for _, want := range []string{"ok    good", "what went wrong\nFAIL  bad", "skip  absent", "\n1 passed, 1 failed\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("output lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "secret of the good") {
		t.Errorf("output of a step that passed is shown:\n%s", got)
	}
}

func TestStoppedRunFails(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := NewRunner(&bytes.Buffer{})
	if r.Run(ctx, "never", func(context.Context, *Log) error { t.Error("step ran"); return nil }) {
		t.Error("Run after cancel = true")
	}
	if err := r.Finish(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Finish() = %v, want context.Canceled", err)
	}
}

func TestLogShowsResultLinesOnly(t *testing.T) {
	var out bytes.Buffer
	log := &Log{out: &out, tail: true}
	for _, chunk := range []string{"noise\nok  \tpkg", "/a\t0.1s\n", "--- FAIL: TestX (0.00s)\nmore"} {
		fmt.Fprint(log, chunk)
	}
	want := "      ok  \tpkg/a\t0.1s\n      --- FAIL: TestX (0.00s)\n"
	if out.String() != want {
		t.Errorf("shown = %q, want %q", out.String(), want)
	}
}

func TestCmdReportsFailure(t *testing.T) {
	log := &Log{out: &bytes.Buffer{}}
	if err := (Cmd{}).Run(t.Context(), log, "go", "no-such-command"); err == nil {
		t.Error("Run of a bad command = nil")
	}
	if !strings.Contains(log.buf.String(), "no-such-command") {
		t.Errorf("log = %q", log.buf.String())
	}
}
