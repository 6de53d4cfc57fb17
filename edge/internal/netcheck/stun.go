// SPDX-License-Identifier: Apache-2.0

package netcheck

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
)

// What of STUN (RFC 8489) one question needs.
const (
	bindingRequest = 0x0001
	bindingSuccess = 0x0101
	bindingError   = 0x0111
	magicCookie    = 0x2112a442
	xorMapped      = 0x0020
	stunHeader     = 20
	maxSTUN        = 1500
)

type transaction [12]byte

// request returns a binding request.
func request(id transaction) []byte {
	b := make([]byte, stunHeader)
	binary.BigEndian.PutUint16(b, bindingRequest)
	binary.BigEndian.PutUint32(b[4:], magicCookie)
	copy(b[8:], id[:])
	return b
}

var (
	errNotOurs = errors.New("no answer to this question")
	errRefused = errors.New("the server refused to answer")
)

// response reads the answer to the request id: the address that the server saw.
// Every length must fit; attributes but XOR-MAPPED-ADDRESS are passed over.
func response(b []byte, id transaction) (netip.AddrPort, error) {
	if len(b) < stunHeader || binary.BigEndian.Uint32(b[4:]) != magicCookie || !bytes.Equal(b[8:stunHeader], id[:]) {
		return netip.AddrPort{}, errNotOurs
	}
	if n := int(binary.BigEndian.Uint16(b[2:])); n%4 != 0 || n != len(b)-stunHeader {
		return netip.AddrPort{}, errNotOurs
	}
	switch binary.BigEndian.Uint16(b) {
	case bindingSuccess:
	case bindingError:
		return netip.AddrPort{}, errRefused
	default:
		return netip.AddrPort{}, errNotOurs
	}
	for rest := b[stunHeader:]; len(rest) > 0; {
		if len(rest) < 4 {
			return netip.AddrPort{}, errNotOurs
		}
		typ, n := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		padded := (n + 3) &^ 3
		if rest = rest[4:]; padded > len(rest) {
			return netip.AddrPort{}, errNotOurs
		}
		if typ == xorMapped {
			return unxor(rest[:n], b[4:stunHeader])
		}
		rest = rest[padded:]
	}
	return netip.AddrPort{}, errNotOurs
}

// unxor reads an XOR-MAPPED-ADDRESS; key is the cookie and the transaction.
func unxor(v, key []byte) (netip.AddrPort, error) {
	family := map[byte]int{1: 4, 2: 16}
	if len(v) < 4 || family[v[1]] == 0 || len(v) != 4+family[v[1]] {
		return netip.AddrPort{}, errNotOurs
	}
	addr := bytes.Clone(v[4:])
	for i := range addr {
		addr[i] ^= key[i]
	}
	ip, _ := netip.AddrFromSlice(addr)
	port := binary.BigEndian.Uint16(v[2:]) ^ binary.BigEndian.Uint16(key)
	if port == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip.Is4In6() {
		return netip.AddrPort{}, errNotOurs
	}
	return netip.AddrPortFrom(ip, port), nil
}
