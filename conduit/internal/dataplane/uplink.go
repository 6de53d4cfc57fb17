// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/bauxite-mesh/bauxite/conduit/internal/dataplane/lane"
)

// uplink is the lanes of one interface, or of one relay, and the binds that share
// them. Guarded by Dataplane.mu.
type uplink struct {
	number uint8
	binds  int
	lanes  *lane.Uplink
	free   *lane.Pipe // for paths that nobody keeps count of
}

// joinUplinkLocked returns the uplink with that number; 0 is a new one each time.
func (d *Dataplane) joinUplinkLocked(number uint8) *uplink {
	if number != 0 {
		for _, u := range d.uplinks {
			if u.number == number {
				u.binds++
				return u
			}
		}
	}
	u := &uplink{number: number, binds: 1, lanes: d.lanes.AddUplink()}
	u.free = u.lanes.AddPipe(nil, 0)
	if r := d.rates[number]; r > 0 {
		u.lanes.SetRate(r)
	}
	d.uplinks = append(d.uplinks, u)
	return u
}

func (d *Dataplane) leaveUplinkLocked(u *uplink) {
	if u.binds--; u.binds > 0 {
		return
	}
	u.lanes.Close()
	for i := range d.uplinks {
		if d.uplinks[i] == u {
			d.uplinks[i] = d.uplinks[len(d.uplinks)-1]
			d.uplinks = d.uplinks[:len(d.uplinks)-1]
			return
		}
	}
}

// SetUplinkRate bounds what all paths of an uplink send together, in bytes per
// second on the wire; 0 means no bound. It may come before the uplink's first bind.
// Safe for concurrent use.
func (d *Dataplane) SetUplinkRate(number uint8, rate float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rates == nil {
		d.rates = make(map[uint8]float64)
	}
	d.rates[number] = rate
	for _, u := range d.uplinks {
		if u.number == number {
			u.lanes.SetRate(rate)
		}
	}
}
