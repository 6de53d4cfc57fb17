// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"bytes"
	"fmt"
	"sync"
	"time"
)

// PSKOverlap is how long the pre-shared key that SetPSK replaced is still accepted
// from peers that have not got the new one.
const PSKOverlap = time.Hour

// pskRing holds the mesh's pre-shared key and the one before.
type pskRing struct {
	mu     sync.Mutex // guards the rest
	now    pskEntry
	before pskEntry
	until  time.Time // of before
}

type pskEntry struct {
	key   []byte
	epoch uint8
}

// get returns the key of an epoch, or nil.
func (r *pskRing) get(epoch uint8) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case epoch == r.now.epoch:
		return r.now.key
	case r.before.key != nil && epoch == r.before.epoch && time.Now().Before(r.until):
		return r.before.key
	}
	return nil
}

// last returns the epoch before the present one while it is accepted.
func (r *pskRing) last() (epoch uint8, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.before.epoch, r.before.key != nil && time.Now().Before(r.until)
}

// set replaces the key and reports whether that changed anything.
func (r *pskRing) set(key []byte, epoch uint8) (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if epoch == r.now.epoch {
		if !bytes.Equal(key, r.now.key) {
			return false, fmt.Errorf("%w: another pre-shared key of epoch %d", ErrConfig, epoch)
		}
		return false, nil
	}
	r.before, r.until = r.now, time.Now().Add(PSKOverlap)
	r.now = pskEntry{bytes.Clone(key), epoch}
	return true, nil
}

// SetPSK replaces the mesh's pre-shared key, 32 bytes, by that of another epoch.
// New handshakes use it and sessions go on; the key before is accepted for
// PSKOverlap. A node that was made without a key, or a key that contradicts the one
// of the same epoch, is an error that Is ErrConfig.
func (n *Node) SetPSK(psk []byte, epoch uint8) error {
	if n.cfg.PSK == nil {
		return fmt.Errorf("%w: this mesh has no pre-shared key", ErrConfig)
	}
	if len(psk) != 32 {
		return fmt.Errorf("%w: PSK has %d bytes, want 32", ErrConfig, len(psk))
	}
	changed, err := n.psks.set(psk, epoch)
	if err != nil || !changed {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == stateRunning {
		n.engine.SetPSKEpoch(epoch)
	}
	return nil
}

// pskEpoch returns the epoch in use.
func (n *Node) pskEpoch() uint8 {
	n.psks.mu.Lock()
	defer n.psks.mu.Unlock()
	return n.psks.now.epoch
}
