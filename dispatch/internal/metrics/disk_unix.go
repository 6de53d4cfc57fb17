// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package metrics

import "syscall"

// diskFree returns the bytes that an unprivileged process can still write to dir.
func diskFree(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil //nolint:unconvert // the types differ by system
}
