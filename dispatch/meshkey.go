// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

const (
	pskLen = 32
	// maxPSKEpoch is what the handshake has room for.
	maxPSKEpoch = 255
)

// meshKey is the mesh's pre-shared key. The database knows which epoch is in force,
// a file for each epoch has the key.
type meshKey struct {
	dir string

	mu    sync.Mutex // guards the following
	key   []byte
	epoch uint32
}

// pskFile is where the key of an epoch is.
func pskFile(dir string, epoch uint32) string {
	if epoch == 1 {
		return filepath.Join(dir, "psk")
	}
	return filepath.Join(dir, "psk."+strconv.FormatUint(uint64(epoch), 10))
}

// openMeshKey reads the key of an epoch; the first one is made where it is missing
// and the hub is new.
func openMeshKey(dir string, epoch uint32, fresh bool) (*meshKey, error) {
	m := &meshKey{dir: dir, epoch: epoch}
	name := pskFile(dir, epoch)
	b, err := identity.ReadSecret(name)
	if errors.Is(err, fs.ErrNotExist) && epoch == 1 && fresh {
		if b, err = newPSK(name); err != nil {
			return nil, err
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read mesh key: %w: %s, but this hub has run before", ErrMissing, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read mesh key: %w", err)
	}
	if len(b) != pskLen {
		return nil, fmt.Errorf("read mesh key: %s has %d bytes, want %d", name, len(b), pskLen)
	}
	m.key = b
	return m, nil
}

func newPSK(name string) ([]byte, error) {
	b := make([]byte, pskLen)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("generate mesh key: %w", err)
	}
	return b, identity.WriteFile(name, b, 0o600)
}

// current is rpc.Config.MeshKey.
func (m *meshKey) current() ([]byte, uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.key, m.epoch
}

// rotate makes the key of the next epoch. The file is there before the epoch is
// committed, so that no crash leaves an epoch without a key.
func (m *meshKey) rotate(ctx context.Context, st *store.Store) (uint32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var key []byte
	epoch, err := st.RotatePSK(ctx, func(epoch uint32) (err error) {
		if epoch > maxPSKEpoch {
			return fmt.Errorf("rotate mesh key: epoch %d is the last", maxPSKEpoch)
		}
		key, err = newPSK(pskFile(m.dir, epoch))
		return err
	})
	if err != nil {
		return 0, err
	}
	old := m.epoch
	m.key, m.epoch = key, epoch
	// The one before the last is of no use to anybody.
	if old > 1 {
		_ = os.Remove(pskFile(m.dir, old-1))
	}
	return epoch, nil
}
