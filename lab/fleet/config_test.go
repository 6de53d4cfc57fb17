// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAddTables(t *testing.T) {
	const file = "[tun]\n# mtu\n[pacing]\n# floor\n[log]\n"
	for _, tt := range []struct{ name, add, want string }{
		{"there", "[pacing]\na = 1\nb = 2\n", "[tun]\n# mtu\n[pacing]\na = 1\nb = 2\n# floor\n[log]\n\n"},
		{"new", "[bonding]\na = 1\n", file + "\n[bonding]\na = 1\n"},
		{"array", "[[lane]]\na = 1\n[[lane]]\na = 2\n", file + "\n[[lane]]\na = 1\n[[lane]]\na = 2\n"},
		{"both", "[[lane]]\na = 1\n[log]\nb = 2\n", "[tun]\n# mtu\n[pacing]\n# floor\n[log]\nb = 2\n\n[[lane]]\na = 1\n"},
	} {
		if diff := cmp.Diff(tt.want, addTables(file, tt.add)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
