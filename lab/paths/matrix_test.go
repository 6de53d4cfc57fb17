// SPDX-License-Identifier: Apache-2.0

package paths

import "testing"

func TestDirect(t *testing.T) {
	relayed := 0
	for _, a := range NATs {
		for _, b := range NATs {
			if Direct(a, b) != Direct(b, a) {
				t.Errorf("%s and %s differ by direction", a, b)
			}
			if !Direct(a, b) {
				relayed++
			}
		}
	}
	if relayed != 3 {
		t.Errorf("%d cells of 16 need a relay, want 3", relayed)
	}
}
