// SPDX-License-Identifier: Apache-2.0

package wire

import "encoding/binary"

// Rekey1 begins the in-band rekey: a fresh X25519 and ML-KEM run chained to the
// session's secret. Rekey messages travel sealed in TypeRekey packets.
type Rekey1 struct {
	SID      SID
	Index    uint32
	X25519   [X25519Len]byte
	EncapKey [EncapKeyLen]byte
	// MAC is over everything before it.
	MAC [MACLen]byte
}

// AppendUnsigned encodes all but the MAC.
func (m *Rekey1) AppendUnsigned(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(appendMsgHeader(b, MsgRekey1, &m.SID), m.Index)
	return append(append(b, m.X25519[:]...), m.EncapKey[:]...)
}

// Append encodes m.
func (m *Rekey1) Append(b []byte) []byte { return append(m.AppendUnsigned(b), m.MAC[:]...) }

// Parse decodes b.
func (m *Rekey1) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgRekey1, &m.SID)
	m.Index = r.u32()
	r.fixed(m.X25519[:])
	r.fixed(m.EncapKey[:])
	r.fixed(m.MAC[:])
	if !r.end() || m.Index == 0 || m.Index == ReservedIndex {
		return malformed("rekey 1")
	}
	return nil
}

// Rekey2 answers Rekey1.
type Rekey2 struct {
	SID        SID
	Index      uint32
	X25519     [X25519Len]byte
	Ciphertext [CiphertextLen]byte
	// MAC is under a key of the new secret.
	MAC [MACLen]byte
}

// AppendUnsigned encodes all but the MAC.
func (m *Rekey2) AppendUnsigned(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(appendMsgHeader(b, MsgRekey2, &m.SID), m.Index)
	return append(append(b, m.X25519[:]...), m.Ciphertext[:]...)
}

// Append encodes m.
func (m *Rekey2) Append(b []byte) []byte { return append(m.AppendUnsigned(b), m.MAC[:]...) }

// Parse decodes b.
func (m *Rekey2) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgRekey2, &m.SID)
	m.Index = r.u32()
	r.fixed(m.X25519[:])
	r.fixed(m.Ciphertext[:])
	r.fixed(m.MAC[:])
	if !r.end() || m.Index == 0 || m.Index == ReservedIndex {
		return malformed("rekey 2")
	}
	return nil
}

// Rekey3 confirms the new keys with a MAC under them.
type Rekey3 struct {
	SID SID
	MAC [MACLen]byte
}

// AppendUnsigned encodes all but the MAC.
func (m *Rekey3) AppendUnsigned(b []byte) []byte { return appendMsgHeader(b, MsgRekey3, &m.SID) }

// Append encodes m.
func (m *Rekey3) Append(b []byte) []byte { return append(m.AppendUnsigned(b), m.MAC[:]...) }

// Parse decodes b.
func (m *Rekey3) Parse(b []byte) error {
	r := reader{b: b}
	r.msgHeader(MsgRekey3, &m.SID)
	r.fixed(m.MAC[:])
	if !r.end() {
		return malformed("rekey 3")
	}
	return nil
}
