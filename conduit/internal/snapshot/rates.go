// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"net/netip"
	"time"
	"unicode/utf8"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// Rate is what a path carried when that was last known.
type Rate struct {
	Peer identity.PeerID
	// Uplink is the name of our interface; empty where the routing table chose it.
	Uplink string
	// Network is where our own address was, Remote where the peer's: an IPv4 prefix of
	// 24 bits or an IPv6 prefix of 64, both of one family.
	Network, Remote netip.Prefix
	// Rate is bytes per second on the wire, not 0.
	Rate uint64
	At   time.Time // to the millisecond
}

// rate is a Rate in the file.
type rate struct {
	Peer    []byte `cbor:"1,keyasint"`
	Uplink  string `cbor:"2,keyasint,omitempty"`
	Network []byte `cbor:"3,keyasint"` // the first 3 bytes of an IPv4 address, 8 of an IPv6 one
	Remote  []byte `cbor:"4,keyasint"` // likewise
	Rate    uint64 `cbor:"5,keyasint"` // bytes per second
	At      int64  `cbor:"6,keyasint"` // Unix, ms
}

func encodeRate(r *Rate) rate {
	return rate{
		Peer: r.Peer[:], Uplink: r.Uplink, Network: encodePrefix(r.Network), Remote: encodePrefix(r.Remote),
		Rate: r.Rate, At: millis(r.At),
	}
}

// read returns what r says, if it makes sense.
func (r *rate) read() (Rate, bool) {
	network, remote := decodePrefix(r.Network), decodePrefix(r.Remote)
	if len(r.Peer) != len(identity.PeerID{}) || len(r.Uplink) > maxName || !utf8.ValidString(r.Uplink) ||
		!network.IsValid() || !remote.IsValid() || network.Bits() != remote.Bits() || r.Rate == 0 {
		return Rate{}, false
	}
	return Rate{Peer: identity.PeerID(r.Peer), Uplink: r.Uplink, Network: network, Remote: remote, Rate: r.Rate, At: moment(r.At)}, true
}

// encodePrefix returns the bytes that make up a prefix; nil where it is none of ours.
func encodePrefix(p netip.Prefix) []byte {
	if p != p.Masked() || p.Bits() != 24 && p.Bits() != 64 || p.Addr().Is4() != (p.Bits() == 24) {
		return nil
	}
	return p.Addr().AsSlice()[:p.Bits()/8]
}

func decodePrefix(b []byte) netip.Prefix {
	switch len(b) {
	case 3:
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(append(b[:3:3], 0))), 24)
	case 8:
		var a [16]byte
		copy(a[:], b)
		return netip.PrefixFrom(netip.AddrFrom16(a), 64)
	}
	return netip.Prefix{}
}
