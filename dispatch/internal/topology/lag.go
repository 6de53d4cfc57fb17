// SPDX-License-Identifier: Apache-2.0

package topology

// Lag returns how many events the slowest watcher has not taken yet. It looks at
// every watcher, and publication waits for it.
func (f *Feed) Lag() (most uint64) {
	// Watchers move their places with the lock held for reading.
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.live {
		most = max(most, w.ring.next-w.at+uint64(len(w.extra)))
	}
	return most
}
