// SPDX-License-Identifier: Apache-2.0

package home

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// halfwayFile is a Halfway in pendingDir.
const halfwayFile = "halfway.json"

// Halfway is an identity whose Ed25519 key the hub made. It is good for nothing but
// for replacing that key by the one of Staging.Keys.
type Halfway struct {
	CA          []byte `json:"ca_crt"`   // PEM
	Certificate []byte `json:"node_crt"` // PEM, of Key
	Key         []byte `json:"node_key"` // PEM
	PSK         []byte `json:"psk"`
	Config      []byte `json:"config"`
	Generation  uint64 `json:"generation"`
	// Attempt is for a recovery with the new keys, where the answer was lost.
	Attempt []byte `json:"recovery_id"`
}

// HalfJoined reports whether a join in dir has come halfway and no identity is
// there beside it.
func HalfJoined(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, pendingDir, halfwayFile))
	return err == nil && !Joined(dir)
}

// Halfway returns what SetHalfway stored, or nil.
func (s *Staging) Halfway() (*Halfway, error) {
	text, err := identity.ReadSecret(filepath.Join(s.dir, pendingDir, halfwayFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("continue join: %w", err)
	}
	return parseHalfway(text)
}

func parseHalfway(text []byte) (*Halfway, error) {
	var h Halfway
	if err := json.Unmarshal(text, &h); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrIdentity, halfwayFile, err)
	}
	if len(h.Attempt) != 16 {
		return nil, fmt.Errorf("%w: %s: recovery_id has %d bytes, want 16", ErrIdentity, halfwayFile, len(h.Attempt))
	}
	return &h, nil
}

// SetHalfway stores h, so that whoever opens the home next goes on from there.
func (s *Staging) SetHalfway(h *Halfway) error {
	text, err := json.Marshal(h)
	if err == nil {
		err = identity.WriteFile(filepath.Join(s.dir, pendingDir, halfwayFile), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnwritable, err)
	}
	return nil
}

// Resume takes up the join that HalfJoined tells of.
func Resume(dir string) (_ *Staging, err error) {
	s := &Staging{dir: dir}
	if s.lock, err = TakeLock(dir); err != nil {
		return nil, err
	}
	pending := filepath.Join(dir, pendingDir)
	if s.Keys, err = identity.LoadKeys(filepath.Join(pending, KeyFile), filepath.Join(pending, X25519File)); err != nil {
		_ = s.lock.Close()
		return nil, fmt.Errorf("continue join: %w", err)
	}
	return s, nil
}
