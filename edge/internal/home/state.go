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

// StateFile is what a node remembers of its dealings with the hub.
const StateFile = "certs/state.json"

// State is the content of StateFile. A home without one has the zero State.
type State struct {
	// Generation counts recoveries and changes of the keys, as the hub does.
	Generation uint64 `json:"generation"`
	// Attempt is that of a recovery whose answer has not come, 16 bytes.
	Attempt []byte `json:"recovery_id,omitempty"`
}

// LoadState reads the state of the node in dir.
func LoadState(dir string) (State, error) {
	text, err := os.ReadFile(filepath.Join(dir, StateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("load state: %w", err)
	}
	return parseState(text)
}

func parseState(text []byte) (s State, err error) {
	if err := json.Unmarshal(text, &s); err != nil {
		return State{}, fmt.Errorf("%w: %s: %w", ErrIdentity, StateFile, err)
	}
	if n := len(s.Attempt); n != 0 && n != 16 {
		return State{}, fmt.Errorf("%w: %s: recovery_id has %d bytes, want 16", ErrIdentity, StateFile, n)
	}
	return s, nil
}

// Store writes s into dir.
func (s State) Store(dir string) error {
	text, err := json.Marshal(s)
	if err == nil {
		err = identity.WriteFile(filepath.Join(dir, StateFile), append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("store state: %w", err)
	}
	return nil
}
