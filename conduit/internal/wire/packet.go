// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

const (
	// Magic is the first byte of every packet that is not STUN.
	Magic = 0x80
	// Version is the wire version in the two top bits of the second byte.
	Version = 1
	// HeaderLen is the length of the header, which is also the AEAD's
	// additional data.
	HeaderLen = 16
	// TagLen is the length of the AEAD tag.
	TagLen = 16
	// Overhead is what a packet grows by on the wire without a nonce of its own.
	Overhead = HeaderLen + TagLen
	// ReservedIndex is never a receiver index: it is STUN's magic cookie, at the
	// place where STUN has it.
	ReservedIndex = 0x2112A442
	// TimeUnit is the unit of the header's transmit time in microseconds.
	TimeUnit = 64
)

// Type says what a packet's sealed body is.
type Type uint8

// The packet types. Others are dropped silently.
const (
	// TypeData carries one inner IP packet whose checksums are complete.
	TypeData Type = 1
	// TypeDataPartial carries one inner IP packet whose TCP or UDP checksum field
	// holds the pseudo-header sum only. Sent only to a peer with CapPartialChecksum.
	TypeDataPartial Type = 2
	// TypeProbe asks for a TypeProbeAck on the path on which it arrived.
	TypeProbe         Type = 3
	TypeProbeAck      Type = 4
	TypeReport        Type = 5
	TypePathChallenge Type = 6
	TypePathResponse  Type = 7
	TypeRekey         Type = 8
	TypeClose         Type = 9
	// TypeSignal carries a Fragment of a signalling message (MsgInvite to
	// MsgReject) inside a session, where it spares the way by the hub.
	TypeSignal Type = 10
	// TypeRelay carries a whole packet for, or from, another peer: see Relay. It,
	// data and the echo are what may travel in any lane.
	TypeRelay Type = 11
	// TypeEcho is what the receiver answers with a TypeEchoReply of the same lane and
	// length: both wait where data of that lane waits. Sent only to a peer with
	// CapReport.
	TypeEcho Type = 12
	// TypeEchoReply has the identifier of a TypeEcho and how long it was kept.
	TypeEchoReply Type = 13
	// TypeHandshake is not sealed: it carries a fragment of a handshake message
	// between known peers while the hub is away. Its receiver index is 0.
	TypeHandshake Type = 15
)

// Header is the clear part of a packet.
type Header struct {
	Type Type
	Lane packet.Lane
	// Time is the sender's clock when the packet left its lane, in units of 64 µs,
	// wrapping every 4.2 s.
	Time uint16
	// Index is the receiver's name for the session.
	Index uint32
	// Counter counts the packets of one session, direction and lane from 0.
	Counter uint64
}

// Put writes the header into the first HeaderLen bytes of b.
func (h *Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0] = Magic
	b[1] = Version<<6 | byte(h.Type)<<2 | byte(h.Lane)
	binary.BigEndian.PutUint16(b[2:], h.Time)
	binary.BigEndian.PutUint32(b[4:], h.Index)
	binary.BigEndian.PutUint64(b[8:], h.Counter)
}

// Parse reads the header of b and reports whether b can be a packet of this
// version: long enough for header and tag, a known lane and a type that is not 0.
func (h *Header) Parse(b []byte) bool {
	if len(b) < HeaderLen+TagLen || b[0] != Magic || b[1]>>6 != Version {
		return false
	}
	h.Type = Type(b[1] >> 2 & 15)
	h.Lane = packet.Lane(b[1] & 3)
	h.Time = binary.BigEndian.Uint16(b[2:])
	h.Index = binary.BigEndian.Uint32(b[4:])
	h.Counter = binary.BigEndian.Uint64(b[8:])
	return h.Lane < packet.NumLanes && h.Type != 0 && h.Index != ReservedIndex
}

// Probe is the body of TypeProbe, before padding. Zero bytes may follow up to
// the size that is probed.
type Probe struct {
	Flags uint8 // ProbeMoved
	// Uplink is the sender's number of the interface that it sends on; 0 is unknown.
	Uplink uint8
	// Path is the sender's own number for the path.
	Path uint16
	// Seq is the sender's number of the probe, from 1 over all paths; 0 measures
	// nothing.
	Seq uint32
	// Sent is the sender's monotonic clock in nanoseconds; the receiver returns it
	// unread.
	Sent uint64
}

// ProbeLen is the length of a Probe without padding.
const ProbeLen = 16

// ProbeMoved is the flag of a Probe that says: the addresses that I sent from
// before on this uplink are gone. Other flags are ignored.
const ProbeMoved = 1 << 0

// Append encodes p.
func (p *Probe) Append(b []byte) []byte {
	b = append(b, p.Flags, p.Uplink)
	b = binary.BigEndian.AppendUint16(b, p.Path)
	b = binary.BigEndian.AppendUint32(b, p.Seq)
	return binary.BigEndian.AppendUint64(b, p.Sent)
}

// Parse decodes b; padding is ignored.
func (p *Probe) Parse(b []byte) error {
	if len(b) < ProbeLen {
		return malformed("probe")
	}
	p.Flags, p.Uplink = b[0], b[1]
	p.Path, p.Seq, p.Sent = binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:])
	return nil
}

// ProbeAck is the body of TypeProbeAck.
type ProbeAck struct {
	// Probe echoes the probe, flags and uplink included.
	Probe Probe
	// Hold is how long the receiver kept the probe, in microseconds.
	Hold uint32
	// Size is the length of the datagram that carried the probe, in bytes.
	Size uint16
}

// ProbeAckLen is the length of a ProbeAck.
const ProbeAckLen = ProbeLen + 8

