// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// DefaultEvery is the shortest time between two saves: flash wears.
const DefaultEvery = 5 * time.Second

// takeTime bounds the last Take and thereby Close.
const takeTime = 2 * time.Second

// KeeperConfig is what a Keeper is made of. File and Take are required.
type KeeperConfig struct {
	File string
	// Take returns the present state, or nil where there is nothing worth keeping
	// yet. It is called from the Keeper's goroutine only.
	Take func(ctx context.Context) (*Snapshot, error)
	// Every is the shortest time between two saves; zero means DefaultEvery. The first
	// save comes a tenth of that after the first change.
	Every time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

// Keeper saves a changing state: often enough that a crash loses little, seldom
// enough for flash.
type Keeper struct {
	cfg     KeeperConfig // set once in NewKeeper
	changed chan struct{}
	cancel  context.CancelFunc
	quit    chan struct{}
	once    sync.Once
	done    chan struct{}

	// Owned by run.
	last   [sha256.Size]byte // of the body that was written, without its time
	failed bool
	err    error // of the last save; read after done
}

// NewKeeper starts a Keeper, which must be closed.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Every == 0 {
		cfg.Every = DefaultEvery
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &Keeper{
		cfg: cfg, changed: make(chan struct{}, 1), cancel: cancel,
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	go k.run(ctx)
	return k
}

// Changed tells that the state may differ from what was saved. It never blocks and
// is safe for concurrent use, also after Close.
func (k *Keeper) Changed() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Close saves the state once more if it differs, so what Take asks must still be
// running, and returns the error of that. It is idempotent and waits for the
// goroutine.
func (k *Keeper) Close() error {
	k.once.Do(func() {
		close(k.quit)
		// A Take that hangs must not keep the node from stopping.
		t := time.AfterFunc(takeTime, k.cancel)
		<-k.done
		t.Stop()
		k.cancel()
	})
	<-k.done
	return k.err
}

func (k *Keeper) run(ctx context.Context) {
	defer close(k.done)
	gap := k.cfg.Every / 10
	for {
		select {
		case <-k.changed:
		case <-k.quit:
			k.err = k.save(ctx)
			return
		}
		select {
		case <-time.After(gap):
		case <-k.quit:
			k.err = k.save(ctx)
			return
		}
		gap = k.cfg.Every
		if k.save(ctx) != nil {
			k.Changed() // try again after the gap
		}
	}
}

// save writes the state if it differs from what is in the file.
func (k *Keeper) save(ctx context.Context) error {
	err := k.write(ctx)
	switch {
	case err == nil:
		k.failed = false
	case !k.failed: // once, not every five seconds while the disk is full
		k.failed = true
		k.cfg.Logger.Error("state not saved; a start without the hub would know what was saved last", "file", k.cfg.File, "err", err)
	}
	return err
}

func (k *Keeper) write(ctx context.Context) error {
	s, err := k.cfg.Take(ctx)
	if err != nil || s == nil {
		return err
	}
	same := *s
	same.Written = time.Time{}
	b, err := same.encodeBody()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	if sum == k.last {
		return nil
	}
	out, err := s.Encode()
	if err != nil {
		return err
	}
	if err := identity.WriteFile(k.cfg.File, out, 0o600); err != nil {
		return err
	}
	k.last = sum
	return nil
}
