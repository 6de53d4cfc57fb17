// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/hub"
)

// TestReporter reports on time, goes on after failures with one line of log, and
// takes the interval that the hub asks for.
func TestReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu turn
		mu.Lock()
		var log bytes.Buffer
		var at []time.Duration
		start := time.Now()
		var answer error
		next := time.Duration(0)
		r := &reporter{
			log: slog.New(slog.NewTextHandler(&log, nil)), version: "v9", started: start,
			epoch:  func() uint32 { return 4 },
			status: func(context.Context) (*conduit.Status, error) { return &conduit.Status{}, nil },
			send: func(_ context.Context, m hub.Report) (time.Duration, error) {
				mu.Lock()
				defer mu.Unlock()
				if m.Version != "v9" || m.PSKEpoch != 4 || m.Started != start || m.Status == nil {
					t.Errorf("report %+v", m)
				}
				at = append(at, time.Since(start))
				return next, answer
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.run(ctx) }()
		mu.pass(100 * time.Second)
		if n := len(at); n < 10 || n > 11 {
			t.Errorf("%d reports in 100 s: %v", n, at)
		}
		if d := at[0]; d < 9*time.Second || d > 10*time.Second {
			t.Errorf("first report after %v", d)
		}
		answer = hub.ErrDown
		mu.pass(time.Minute)
		answer = errors.New("refused")
		mu.pass(time.Minute)
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines of log, want 1:\n%s", n, log.String())
		}
		answer, next, at = nil, time.Minute, nil
		mu.pass(11*time.Second + 10*time.Minute)
		if n := len(at); n < 10 || n > 12 {
			t.Errorf("%d reports in 10 minutes of one each", n)
		}
		next = time.Nanosecond
		mu.pass(66 * time.Second)
		at = nil
		mu.pass(10 * time.Second)
		if n := len(at); n > 12 {
			t.Errorf("%d reports in 10 s", n)
		}
		cancel()
		<-done
	})
}

// turn is held by whoever may look at a test's variables.
type turn struct{ sync.Mutex }

// pass lets fake time go by, and what is due in it be done.
func (m *turn) pass(d time.Duration) {
	m.Unlock()
	time.Sleep(d)
	synctest.Wait()
	m.Lock()
}