// Append encodes p.
func (p *ProbeAck) Append(b []byte) []byte {
	b = p.Probe.Append(b)
	b = binary.BigEndian.AppendUint32(b, p.Hold)
	b = binary.BigEndian.AppendUint16(b, p.Size)
	return append(b, 0, 0)
}

// Parse decodes b.
func (p *ProbeAck) Parse(b []byte) error {
	if len(b) != ProbeAckLen || p.Probe.Parse(b) != nil {
		return malformed("probe ack")
	}
	p.Hold, p.Size = binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint16(b[20:])
	return nil
}

// Report is the body of TypeReport: what the receiver saw on the path on which
// the report arrives, in the other direction. Counts are cumulative over all
// lanes, so a lost report costs nothing.
type Report struct {
	// Path is reserved and sent as 0.
	Path uint16
	// Packets and Bytes (lengths of datagrams) count what the session accepted as
	// its own, and copies of it, up to the newest packet.
	Packets uint64
	Bytes   uint64
	// Lane, Session and Counter name the newest packet: the one that arrived last
	// of the least urgent lane of which any did. Session is its receiver index; 0:
	// none is known. Received is the receiver's clock at its arrival in microseconds.
	Lane     packet.Lane
	Session  uint32
	Counter  uint64
	Received uint64
	// Hold is the time from then to the sending of this report, in microseconds.
	Hold uint32
	// Samples counts the packets behind the one-way delays, all of that lane;
	// DelayMin may be that of another. They are relative to an arbitrary offset and
	// in units of 16 µs.
	Samples                            uint16
	DelayMin, DelayP50, DelayMax, Last int32
	// CE counts packets that arrived with ECN congestion experienced.
	CE uint32
	// TrainFirst, TrainBytes and TrainDispersion (µs) describe one train: Bulk
	// packets of consecutive counters that left back to back. TrainBytes 0 means
	// none; it and TrainPackets exclude the first packet. Dispersion 0 is less than
	// can be seen.
	TrainFirst      uint64
	TrainPackets    uint16
	TrainBytes      uint32
	TrainDispersion uint32
	// Copies counts those of Packets that had arrived before, on whatever path;
	// modulo 2^32.
	Copies uint32
}

// ReportLen is the length of a Report.
const ReportLen = 88

// Append encodes r.
func (r *Report) Append(b []byte) []byte {
	be := binary.BigEndian
	b = be.AppendUint16(b, r.Path)
	b = append(b, byte(r.Lane), 0)
	b = be.AppendUint16(b, r.Samples)
	b = be.AppendUint16(b, r.TrainPackets)
	b = be.AppendUint64(b, r.Packets)
	b = be.AppendUint64(b, r.Bytes)
	b = be.AppendUint64(b, r.Counter)
	b = be.AppendUint64(b, r.Received)
	b = be.AppendUint32(b, r.Hold)
	b = be.AppendUint32(b, r.CE)
	for _, d := range [4]int32{r.DelayMin, r.DelayP50, r.DelayMax, r.Last} {
		b = be.AppendUint32(b, uint32(d))
	}
	b = be.AppendUint64(b, r.TrainFirst)
	b = be.AppendUint32(b, r.TrainBytes)
	b = be.AppendUint32(b, r.TrainDispersion)
	b = be.AppendUint32(b, r.Session)
	return be.AppendUint32(b, r.Copies)
}

// Parse decodes b.
func (r *Report) Parse(b []byte) error {
	if len(b) != ReportLen || b[2] >= packet.NumLanes {
		return malformed("report")
	}
	be := binary.BigEndian
	r.Path, r.Lane, r.Samples = be.Uint16(b), packet.Lane(b[2]), be.Uint16(b[4:])
	r.Packets, r.Bytes, r.Counter, r.Received = be.Uint64(b[8:]), be.Uint64(b[16:]), be.Uint64(b[24:]), be.Uint64(b[32:])
	r.Hold, r.CE = be.Uint32(b[40:]), be.Uint32(b[44:])
	for i, d := range [4]*int32{&r.DelayMin, &r.DelayP50, &r.DelayMax, &r.Last} {
		*d = int32(be.Uint32(b[48+4*i:]))
	}
	r.TrainFirst, r.TrainBytes, r.TrainDispersion = be.Uint64(b[64:]), be.Uint32(b[72:]), be.Uint32(b[76:])
	r.TrainPackets = be.Uint16(b[6:])
	r.Session, r.Copies = be.Uint32(b[80:]), be.Uint32(b[84:])
	return nil
}

// PathChallenge is the body of TypePathChallenge and, echoed, of
// TypePathResponse: 8 random bytes (the idea of RFC 9000, section 8.2).
type PathChallenge [8]byte

// Parse decodes b.
func (p *PathChallenge) Parse(b []byte) error {
	if len(b) != len(p) {
		return malformed("path challenge")
	}
	copy(p[:], b)
	return nil
}

// Rekey is the body of TypeRekey: a fragment of a rekey message (MsgRekey1,
// MsgRekey2 or MsgRekey3), which does not fit one packet with its ML-KEM parts.
type Rekey = Fragment

// Close reasons.
const (
	CloseShutdown  = 1
	CloseRevoked   = 2
	CloseReplaced  = 3
	ClosePolicy    = 4
	CloseKeyExpiry = 5
)

// Close is the body of TypeClose. The session is gone when it arrives.
type Close struct{ Reason uint8 }

// Append encodes c.
func (c *Close) Append(b []byte) []byte { return append(b, c.Reason, 0, 0, 0) }

// Parse decodes b.
func (c *Close) Parse(b []byte) error {
	if len(b) != 4 {
		return malformed("close")
	}
	c.Reason = b[0]
	return nil
}
