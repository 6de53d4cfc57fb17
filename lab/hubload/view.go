// SPDX-License-Identifier: Apache-2.0

package hubload

import "fmt"

// View is what a node keeps of the topology over connections: the (epoch, rv)
// that it resumes with, and what was wrong with what it got. The zero value has
// seen nothing. It has no lock.
type View struct {
	Epoch, RV uint64
	// Lazy tells that peers are not pushed in the node's scope.
	Lazy bool

	// Snapshots counts full synchronisations, Resyncs the hub's requests for one.
	Snapshots, Resyncs int
	// Deltas counts new changes, Duplicates those that came again.
	Deltas, Duplicates int
	// Missing is how many resource versions were skipped. Where the node is not
	// told of all changes, because there are scopes, it says nothing.
	Missing uint64

	synced bool // since the last Begin
}

// Begin starts a new stream.
func (v *View) Begin() { v.synced = false }

// Apply takes an event. It returns an error where the hub breaks the order that
// WatchTopology promises; the view then has nothing to resume with.
func (v *View) Apply(e event) error {
	bad := func(format string, a ...any) error {
		v.Epoch, v.RV = 0, 0
		return fmt.Errorf("%w: %s", errProtocol, fmt.Sprintf(format, a...))
	}
	switch e.kind {
	case evChunk:
		if v.synced {
			return bad("snapshot chunk after Synced")
		}
	case evSynced:
		switch {
		case v.synced:
			return bad("Synced twice")
		case e.epoch == 0:
			return bad("Synced without an epoch")
		case !e.snapshot && e.epoch != v.Epoch:
			return bad("resumed at epoch %d, have %d", e.epoch, v.Epoch)
		}
		v.synced, v.Lazy = true, e.lazy
		if e.snapshot {
			v.Epoch, v.RV = e.epoch, e.rv
			v.Snapshots++
		}
	case evDelta:
		if !v.synced {
			return bad("delta %d before Synced", e.rv)
		}
		if e.rv <= v.RV {
			v.Duplicates++
			return nil
		}
		v.Missing += e.rv - v.RV - 1
		v.RV = e.rv
		v.Deltas++
	case evBookmark:
		if e.rv > v.RV {
			v.Missing += e.rv - v.RV
			v.RV = e.rv
		}
	case evResync:
		v.Resyncs++
		v.Epoch, v.RV = 0, 0
	}
	return nil
}
