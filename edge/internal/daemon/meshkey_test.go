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
		var did []string
		current, away := uint32(2), 2
		k := &meshKey{
			log: slog.New(slog.DiscardHandler), epoch: 1, news: make(chan uint32, 1),
			fetch: func(context.Context) ([]byte, uint32, error) {
				did = append(did, "fetch")
				if away--; away >= 0 {
					return nil, 0, errors.New("hub is away")
				}
				return bytes.Repeat([]byte{byte(current)}, 32), current, nil
			},
			store: func([]byte, uint8) error { did = append(did, "store"); return nil },
			set:   func([]byte, uint8) error { did = append(did, "set"); return nil },
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); k.run(ctx) }()
		k.announce(1) // nothing new
		time.Sleep(time.Hour)
		if len(did) != 0 {
			t.Errorf("did %v for the epoch in use", did)
		}
		k.announce(2)
		time.Sleep(meshKeySpread)
		time.Sleep(3 * meshKeyRetry)
		if want := []string{"fetch", "fetch", "fetch", "store", "set"}; !slices.Equal(did, want) {
			t.Errorf("did %v, want %v", did, want)
		}
		did, current = nil, 3
		k.announce(2)
		k.announce(3)
		time.Sleep(time.Hour)
		if want := []string{"fetch", "store", "set"}; !slices.Equal(did, want) || k.epoch != 3 {
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
		var log bytes.Buffer
		asked := 0
		k := &meshKey{
			log: slog.New(slog.NewTextHandler(&log, nil)), epoch: 1, news: make(chan uint32, 1),
			fetch: func(context.Context) ([]byte, uint32, error) { asked++; return nil, 2, nil },
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); k.run(ctx) }()
		k.announce(2)
		time.Sleep(time.Hour)
		cancel()
		<-done
		if asked != 1 || !strings.Contains(log.String(), "epoch 2") {
			t.Errorf("asked %d times; log %s", asked, log.String())
		}
	})
}
