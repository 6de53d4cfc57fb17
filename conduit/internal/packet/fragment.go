// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

const (
	dontFragment  = 0x4000
	moreFragments = 0x2000
	offsetMask    = 0x1fff
)

// Fragmentable reports whether whoever forwards the IP packet b may fragment it:
// IPv4 without DF. b must have passed Parse.
func Fragmentable(b []byte) bool {
	return b[0]>>4 == 4 && binary.BigEndian.Uint16(b[6:])&dontFragment == 0
}

// Fragment writes into dst the fragment of the IPv4 packet b, itself perhaps a
// fragment, that begins off bytes into its payload and is at most mtu bytes long
// (RFC 791, section 3.2). It returns the fragment's length and the offset of the
// next; -1 after the last. b must have passed Parse, mtu must be at least 68 and
// dst hold mtu bytes; b does not change.
func Fragment(dst, b []byte, mtu, off int) (n, next int) {
	ihl := int(b[0]&15) * 4
	head := ihl
	copy(dst, b[:ihl])
	if off > 0 && ihl > ip4Len {
		head = copiedOptions(dst, b[:ihl])
		dst[0] = 0x40 | byte(head/4)
	}
	rest := b[ihl+off:]
	flags := binary.BigEndian.Uint16(b[6:])
	next = -1
	if room := (mtu - head) &^ 7; len(rest) > mtu-head {
		rest = rest[:room]
		next = off + room
		flags |= moreFragments
	}
	n = head + copy(dst[head:], rest)
	binary.BigEndian.PutUint16(dst[2:], uint16(n))
	binary.BigEndian.PutUint16(dst[6:], flags&^offsetMask|(flags+uint16(off/8))&offsetMask)
	dst[10], dst[11] = 0, 0
	binary.BigEndian.PutUint16(dst[10:], fold(sum(0, dst[:head])))
	return n, next
}

// copiedOptions writes those options of an IPv4 header into dst that belong in
// every fragment, and returns the new header's length. What follows an option that
// is broken is left out.
func copiedOptions(dst, head []byte) int {
	end := ip4Len
	for at := ip4Len; at < len(head); {
		n := 1
		switch head[at] {
		case 0:
			at = len(head)
			continue
		case 1:
		default:
			if at+2 > len(head) || head[at+1] < 2 || at+int(head[at+1]) > len(head) {
				at = len(head)
				continue
			}
			n = int(head[at+1])
		}
		if head[at]&0x80 != 0 {
			end += copy(dst[end:], head[at:at+n])
		}
		at += n
	}
	for end%4 != 0 {
		dst[end] = 0
		end++
	}
	return end
}
