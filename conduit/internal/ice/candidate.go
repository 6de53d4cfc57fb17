// SPDX-License-Identifier: Apache-2.0

package ice

import (
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"

	pion "github.com/pion/ice/v3"
)

// Limits of what a peer may signal.
const (
	maxCandidateLen = 512
	maxCandidates   = 32
)

// Types of candidates (RFC 8445 section 4).
const (
	TypeHost  = "host"
	TypeSrflx = "srflx"
	TypePrflx = "prflx"
	TypeRelay = "relay"
)

var (
	// ErrBadCandidate means a candidate that is malformed or of a kind that is
	// not used (TCP, mDNS names, other components).
	ErrBadCandidate = errors.New("bad candidate")
	// ErrTooMany means that the peer signalled more candidates than one session
	// may have.
	ErrTooMany = errors.New("too many candidates")
)

// candidate is a candidate line of RFC 8839 section 5.1, reduced to what is used.
type candidate struct {
	foundation string
	typ        string
	addr       netip.AddrPort
	priority   uint32
}

// parseCandidate reads a candidate of a peer, with or without "candidate:" in
// front. It checks the form, not whether the address is allowed.
func parseCandidate(s string) (candidate, error) {
	if len(s) > maxCandidateLen {
		return candidate{}, fmt.Errorf("%w: longer than %d bytes", ErrBadCandidate, maxCandidateLen)
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return candidate{}, fmt.Errorf("%w: byte %#x", ErrBadCandidate, s[i])
		}
	}
	f := strings.Fields(strings.TrimPrefix(s, "candidate:"))
	if len(f) < 8 || f[6] != "typ" || len(f[0]) > 32 || !iceChars(f[0]) {
		return candidate{}, fmt.Errorf("%w: want \"foundation 1 udp priority address port typ type\"", ErrBadCandidate)
	}
	c := candidate{foundation: f[0], typ: f[7]}
	if f[1] != "1" || !strings.EqualFold(f[2], "udp") {
		return candidate{}, fmt.Errorf("%w: component %s over %s", ErrBadCandidate, f[1], f[2])
	}
	prio, err := strconv.ParseUint(f[3], 10, 32)
	if err != nil || prio == 0 || prio > 1<<31-1 {
		return candidate{}, fmt.Errorf("%w: priority %s", ErrBadCandidate, f[3])
	}
	c.priority = uint32(prio)
	a, err := netip.ParseAddr(f[4]) // no names: neither DNS nor mDNS
	if err != nil || a.Zone() != "" {
		return candidate{}, fmt.Errorf("%w: address %s", ErrBadCandidate, f[4])
	}
	port, err := strconv.ParseUint(f[5], 10, 16)
	if err != nil {
		return candidate{}, fmt.Errorf("%w: port %s", ErrBadCandidate, f[5])
	}
	c.addr = netip.AddrPortFrom(a.Unmap(), uint16(port))
	switch c.typ {
	case TypeHost, TypeSrflx, TypeRelay:
		return c, nil
	}
	return candidate{}, fmt.Errorf("%w: type %s", ErrBadCandidate, c.typ)
}

// Candidate is an address at which a peer may reach us.
type Candidate struct {
	Addr netip.AddrPort
	// Type is TypeHost, TypeSrflx or TypeRelay.
	Type string
	// Sock is the socket behind the address.
	Sock int
	// Rank orders those of one type, 0 first.
	Rank int
}

// String formats c for the peer (RFC 8839 section 5.1).
func (c Candidate) String() string { return newCandidate(c.Type, c.Addr, c.Sock, c.Rank).String() }

// newCandidate makes a candidate of ours. rank orders those of one type, 0 first:
// pion gives all the same preference, so a machine with several uplinks would
// choose by chance. The foundation tells candidates of different uplinks apart
// even where they have the same address (RFC 8445 section 5.1.1.3).
func newCandidate(typ string, addr netip.AddrPort, sock, rank int) candidate {
	pref := uint32(126) // RFC 8445 section 5.1.2.2
	if typ == TypeSrflx {
		pref = 100
	}
	base := typ + strconv.Itoa(sock) + "/" + addr.Addr().String()
	return candidate{
		foundation: strconv.FormatUint(uint64(crc32.ChecksumIEEE([]byte(base))), 10),
		typ:        typ,
		addr:       addr,
		priority:   pref<<24 | uint32(0xFFFF-min(max(rank, 0), 0xFFFF))<<8 | 255, //nolint:gosec // 16 bits
	}
}

// String formats c for the peer. It has no related address: what is behind the
// NAT is a candidate of its own.
func (c candidate) String() string {
	return fmt.Sprintf("%s 1 udp %d %s %d typ %s", c.foundation, c.priority, c.addr.Addr(), c.addr.Port(), c.typ)
}

// pion returns c as pion's type.
func (c candidate) pion() (pion.Candidate, error) {
	addr, port := c.addr.Addr().String(), int(c.addr.Port())
	switch c.typ {
	case TypeSrflx:
		return pion.NewCandidateServerReflexive(&pion.CandidateServerReflexiveConfig{
			Network: "udp", Address: addr, Port: port, Component: 1, Priority: c.priority, Foundation: c.foundation,
		})
	case TypeRelay:
		return pion.NewCandidateRelay(&pion.CandidateRelayConfig{
			Network: "udp", Address: addr, Port: port, Component: 1, Priority: c.priority, Foundation: c.foundation,
		})
	}
	return pion.NewCandidateHost(&pion.CandidateHostConfig{
		Network: "udp", Address: addr, Port: port, Component: 1, Priority: c.priority, Foundation: c.foundation,
	})
}

// iceChars tells whether s consists of ice-char (RFC 8839 section 5.1).
func iceChars(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '+', c == '/':
		default:
			return false
		}
	}
	return s != ""
}
