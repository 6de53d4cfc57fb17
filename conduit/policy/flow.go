// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// The flow table remembers who began an allowed flow, so that answers pass where
// only one direction is allowed. It is a cache of fixed size: each flow has a few
// places, the oldest of which gives way. An entry says who began and never that
// the flow is allowed: the rules in force judge each packet. So a full table can
// only deny, and a new policy needs no look at the table.
const (
	flowShards = 16
	shardSets  = 1024
	setWays    = 4
	// maxPeerShare bounds the places of one set that one peer may hold, so that a
	// peer cannot push out all flows of others.
	maxPeerShare = 3
	flowLife     = int64(3 * time.Minute)
	icmpLife     = int64(10 * time.Second)
)

type flowKey struct {
	peer          *PeerRules
	local, remote netip.Addr
	lport, rport  uint16
	proto         uint8
}

type flowEntry struct {
	key      flowKey
	outbound bool // who began: us
	seen     int64
}

type flowShard struct {
	mu   sync.Mutex
	sets *[shardSets][setWays]flowEntry // made when the first flow is noted
}

type flowTable [flowShards]flowShard

// keyOf puts both directions of a flow under one key.
func keyOf(p *PeerRules, info *packet.Info, outbound bool) flowKey {
	k := flowKey{peer: p, local: info.Src, remote: info.Dst, lport: info.SrcPort, rport: info.DstPort, proto: info.Proto}
	if !outbound {
		k.local, k.remote, k.lport, k.rport = info.Dst, info.Src, info.DstPort, info.SrcPort
	}
	return k
}

// place finds the set of a key.
func place(k *flowKey) (shard, set int) {
	h := hash(k.local, k.remote, uint64(k.lport)<<24|uint64(k.rport)<<8|uint64(k.proto))
	return int(h % flowShards), int(h / flowShards % shardSets)
}

// hashKeys are drawn per process, so that nobody can aim at a place.
var hashKeys = [5]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64(), rand.Uint64(), rand.Uint64()}

// hash mixes by multiplication, as wyhash does, which costs a third of maphash.
func hash(a, b netip.Addr, x uint64) uint32 {
	p, q := a.As16(), b.As16()
	h := mix(binary.LittleEndian.Uint64(p[8:])^hashKeys[0], binary.LittleEndian.Uint64(q[8:])^hashKeys[1])
	h ^= mix(binary.LittleEndian.Uint64(p[:])^hashKeys[2], binary.LittleEndian.Uint64(q[:])^hashKeys[3])
	h = mix(h^hashKeys[4], x^hashKeys[0])
	return uint32(h ^ h>>32)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func life(proto uint8) int64 {
	if proto == packet.ProtoICMP || proto == packet.ProtoICMPv6 {
		return icmpLife
	}
	return flowLife
}

// note remembers a flow that a rule allowed.
func (t *flowTable) note(p *PeerRules, info *packet.Info, now int64, outbound bool) {
	k := keyOf(p, info, outbound)
	sh, set := place(&k)
	s := &t[sh]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sets == nil {
		s.sets = new([shardSets][setWays]flowEntry)
	}
	ways := &s.sets[set]
	victim, own, ownOldest, dead := 0, 0, -1, -1
	for i := range ways {
		e := &ways[i]
		live := e.key.peer != nil && now-e.seen <= life(e.key.proto)
		if live && e.key == k && e.outbound == outbound {
			e.seen = now
			return
		}
		if !live {
			dead = i
		} else if e.key.peer == p {
			own++
			if ownOldest < 0 || e.seen < ways[ownOldest].seen {
				ownOldest = i
			}
		}
		if e.seen < ways[victim].seen {
			victim = i
		}
	}
	switch {
	case own >= maxPeerShare:
		victim = ownOldest
	case dead >= 0:
		victim = dead
	}
	ways[victim] = flowEntry{key: k, outbound: outbound, seen: now}
}

// known reports whether the packet answers a flow that the other side of it
// began.
func (t *flowTable) known(p *PeerRules, info *packet.Info, now int64, outbound bool) bool {
	return t.has(p, info, now, outbound, !outbound)
}

// began reports whether the packet is of a flow that its own side began.
func (t *flowTable) began(p *PeerRules, info *packet.Info, now int64, outbound bool) bool {
	return t.has(p, info, now, outbound, outbound)
}

// has looks for the flow of a packet that we began, or the peer, and keeps it.
func (t *flowTable) has(p *PeerRules, info *packet.Info, now int64, outbound, byUs bool) bool {
	k := keyOf(p, info, outbound)
	sh, set := place(&k)
	s := &t[sh]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sets == nil {
		return false
	}
	for i := range s.sets[set] {
		e := &s.sets[set][i]
		if e.key == k && e.outbound == byUs && now-e.seen <= life(k.proto) {
			e.seen = now
			return true
		}
	}
	return false
}
