// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// The old file stays one whole file for who has it open, and links are replaced
// rather than followed.
func TestWriteFileReplaces(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not replace open files")
	}
	dir := t.TempDir()
	name, other := filepath.Join(dir, "f"), filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, name); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteFile(name, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if n, _ := f.Read(b[:]); string(b[:n]) != "old" {
		t.Errorf("the open file says %q", b[:n])
	}
	if b, _ := os.ReadFile(other); string(b) != "old" {
		t.Errorf("the link's target says %q", b)
	}
	if b, _ := os.ReadFile(name); string(b) != "new" {
		t.Errorf("the file says %q", b)
	}
}
