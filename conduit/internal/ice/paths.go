// SPDX-License-Identifier: Apache-2.0

package ice

import "net/netip"

// maxProven bounds the paths that one peer can make us remember.
const maxProven = 128

// prove notes that an authenticated check came from remote (or was answered from
// there: roundTrip). It is called from pion's task loop and from readers of
// sockets, so it only queues.
func (a *Agent) prove(sock int, remote netip.AddrPort, roundTrip bool) {
	key := pathKey{sock, remote}
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.proven[key]
	if p == nil {
		if len(a.proven) >= maxProven {
			return
		}
		p = &Path{Socket: sock, Remote: remote, LocalType: TypeHost}
		a.proven[key] = p
	} else if p.RoundTrip || !roundTrip {
		return
	}
	p.RoundTrip = p.RoundTrip || roundTrip
	p.Type = a.typeLocked(remote)
	if f, out := a.cfg.OnProven, *p; f != nil {
		a.enqueueLocked(func() { f(out) })
	}
	if !a.any {
		a.reportLocked(key, *p)
	}
}

// sel notes the pair that was selected.
func (a *Agent) sel(sock int, remote netip.AddrPort) {
	key := pathKey{sock, remote}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.any && a.reported == key {
		return
	}
	out := Path{Socket: sock, Remote: remote, LocalType: TypeHost, Type: a.typeLocked(remote), Selected: true, RoundTrip: true}
	a.reportLocked(key, out)
}

func (a *Agent) reportLocked(key pathKey, p Path) {
	a.any, a.reported = true, key
	if f := a.cfg.OnPath; f != nil {
		a.enqueueLocked(func() { f(p) })
	}
}

// typeLocked names the remote candidate: what the peer said of the address, or
// peer-reflexive if it said nothing (yet).
func (a *Agent) typeLocked(remote netip.AddrPort) string {
	if t, ok := a.remotes[remote]; ok {
		return t
	}
	return TypePrflx
}

// fail reports the first failure.
func (a *Agent) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed {
		return
	}
	a.failed = true
	if f := a.cfg.OnFailed; f != nil {
		a.enqueueLocked(func() { f(err) })
	}
}

func (a *Agent) enqueueLocked(event func()) {
	a.events = append(a.events, event)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// dispatch calls the callbacks, one at a time. Nothing is called after Close
// began, except what is running.
func (a *Agent) dispatch() {
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-a.wake:
		}
		for {
			a.mu.Lock()
			if len(a.events) == 0 || a.ctx.Err() != nil {
				a.mu.Unlock()
				break
			}
			event := a.events[0]
			a.events[0] = nil
			a.events = a.events[1:]
			a.mu.Unlock()
			event()
		}
	}
}
