// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"testing"
	"time"
)

func TestOverdue(t *testing.T) {
	const mb = 1 << 20
	seconds := uint64(trimEvery / time.Second)
	for name, tt := range map[string]struct {
		m    memory
		want bool
	}{
		"after a burst":      {memory{live: 200 * mb, held: 400 * mb, allocated: mb}, true},
		"in a burst":         {memory{live: 200 * mb, held: 400 * mb, allocated: 5 * mb * seconds}, false},
		"nothing to give":    {memory{live: 200 * mb, held: 250 * mb, allocated: mb}, false},
		"too little to care": {memory{live: 10 * mb, held: 40 * mb, allocated: mb}, false},
	} {
		if got := tt.m.overdue(memory{}); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if m := readMemory(); m.held == 0 || m.allocated == 0 || m.held < m.live/2 {
		t.Errorf("memory = %+v", m)
	}
}
