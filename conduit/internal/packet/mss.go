// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// TCPSYN is the SYN bit of Info.TCPFlags.
const TCPSYN = 0x02

// Lengths of headers without options.
const (
	ip4Len = 20
	ip6Len = 40
	tcpLen = 20
)

// ClampMSS lowers the maximum segment size that a TCP SYN or SYN-ACK announces to
// what fits an MTU, and adapts the checksum. info must be that of Parse. It reports
// whether b was changed; a packet without the option stays as it is, since what
// that means (RFC 9293: 536 bytes, 1220 on IPv6) fits every path.
func ClampMSS(b []byte, info *Info, mtu int) bool {
	if info.Proto != ProtoTCP || info.TCPFlags&TCPSYN == 0 || info.Transport == 0 {
		return false
	}
	mss := mtu - tcpLen - ip4Len
	if info.Src.Is6() {
		mss = mtu - tcpLen - ip6Len
	}
	if mss <= 0 || mss > 0xffff {
		return false
	}
	tcp := b[info.Transport:]
	if len(tcp) < tcpLen {
		return false
	}
	end := int(tcp[12]>>4) * 4
	if end > len(tcp) {
		return false
	}
	for at := tcpLen; at < end; {
		switch tcp[at] {
		case 0: // end of the list
			return false
		case 1: // no operation
			at++
			continue
		}
		if at+2 > end {
			return false
		}
		n := int(tcp[at+1])
		if n < 2 || at+n > end {
			return false
		}
		if tcp[at] != 2 || n != 4 {
			at += n
			continue
		}
		old := binary.BigEndian.Uint16(tcp[at+2:])
		if int(old) <= mss {
			return false
		}
		check := binary.BigEndian.Uint16(tcp[16:])
		if at%2 == 0 {
			check = update(check, old, uint16(mss))
		} else { // it lies across two words of the sum, which then sees it swapped
			check = update(check, old<<8|old>>8, uint16(mss)<<8|uint16(mss)>>8)
		}
		binary.BigEndian.PutUint16(tcp[at+2:], uint16(mss))
		binary.BigEndian.PutUint16(tcp[16:], check)
		return true
	}
	return false
}
