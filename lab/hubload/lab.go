// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"crypto/x509"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Config is what a Lab needs.
type Config struct {
	// Bin is the built bauxite-dispatch. Required.
	Bin string
	// Dir keeps the hub's state and the nodes' keys from one run to the next, so
	// that nobody has to join again. Empty is a temporary folder.
	Dir string
	// Env is added to the hub's environment, as "GOGC=50".
	Env []string
	// Sites is how many scopes the nodes are divided over; 0 leaves all in the
	// default one.
	Sites int
	// Concurrency is how many machines join at a time; 0 means 32.
	Concurrency int
	// Progress gets a line now and then; nil discards.
	Progress func(format string, args ...any)
}

// Lab is a hub in its own process with the machines that joined it. Its methods
// must not run concurrently.
type Lab struct {
	Hub *Hub

	cfg    Config
	dir    string
	remove bool
	root   *x509.Certificate
	tokens []string // by site
	ids    []Identity
}

// Open starts a hub. Close the lab after use.
func Open(ctx context.Context, cfg Config) (_ *Lab, err error) {
	if cfg.Progress == nil {
		cfg.Progress = func(string, ...any) {}
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 32
	}
	l := &Lab{cfg: cfg, dir: cfg.Dir}
	if l.dir == "" {
		if l.dir, err = os.MkdirTemp("", "hubload"); err != nil {
			return nil, fmt.Errorf("make folder: %w", err)
		}
		l.remove = true
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err = os.MkdirAll(l.hubDir(), 0o700); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	if err = l.load(); err != nil {
		return nil, err
	}
	if l.Hub, err = newHub(ctx, cfg.Bin, l.hubDir(), cfg.Env); err != nil {
		return nil, err
	}
	if err = l.Hub.Start(ctx); err != nil {
		return nil, err
	}
	if err = l.makeTokens(ctx); err != nil {
		return nil, err
	}
	l.root, err = pinnedRoot(ctx, l.Hub.Addr(), l.tokens[0])
	return l, err
}

func (l *Lab) hubDir() string    { return filepath.Join(l.dir, "hub") }
func (l *Lab) nodesFile() string { return filepath.Join(l.dir, "nodes.gob") }

// Close ends the hub and removes a temporary folder.
func (l *Lab) Close() {
	if l.Hub != nil {
		l.Hub.Stop()
	}
	if l.remove {
		_ = os.RemoveAll(l.dir)
	}
}

func (l *Lab) load() error {
	f, err := os.Open(l.nodesFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer f.Close()
		err = gob.NewDecoder(f).Decode(&l.ids)
	}
	if err != nil {
		return fmt.Errorf("read nodes: %w", err)
	}
	return nil
}

func (l *Lab) save() error {
	tmp := l.nodesFile() + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write nodes: %w", err)
	}
	err = errors.Join(gob.NewEncoder(f).Encode(l.ids), f.Close())
	if err == nil {
		err = os.Rename(tmp, l.nodesFile())
	}
	if err != nil {
		return fmt.Errorf("write nodes: %w", err)
	}
	return nil
}

func (l *Lab) makeTokens(ctx context.Context) error {
	for s := range max(1, l.cfg.Sites) {
		req := &dispatchv1.CreateTokenRequest{Uses: 100_000, Ttl: durationpb.New(24 * time.Hour), Note: "hubload"}
		if l.cfg.Sites > 0 {
			req.Site = fmt.Sprintf("site-%02d", s)
		}
		var res dispatchv1.CreateTokenResponse
		if err := l.Hub.Call(ctx, procCreateToken, req, &res); err != nil {
			return err
		}
		l.tokens = append(l.tokens, res.GetToken())
	}
	return nil
}

// JoinsResult is how fast machines join.
type JoinsResult struct {
	Joins       int     `json:"joins"`
	Concurrency int     `json:"concurrency"`
	Seconds     float64 `json:"seconds"`
	PerSecond   float64 `json:"per_second"`
	Latency     Latency `json:"latency"`
	HubCPU      float64 `json:"hub_cpu_ms_per_join"`
	Addresses   int     `json:"distinct_addresses"`
}

// Join lets n machines join, each over a TLS connection of its own and with its
// keys made before the clock starts. They are nodes of the lab from then on.
func (l *Lab) Join(ctx context.Context, n int) (JoinsResult, error) {
	res := JoinsResult{Joins: n, Concurrency: l.cfg.Concurrency}
	apps, err := l.applicants(n)
	if err != nil {
		return res, err
	}
	before, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, err
	}
	v := &verifier{root: l.root}
	ids, took := make([]Identity, n), make([]time.Duration, n)
	var next, done atomic.Int64
	var wg sync.WaitGroup
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	start := time.Now()
	for range l.cfg.Concurrency {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				began := time.Now()
				id, err := apps[i].join(ctx, l.Hub.Addr(), v, l.tokens[apps[i].site], i)
				if err != nil {
					fail(err)
					return
				}
				ids[i], took[i] = *id, time.Since(began)
				if d := done.Add(1); d%1000 == 0 {
					l.cfg.Progress("joined %d of %d, %.0f/s", d, n, float64(d)/time.Since(start).Seconds())
				}
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	if err := context.Cause(ctx); err != nil {
		return res, err
	}
	after, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, err
	}
	l.ids = append(l.ids, ids...)
	res.Addresses = distinct(l.ids)
	res.Seconds = elapsed.Seconds()
	res.PerSecond = float64(n) / res.Seconds
	res.Latency = Summarize(took)
	res.HubCPU = ms(after.CPU-before.CPU) / float64(n)
	if res.Addresses != len(l.ids) {
		return res, fmt.Errorf("join: %d nodes share %d addresses", len(l.ids), res.Addresses)
	}
	return res, l.save()
}

// applicants makes keys on all cores.
func (l *Lab) applicants(n int) ([]*applicant, error) {
	apps := make([]*applicant, n)
	errs := make([]error, 4)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				at := len(l.ids) + i
				apps[i], errs[w] = newApplicant(at, at%len(l.tokens))
			}
		})
	}
	wg.Wait()
	return apps, errors.Join(errs...)
}

func distinct(ids []Identity) int {
	seen := make(map[string]bool, len(ids))
	for _, id := range ids {
		seen[id.IP] = true
	}
	return len(seen)
}

// Enrolled is how many nodes the lab has.
func (l *Lab) Enrolled() int { return len(l.ids) }

// Enrol lets as many machines join as n nodes lack.
func (l *Lab) Enrol(ctx context.Context, n int) error {
	if have := len(l.ids); have < n {
		l.cfg.Progress("%d machines join", n-have)
		r, err := l.Join(ctx, n-have)
		if err != nil {
			return err
		}
		l.cfg.Progress("%.0f joins/s", r.PerSecond)
	}
	return nil
}

// Fleet returns the first n nodes, not connected. Close it after use.
func (l *Lab) Fleet(n int, cfg FleetConfig) *Fleet {
	return newFleet(l.Hub.Addr(), l.root, l.ids[:n], cfg)
}

// Restart stops the hub and starts it anew, so that its memory is that of a hub
// which has only just begun.
func (l *Lab) Restart(ctx context.Context) error {
	l.Hub.Stop()
	return l.Hub.Start(ctx)
}
