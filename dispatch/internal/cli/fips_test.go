// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
)

// A build that may not start does nothing but what helps to mend it.
func TestMayStart(t *testing.T) {
	bad := fmt.Errorf("%w: off", fips.ErrModule)
	for _, tc := range []struct {
		args string
		free bool
	}{
		{"bauxite-dispatch", true},
		{"bauxite-dispatch version --json", true},
		{"bauxite-dispatch exit-codes", true},
		{"bauxite-dispatch serve", false},
		{"bauxite-dispatch --data d serve", false},
		{"bauxite-dispatch token create", false},
	} {
		err := mayStart(strings.Fields(tc.args), bad)
		if (err == nil) != tc.free {
			t.Errorf("%s: %v", tc.args, err)
		}
		if mayStart(strings.Fields(tc.args), nil) != nil {
			t.Errorf("%s: a good build is refused", tc.args)
		}
	}
	if code, hint := verdict(bad); code != 21 || hint == "" {
		t.Errorf("exit code %d, hint %q; want 21 and a hint", code, hint)
	}
}
