// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Times of a change of the mesh's key. The key before is good for an hour, so a
// fleet may take its time rather than ask at one moment.
const (
	meshKeySpread   = 5 * time.Second
	meshKeyRetry    = 2 * time.Second // the first bound
	meshKeyRetryMax = time.Minute
)

// errOwnKey tells that the operator distributes the pre-shared key himself.
var errOwnKey = errors.New("the hub does not have the key")

// meshKey follows the epoch of the mesh's pre-shared key.
type meshKey struct {
	log   *slog.Logger
	fetch func(ctx context.Context) (psk []byte, epoch uint32, err error)
	store func(psk []byte, epoch uint8) error
	set   func(psk []byte, epoch uint8) error

	news  chan uint32   // capacity 1, the newest wins
	epoch atomic.Uint32 // in use
}

// announce takes the epoch that the hub says is in force. Calls come one at a time.
func (k *meshKey) announce(epoch uint32) {
	select {
	case <-k.news:
	default:
	}
	k.news <- epoch
}

func (k *meshKey) run(ctx context.Context) {
	for first := true; ; first = false {
		var want uint32
		select {
		case want = <-k.news:
		case <-ctx.Done():
			return
		}
		wait := rand.N(meshKeySpread)
		if first {
			wait = 0 // it was rotated while this node was off
		}
		for failures := 0; want != k.epoch.Load(); failures++ {
			select {
			case <-time.After(wait):
			case want = <-k.news:
				continue
			case <-ctx.Done():
				return
			}
			err := k.change(ctx)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				k.log.Info("the mesh has a new pre-shared key", "epoch", want)
				break
			}
			k.log.Warn("the mesh has a new pre-shared key, and this node has not got it", "epoch", want, "err", err)
			if errors.Is(err, errOwnKey) {
				break // until the next announcement, or a restart with the new file
			}
			bound := min(meshKeyRetryMax, meshKeyRetry<<min(failures, 8))
			wait = bound/2 + rand.N(bound/2+1)
		}
	}
}

// change fetches the key and puts it to use. The file comes first: what runs is
// never newer than what a restart finds.
func (k *meshKey) change(ctx context.Context) error {
	psk, epoch, err := k.fetch(ctx)
	switch {
	case err != nil:
		return err
	case epoch == k.epoch.Load():
		return fmt.Errorf("the hub still gives out epoch %d", epoch)
	case psk == nil:
		return fmt.Errorf("%w: put the operator's new key into the psk file, with a line \"epoch %d\", and start the node anew", errOwnKey, epoch)
	case epoch > 255:
		return fmt.Errorf("epoch %d is more than the protocol has room for", epoch)
	}
	if err := k.store(psk, uint8(epoch)); err != nil {
		return err
	}
	if err := k.set(psk, uint8(epoch)); err != nil {
		return err
	}
	k.epoch.Store(epoch)
	return nil
}
