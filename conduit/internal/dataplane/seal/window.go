// SPDX-License-Identifier: Apache-2.0

package seal

// The window is a ring of words (RFC 6479). One word is always being cleared,
// so WindowSize counters behind the highest are surely remembered. It is sized
// for 1 Gbit/s of small packets over two paths 200 ms apart.
const (
	windowBits  = 1 << 15
	windowWords = windowBits / 64
	// WindowSize is how far behind the highest counter a packet may arrive.
	WindowSize = windowBits - 64
)

// window remembers which counters were accepted. The zero value has seen none.
type window struct {
	used bool
	top  uint64
	bits [windowWords]uint64
}

// fresh reports whether c could be accepted.
func (w *window) fresh(c uint64) bool {
	if c >= MaxCounter {
		return false
	}
	if !w.used || c > w.top {
		return true
	}
	return w.top-c < WindowSize && w.bits[c/64%windowWords]>>(c%64)&1 == 0
}

// commit accepts c and reports whether it was fresh.
func (w *window) commit(c uint64) bool {
	if !w.fresh(c) {
		return false
	}
	if !w.used || c > w.top {
		from := w.top / 64
		if steps := c/64 - from; steps > 0 {
			for i := uint64(1); i <= min(steps, windowWords); i++ {
				w.bits[(from+i)%windowWords] = 0
			}
		}
		w.top, w.used = c, true
	}
	w.bits[c/64%windowWords] |= 1 << (c % 64)
	return true
}
