// SPDX-License-Identifier: Apache-2.0

//go:build unix

package home

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Lock is the exclusive use of a home. The kernel drops it with the process.
type Lock struct{ f *os.File }

// TakeLock locks dir itself, so that no lock file remains. It does not wait: the
// error Is ErrInUse where another process holds it.
func TakeLock(dir string) (*Lock, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock home: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return &Lock{f}, nil
}

// Close gives the home free.
func (l *Lock) Close() error { return l.f.Close() }
