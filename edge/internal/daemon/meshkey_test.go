// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestMeshKey rotates the key while the hub is away at first, then once more.
func TestMeshKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu turn
		mu.Lock()
		var did []string
		current, away := uint32(2), 2
		k := &meshKey{
			log: slog.New(slog.DiscardHandler), news: make(chan uint32, 1),
			fetch: func(context.Context) ([]byte, uint32, error) {
				mu.Lock()
				defer mu.Unlock()
				did = append(did, "fetch")
				if away--; away >= 0 {
					return nil, 0, errors.New("hub is away")
				}
				return bytes.Repeat([]byte{byte(current)}, 32), current, nil
			},
			store: func([]byte, uint8) error { mu.Lock(); did = append(did, "store"); mu.Unlock(); return nil },
			set:   func([]byte, uint8) error { mu.Lock(); did = append(did, "set"); mu.Unlock(); return nil },
		}
		k.epoch.Store(1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); k.run(ctx) }()
		k.announce(1) // nothing new
		mu.pass(time.Hour)
		if len(did) != 0 {
			t.Errorf("did %v for the epoch in use", did)
		}
		k.announce(2)
		mu.pass(meshKeySpread)
		mu.pass(3 * meshKeyRetry)
		if want := []string{"fetch", "fetch", "fetch", "store", "set"}; !slices.Equal(did, want) {
			t.Errorf("did %v, want %v", did, want)
		}
		did, current = nil, 3
		k.announce(2)
		k.announce(3)
		mu.pass(time.Hour)
		if want := []string{"fetch", "store", "set"}; !slices.Equal(did, want) || k.epoch.Load() != 3 {
			t.Errorf("did %v, want %v", did, want)
		}
		cancel()
		<-done
	})
}

// TestOperatorsKey: where the hub does not have the key nothing is tried again, and
// the log says what to do.
func TestOperatorsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu turn
		mu.Lock()
		var log bytes.Buffer
		asked := 0
		k := &meshKey{
			log: slog.New(slog.NewTextHandler(&log, nil)), news: make(chan uint32, 1),
			fetch: func(context.Context) ([]byte, uint32, error) { asked++; return nil, 2, nil },
		}
		k.epoch.Store(1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); k.run(ctx) }()
		k.announce(2)
		mu.pass(time.Hour)
		cancel()
		<-done
		if asked != 1 || !strings.Contains(log.String(), "epoch 2") {
			t.Errorf("asked %d times; log %s", asked, log.String())
		}
	})
}
