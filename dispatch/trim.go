// SPDX-License-Identifier: Apache-2.0

package dispatch

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	trimEvery = 15 * time.Second
	// calm is how many bytes per second may be allocated for the burst to be over.
	calm = 4 << 20
	// excess is how much more than what lives may be held, in percent of it.
	excess = 30
	// least is what is not worth a collection, in bytes.
	least = 32 << 20
)

// trim gives memory back to the system after a burst, until ctx ends. When a whole
// fleet comes back at once, the garbage of its handshakes is as large as what stays;
// the collector, which looks at the rate of allocation, would keep room for it.
func trim(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	m := readMemory()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		was := m
		if m = readMemory(); m.overdue(was) {
			debug.FreeOSMemory()
		}
	}
}

// memory is what the runtime says of the heap, in bytes.
type memory struct{ live, held, allocated uint64 }

// overdue reports whether a burst is over, trimEvery after was, and much is held.
func (m memory) overdue(was memory) bool {
	quiet := m.allocated-was.allocated < calm*uint64(trimEvery/time.Second)
	return quiet && m.held > m.live+max(m.live*excess/100, least)
}

func readMemory() memory {
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
	}
	metrics.Read(s)
	return memory{
		live: s[0].Value.Uint64(), held: s[1].Value.Uint64() + s[2].Value.Uint64() + s[3].Value.Uint64(), allocated: s[4].Value.Uint64(),
	}
}
