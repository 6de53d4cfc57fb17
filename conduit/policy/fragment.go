// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// The table of fragments remembers the first fragments that were allowed, so that
// later ones, which have no ports, are judged as they were. Like that of flows it
// is a cache that never allows by itself: a later fragment of which it knows
// nothing is judged without ports. TCP is left out: a later fragment may overlap
// the flags of the first (RFC 3128), but no port, which lies in its first 8 bytes.
const (
	fragSets = 256
	fragWays = 4
	// maxFragShare bounds the places of one set that one peer may hold.
	maxFragShare = 3
	// fragLife is longer than the pieces of a datagram are on their way.
	fragLife = int64(5 * time.Second)
)

type fragKey struct {
	peer     *PeerRules
	src, dst netip.Addr
	id       uint32
	proto    uint8
	outbound bool
}

type fragEntry struct {
	key              fragKey
	srcPort, dstPort uint16
	icmpType         uint8
	seen             int64
}

type fragTable struct {
	mu   sync.Mutex
	sets *[fragSets][fragWays]fragEntry // made with the first fragment
}

func fragKeyOf(p *PeerRules, info *packet.Info, outbound bool) fragKey {
	return fragKey{p, info.Src, info.Dst, info.FragmentID, info.Proto, outbound}
}

func (k *fragKey) set() uint32 {
	return hash(k.src, k.dst, uint64(k.id)<<8|uint64(k.proto)) % fragSets
}

// note remembers a first fragment that was allowed.
func (t *fragTable) note(p *PeerRules, info *packet.Info, now int64, outbound bool) {
	k := fragKeyOf(p, info, outbound)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sets == nil {
		t.sets = new([fragSets][fragWays]fragEntry)
	}
	ways := &t.sets[k.set()]
	victim, own, ownOldest := 0, 0, -1
	for i := range ways {
		e := &ways[i]
		if e.key == k {
			own, victim = 0, i
			break
		}
		if e.key.peer == p && now-e.seen <= fragLife {
			own++
			if ownOldest < 0 || e.seen < ways[ownOldest].seen {
				ownOldest = i
			}
		}
		if e.seen < ways[victim].seen || e.key.peer == nil && ways[victim].key.peer != nil {
			victim = i
		}
	}
	if own >= maxFragShare {
		victim = ownOldest
	}
	ways[victim] = fragEntry{k, info.SrcPort, info.DstPort, info.ICMPType, now}
}

// find fills first with a later fragment, as if it had the ports of its first one.
func (t *fragTable) find(p *PeerRules, info, first *packet.Info, now int64, outbound bool) bool {
	k := fragKeyOf(p, info, outbound)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sets == nil {
		return false
	}
	ways := &t.sets[k.set()]
	for i := range ways {
		if e := &ways[i]; e.key == k && now-e.seen <= fragLife {
			*first = *info
			first.SrcPort, first.DstPort, first.ICMPType = e.srcPort, e.dstPort, e.icmpType
			return true
		}
	}
	return false
}
