// SPDX-License-Identifier: Apache-2.0

package conduit

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPSKOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := make([]byte, 32), make([]byte, 32)
		two[0] = 2
		r := pskRing{now: pskEntry{one, 1}}
		if changed, err := r.set(two, 2); !changed || err != nil {
			t.Fatalf("set = %v, %v", changed, err)
		}
		time.Sleep(PSKOverlap - time.Second)
		if e, ok := r.last(); e != 1 || !ok || r.get(1) == nil || r.get(2)[0] != 2 || r.get(3) != nil {
			t.Error("within the overlap: not both")
		}
		time.Sleep(time.Second)
		if _, ok := r.last(); ok || r.get(1) != nil || r.get(2) == nil {
			t.Error("after the overlap: not the new one alone")
		}
	})
}
