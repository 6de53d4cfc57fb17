// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"testing"
	"time"
)

// TestRelayDies: what is sent in the moment in which the only way is lost goes out
// by the next one.
func TestRelayDies(t *testing.T) {
	for range 30 {
		inWorld(t, 2, func(_ *testing.T, w *world) {
			a, b := w.nodes[0], w.nodes[1]
			w.setUDP(noUDP)
			f := flow{w: w, from: a, to: b}
			f.run(2*time.Second, 10*time.Millisecond)
			w.setUDP(nil)
			w.setHub(false)
			f.run(3*time.Second, 10*time.Millisecond)
			f.check()
		})
	}
}
