// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// rekeyContext is what both ends know of a rekey before its first message.
type rekeyContext struct {
	suite wire.Suite
	// side of BX1 that sends R1: 'a' or 'b'.
	side byte
	// indexA and indexB are the receiver indexes that the keys which are replaced
	// have at A and at B.
	indexA, indexB uint32
}

// first returns tr1 = H("bauxite-rekey-v1/" suite side indexA indexB R1.unsigned).
func (c *rekeyContext) first(r1 *wire.Rekey1) (tr [32]byte) {
	h := sha256.New()
	h.Write([]byte("bauxite-rekey-v1/"))
	b := append(make([]byte, 0, 2048), byte(c.suite), c.side)
	b = binary.BigEndian.AppendUint32(b, c.indexA)
	b = binary.BigEndian.AppendUint32(b, c.indexB)
	h.Write(r1.AppendUnsigned(b))
	h.Sum(tr[:0])
	return tr
}

// rekeyMAC1 is the MAC of R1: only who has the secret of the keys that are replaced can
// make it, which a stolen traffic key does not give.
func rekeyMAC1(rekey []byte, tr1 [32]byte) [wire.MACLen]byte {
	k := expand(rekey, "rekey r1", nil, 32)
	defer clear(k)
	return mac(k, tr1)
}

// rekeySchedule is the key schedule of a rekey: the shape of BX1's, with the
// secret of the keys that are replaced where that has the PSK.
type rekeySchedule struct {
	suite wire.Suite
	hs    []byte
	tr2   [32]byte
}

// newRekeySchedule derives HS'. ikm is ML-KEM || DH(e,e); r1 is the whole message.
func newRekeySchedule(suite wire.Suite, rekey, ikm []byte, tr1 [32]byte, r1, r2unsigned []byte) *rekeySchedule {
	return &rekeySchedule{suite: suite, hs: extract(ikm, rekey), tr2: hashAll(tr1[:], r1, r2unsigned)}
}

func (s *rekeySchedule) mac2() [wire.MACLen]byte {
	k := expand(s.hs, "rekey r2", s.tr2[:], 32)
	defer clear(k)
	return mac(k, s.tr2)
}

// final returns thR = H(tr2 R2).
func (s *rekeySchedule) final(r2 []byte) [32]byte { return hashAll(s.tr2[:], r2) }

func (s *rekeySchedule) mac3(final [32]byte, r3unsigned []byte) [wire.MACLen]byte {
	k := expand(s.hs, "rekey r3", s.tr2[:], 32)
	defer clear(k)
	return mac(k, hashAll(final[:], r3unsigned))
}

// secrets derives the new keys, seen from A of BX1 if a.
func (s *rekeySchedule) secrets(final [32]byte, a bool) *Secrets {
	return trafficSecrets(s.suite, s.hs, final, a)
}

func (s *rekeySchedule) erase() { clear(s.hs) }
