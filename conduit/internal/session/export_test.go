// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/sha256"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// GoldenSchedule runs the key schedule on fixed secrets and returns a hash of all
// keys that come out.
func GoldenSchedule() []byte {
	th := transcript(wire.SuiteChaCha, []byte("invite"), []byte("offer"))
	s := newSchedule(wire.SuiteChaCha, bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 128), th)
	h := sha256.New()
	for _, k := range [][]byte{s.hsA, s.hsB, s.finA, s.finB, s.sigA, s.sigB} {
		h.Write(k)
	}
	out := s.secrets([32]byte{3}, true)
	for l := range packet.NumLanes {
		for _, k := range []LaneKey{out.Send[l], out.Recv[l]} {
			h.Write(k.Key[:])
			h.Write(k.IV[:])
		}
	}
	h.Write(out.Rekey[:])
	h.Write(out.Exporter[:])
	h.Write(signInput("invite", th))
	return h.Sum(nil)
}

// MaxSeen is how many invites are remembered.
const MaxSeen = maxSeen

// Seen returns how many invites m remembers.
func Seen(m *Machine) int { return len(m.seen) }

// ReplayOffer is what A does with an offer, with the ephemeral keys and ICE
// credentials of an invite that was made before.
func ReplayOffer(cfg *Config, invite []byte, eph *ecdh.PrivateKey, kem *mlkem.DecapsulationKey768, ice wire.ICE, offer []byte, now time.Time) (*Established, []byte, error) {
	a := &initiator{cfg: cfg, epoch: cfg.PSKEpoch, eph: eph, kem: kem, invite: invite, ice: ice, started: now}
	_, a.sid, _ = wire.ParseMsgHeader(invite)
	return a.offer(offer, now)
}

// NewestErased returns a func that tells whether the handshake keys of m's newest
// unconfirmed attempt, as it is now, were erased.
func NewestErased(m *Machine) func() bool {
	s := m.half[len(m.half)-1].sched
	return func() bool {
		for _, k := range [][]byte{s.hs, s.hsA, s.hsB, s.finA, s.finB} {
			if !bytes.Equal(k, make([]byte, 32)) {
				return false
			}
		}
		return true
	}
}

// ReplayRekey sends the R1 of ephemeral keys that were made before.
func ReplayRekey(r *Rekeyer, eph *ecdh.PrivateKey, kem *mlkem.DecapsulationKey768, index uint32, now time.Time) {
	r.open(&ownRekey{eph: eph, kem: kem, index: index}, now)
}

// NewCourierRandom is NewCourier with another source of randomness.
func NewCourierRandom(cfg CourierConfig, random func([]byte)) *Courier {
	cfg.random = random
	return NewCourier(cfg)
}

// Assemblies returns how many messages are unfinished, and Ways how many addresses
// are known.
func Assemblies(c *Courier) int { return len(c.assemblies) }
func Ways(c *Courier) int       { return len(c.ways) }

// RekeyErased reports whether r holds no secret.
func RekeyErased(r *Rekeyer) bool {
	return r.cur.rekey == [32]byte{} && r.mine == nil && r.theirs == nil
}
