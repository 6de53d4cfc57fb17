// SPDX-License-Identifier: Apache-2.0

// Package repotest writes small trees for the tests of the programs in tools.
package repotest

import (
	"os"
	"path/filepath"
	"testing"
)

// Write makes a temporary folder with the files of tree, by path, and
// returns it.
func Write(tb testing.TB, tree map[string]string) string {
	tb.Helper()
	root := tb.TempDir()
	for name, text := range tree {
		Put(tb, filepath.Join(root, name), text)
	}
	return root
}

// Put writes one file and the folders above it.
func Put(tb testing.TB, name, text string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
}
