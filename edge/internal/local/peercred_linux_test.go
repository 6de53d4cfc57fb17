// SPDX-License-Identifier: Apache-2.0

package local

import "testing"

func TestAllowed(t *testing.T) {
	groups := func(uid int) []string { return map[int][]string{7: {"7", "50"}}[uid] }
	for _, tc := range []struct {
		name     string
		uid, gid int
		want     bool
	}{
		{"Root", 0, 0, true},
		{"Owner", 1000, 99, true},
		{"Group", 8, 50, true},
		{"SupplementaryGroup", 7, 7, true},
		{"Stranger", 9, 9, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := allowed(tc.uid, tc.gid, 1000, 50, groups); got != tc.want {
				t.Errorf("allowed = %v, want %v", got, tc.want)
			}
		})
	}
}
