// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package dispatch

import (
	"fmt"
	"os"
	"path/filepath"
)

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return f, nil
}
