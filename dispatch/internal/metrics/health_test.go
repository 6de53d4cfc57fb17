// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func get(h http.Handler, url string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, url, nil))
	return w.Code, w.Body.String()
}

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			bad  atomic.Pointer[error]
			runs atomic.Int32
		)
		db := Check{Name: "database", Run: func(context.Context) error {
			runs.Add(1)
			if e := bad.Load(); e != nil {
				return *e
			}
			return nil
		}}
		h := NewHealth(nil, []Check{db, {"other", func(context.Context) error { return nil }}})
		for range 10 {
			if code, body := get(h.Handler(), "/readyz"); code != 200 || body != "ok\n" {
				t.Fatalf("%d %q", code, body)
			}
		}
		if runs.Load() != 1 {
			t.Errorf("ten probes ran the check %d times", runs.Load())
		}
		must(t, h.Ready(t.Context()))
		err := errors.New("disk full")
		bad.Store(&err)
		time.Sleep(checkAge)
		if code, body := get(h.Handler(), "/readyz"); code != 503 || body != "failing: database\n" {
			t.Errorf("%d %q", code, body)
		}
		if err := h.Ready(t.Context()); err == nil || err.Error() != "database: disk full" {
			t.Errorf("Ready: %v", err)
		}
		code, body := get(h.Handler(), "/readyz?verbose")
		var got struct {
			Status string
			Checks []outcome
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil || code != 503 {
			t.Fatalf("%d %s: %v", code, body, err)
		}
		if got.Status != "failing" || len(got.Checks) != 2 || got.Checks[0] != (outcome{Name: "database", Error: "disk full"}) || !got.Checks[1].OK {
			t.Errorf("verbose: %+v", got)
		}
		if code, body := get(h.Handler(), "/healthz"); code != 200 || body != "ok\n" {
			t.Errorf("healthz: %d %q", code, body)
		}
		if code, _ := get(h.Handler(), "/"); code != 404 {
			t.Errorf("/: %d", code)
		}
	})
}

// TestHealthHanging shows that a check that hangs fails in time and is not run
// twice at once.
func TestHealthHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var runs atomic.Int32
		h := NewHealth([]Check{{"writer", func(context.Context) error {
			runs.Add(1)
			<-release
			return nil
		}}, {"patient", func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}}, nil)
		for range 3 {
			begin := time.Now()
			code, body := get(h.Handler(), "/healthz?verbose")
			if code != 503 || strings.Count(body, "no answer in 2s") != 2 || time.Since(begin) != CheckTime {
				t.Errorf("%d after %v: %s", code, time.Since(begin), body)
			}
			synctest.Wait()
		}
		if runs.Load() != 1 {
			t.Errorf("the hanging check runs %d times", runs.Load())
		}
		close(release)
		synctest.Wait()
		if _, body := get(h.Handler(), "/healthz?verbose"); !strings.Contains(body, `{"name":"writer","ok":true`) {
			t.Errorf("after it came back: %s", body)
		}
		time.Sleep(CheckTime)
	})
}

func TestChecks(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := ln.Addr()
	listen := ListenCheck("node", func() net.Addr { return addr })
	must(t, listen.Run(t.Context()))
	must(t, ln.Close())
	dir := t.TempDir()
	at := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	for _, tt := range []struct {
		name  string
		check Check
		want  string
	}{
		{"closed", listen, "refused"},
		{"not_open", ListenCheck("x", func() net.Addr { return nil }), "not open"},
		{"room", DiskCheck(dir, 1), ""},
		{"full", DiskCheck(dir, math.MaxUint64), "MiB free, want"},
		{"no_dir", DiskCheck(dir+"/x", 0), "read free space"},
		{"valid", ExpiryCheck("x", at(time.Hour)), ""},
		{"expired", ExpiryCheck("x", at(-time.Hour)), "expired at"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.check.Run(t.Context())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}
