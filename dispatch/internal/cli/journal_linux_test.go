// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestIsJournal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		t.Skip("files have no inode here")
	}
	for _, tt := range []struct {
		stream string
		w      io.Writer
		want   bool
	}{
		{fmt.Sprintf("%d:%d", st.Dev, st.Ino), f, true},
		{fmt.Sprintf("%d:%d", st.Dev, st.Ino+1), f, false},
		{"", f, false},
		{fmt.Sprintf("%d:%d", st.Dev, st.Ino), io.Discard, false},
	} {
		t.Setenv("JOURNAL_STREAM", tt.stream)
		if got := isJournal(tt.w); got != tt.want {
			t.Errorf("isJournal(%T) with JOURNAL_STREAM=%q = %v", tt.w, tt.stream, got)
		}
	}
}
