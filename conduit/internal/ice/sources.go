// SPDX-License-Identifier: Apache-2.0

package ice

import "net/netip"

const (
	// maxSources bounds the addresses that are remembered of one peer: its
	// candidates and where its checks come from.
	maxSources = 2 * maxCandidates
	// maxUnproven bounds those of them that the peer did not signal and that never
	// answered: mappings of symmetric NATs, one for each of our sockets.
	maxUnproven = 16
	// maxCredit is how many checks an unproven source can have in store.
	maxCredit = 2
)

// sources keeps a peer from making us flood others. pion answers each
// authenticated check and then checks its source again and again, so that one
// datagram with a forged source would draw sixty. Here a source earns one check of
// ours with each of its own, from the socket that it came to, until it answers one
// or the peer signals it as a candidate.
type sources struct {
	m        map[netip.AddrPort]*source
	unproven int
}

type source struct {
	free    bool // signalled or proven
	credits map[int]int
}

// request notes a check from an address and tells whether to take it.
func (s *sources) request(sock int, from netip.AddrPort) bool {
	x := s.m[from]
	if x == nil {
		if len(s.m) >= maxSources || s.unproven >= maxUnproven {
			return false
		}
		x = s.add(from)
		x.credits = make(map[int]int)
		s.unproven++
	}
	if !x.free && x.credits[sock] < maxCredit {
		x.credits[sock]++
	}
	return true
}

func (s *sources) add(a netip.AddrPort) *source {
	if s.m == nil {
		s.m = make(map[netip.AddrPort]*source)
	}
	x := new(source)
	s.m[a] = x
	return x
}

// release lifts the limit from a known source.
func (s *sources) release(a netip.AddrPort) {
	if x := s.m[a]; x != nil && !x.free {
		x.free, x.credits = true, nil
		s.unproven--
	}
}

// spend tells whether a check may go to an address, and takes its price.
func (s *sources) spend(sock int, to netip.AddrPort) bool {
	x := s.m[to]
	if x == nil || x.free { // not a source: pion has it from signalling
		return true
	}
	if x.credits[sock] == 0 {
		return false
	}
	x.credits[sock]--
	return true
}

// signalled notes that the peer named an address as its candidate.
func (e *entry) signalled(a netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sources.m[a] != nil {
		e.sources.release(a)
	} else if len(e.sources.m) < maxSources {
		e.sources.add(a).free = true
	}
}

// proven notes that an address answered a check of ours.
func (e *entry) proven(a netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sources.release(a)
}

// mayCheck tells whether a check may leave now.
func (e *entry) mayCheck(sock int, to netip.AddrPort) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sources.spend(sock, to)
}
