// SPDX-License-Identifier: Apache-2.0

package join

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/hub/hubtest"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
)

func TestApproval(t *testing.T) {
	h := hubtest.New(t)
	h.SetPending(true)
	cfg := Config{Token: h.Token(1, time.Hour).String(), HubURL: h.URL, Home: t.TempDir()}
	if _, err := Run(t.Context(), cfg); !errors.Is(err, ErrPending) {
		t.Fatalf("Run = %v, want ErrPending", err)
	}
	if home.Joined(cfg.Home) {
		t.Error("joined without approval")
	}
	// Ctrl-C, and then the same command again, which sees the approval.
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Wait = time.Hour
	var told []string
	cfg.Progress = func(s string) { told = append(told, s); cancel() }
	if _, err := Run(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want context.Canceled", err)
	}
	if len(told) != 2 || !strings.Contains(told[0], "waits for approval") || told[1] != goesOn {
		t.Errorf("told %q", told)
	}
	cfg.Progress = func(string) { h.SetPending(false) }
	res, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	n, err := home.Load(cfg.Home, time.Now())
	if err != nil || n.Certificate.ID != res.Certificate.ID || h.Redeemed() != 1 {
		t.Errorf("loaded %v, %v; redeemed %d times", n, err, h.Redeemed())
	}
}

// TestWait: the hub may go away while one waits, but not before, and is asked at
// the pace that it names.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var script []error
		asked, told := 0, 0
		try := func() (int, error) {
			err := script[min(asked, len(script)-1)]
			asked++
			return asked, err
		}
		run := func(limit time.Duration, s ...error) (time.Duration, error) {
			script, asked, told = s, 0, 0
			start := time.Now()
			_, err := wait(t.Context(), limit, func(string) { told++ }, try)
			return time.Since(start), err
		}
		p := &pending{text: "node a waits"}
		if took, err := run(time.Hour, p, ErrUnreachable, p, ErrInterrupted, nil); err != nil || asked != 5 || took < 4*askAgain || took > 5*askAgain {
			t.Errorf("approved: %v after %v, asked %d times", err, took, asked)
		}
		if took, err := run(time.Hour, ErrUnreachable); !errors.Is(err, ErrUnreachable) || took != 0 {
			t.Errorf("unreachable from the start: %v after %v", err, took)
		}
		if took, err := run(time.Hour, p, ErrRefused); !errors.Is(err, ErrRefused) || took > 2*askAgain {
			t.Errorf("turned down: %v after %v", err, took)
		}
		if took, err := run(10*time.Minute, &pending{after: time.Minute}); !errors.Is(err, ErrPending) || took > 10*time.Minute || asked > 11 || told < 5 {
			t.Errorf("never approved: %v after %v, asked %d and told %d times", err, took, asked, told)
		}
		if took, err := run(0, p); !errors.Is(err, ErrPending) || took != 0 {
			t.Errorf("no wait: %v after %v", err, took)
		}
	})
}
