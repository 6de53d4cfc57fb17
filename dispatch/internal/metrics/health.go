// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// CheckTime is how long a check may take.
	CheckTime = 2 * time.Second
	// DefaultDiskRoom is the least free space in bytes with which the hub is ready.
	DefaultDiskRoom = 64 << 20
	// checkAge is how old an answer may be: probes must not load the database.
	checkAge = time.Second
)

var errNoAnswer = fmt.Errorf("no answer in %v", CheckTime)

// Check is one condition. Run has CheckTime; a run that takes longer counts as
// failed and is not started again before it returns.
type Check struct {
	Name string
	Run  func(context.Context) error
}

// Health answers whether the hub is alive and ready.
type Health struct{ live, ready []*check }

// NewHealth returns a Health. live are the conditions without which only a restart
// helps; ready are those under which the hub does its work.
func NewHealth(live, ready []Check) *Health {
	wrap := func(in []Check) (out []*check) {
		for _, c := range in {
			out = append(out, &check{Check: c})
		}
		return out
	}
	return &Health{live: wrap(live), ready: wrap(ready)}
}

// Handler serves /healthz and /readyz: 200 where all is well, else 503 with the
// names of the failing checks; with "?verbose" a JSON object with each check.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { answer(w, r, h.live) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { answer(w, r, h.ready) })
	return mux
}

// Ready returns the errors of the failing checks of /readyz, nil where all is well.
func (h *Health) Ready(ctx context.Context) error {
	var errs []error
	for _, o := range run(ctx, h.ready) {
		if !o.OK {
			errs = append(errs, fmt.Errorf("%s: %s", o.Name, o.Error))
		}
	}
	return errors.Join(errs...)
}

type outcome struct {
	Name  string  `json:"name"`
	OK    bool    `json:"ok"`
	Error string  `json:"error,omitempty"`
	MS    float64 `json:"ms"`
}

func answer(w http.ResponseWriter, r *http.Request, checks []*check) {
	outcomes := run(r.Context(), checks)
	status, code := "ok", http.StatusOK
	var failing []string
	for _, o := range outcomes {
		if !o.OK {
			status, code = "failing", http.StatusServiceUnavailable
			failing = append(failing, o.Name)
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Query().Has("verbose") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(struct {
			Status string    `json:"status"`
			Checks []outcome `json:"checks"`
		}{status, outcomes})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	if failing != nil {
		status += ": " + strings.Join(failing, ", ")
	}
	_, _ = fmt.Fprintln(w, status)
}

// run asks all checks at once.
func run(ctx context.Context, checks []*check) []outcome {
	ctx, cancel := context.WithTimeout(ctx, CheckTime)
	defer cancel()
	out := make([]outcome, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { out[i] = c.outcome(ctx) })
	}
	wg.Wait()
	return out
}

type check struct {
	Check

	mu   sync.Mutex    // guards the following
	done chan struct{} // of the run that is under way; nil where there is none
	last outcome
	at   time.Time // of last; zero before the first
}

func (c *check) outcome(ctx context.Context) outcome {
	c.mu.Lock()
	if c.done == nil && !c.at.IsZero() && time.Since(c.at) < checkAge {
		defer c.mu.Unlock()
		return c.last
	}
	if c.done == nil {
		c.done = make(chan struct{})
		go c.execute(c.done)
	}
	done := c.done
	c.mu.Unlock()
	select {
	case <-done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.last
	case <-ctx.Done():
		return outcome{Name: c.Name, Error: errNoAnswer.Error(), MS: CheckTime.Seconds() * 1000}
	}
}

// execute belongs to no request: others wait for the same answer.
func (c *check) execute(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), CheckTime)
	defer cancel()
	begin := time.Now()
	err := c.Run(ctx)
	took := time.Since(begin)
	o := outcome{Name: c.Name, OK: err == nil, MS: float64(took.Microseconds()) / 1000}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		o.Error = errNoAnswer.Error()
	case err != nil:
		o.Error = err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.at, c.done = o, time.Now(), nil
	close(done)
}

// DiskCheck fails where less than least bytes are free for the directory; least 0
// means DefaultDiskRoom.
func DiskCheck(dir string, least uint64) Check {
	if least == 0 {
		least = DefaultDiskRoom
	}
	return Check{Name: "disk", Run: func(context.Context) error {
		free, err := diskFree(dir)
		if errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read free space: %w", err)
		}
		if free < least {
			return fmt.Errorf("%d MiB free, want %d", free>>20, least>>20)
		}
		return nil
	}}
}

// ExpiryCheck fails once the certificate that ends at expires() has expired.
func ExpiryCheck(name string, expires func() time.Time) Check {
	return Check{Name: name, Run: func(context.Context) error {
		if t := expires(); !time.Now().Before(t) {
			return fmt.Errorf("expired at %s", t.UTC().Format(time.RFC3339))
		}
		return nil
	}}
}

// ListenCheck fails where a TCP listener or a unix socket takes no connection.
// addr may return nil while the listener is not open yet.
func ListenCheck(name string, addr func() net.Addr) Check {
	return Check{Name: name, Run: func(ctx context.Context) error {
		a := addr()
		if a == nil {
			return errors.New("not open")
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, a.Network(), a.String())
		if err != nil {
			return err
		}
		return c.Close()
	}}
}
