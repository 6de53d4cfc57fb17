// SPDX-License-Identifier: Apache-2.0

// Package classify decides which lane a packet travels in, by an ordered table of
// rules.
package classify

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

const (
	// FIN and RST use the sequence space as payload does.
	tcpFINRST = 5
	fragSlots = 64
	fragLife  = int64(time.Second)
	// flowSlots is a power of two; flows that share a slot only wait for each other.
	flowSlots = 4096
)

// Inspector looks into UDP packets for what ports do not tell, as RTPS needs it.
type Inspector interface {
	// Inspect returns the lane of pkt, or false where the rules after it are to
	// decide. It sees each UDP packet that no rule before it matched, of a datagram in
	// pieces the first fragment only. It is called by several goroutines at once, must
	// not keep pkt and should not allocate. info is a copy, so that it need not live on
	// the heap.
	Inspect(pkt []byte, info packet.Info) (packet.Lane, bool)
}

// Config of a Classifier. The zero value has the defaults alone.
type Config struct {
	// Rules come before the default ones.
	Rules []Rule
	// Inspector is asked between Rules and the default for port 5006; nil: nobody.
	Inspector Inspector
}

// Classifier is safe for concurrent use.
type Classifier struct {
	table     *table
	inspector Inspector

	// queued counts the packets of a flow that wait in each lane below Critical.
	queued [flowSlots][packet.NumLanes]atomic.Int32

	mu    sync.Mutex // guards the rest
	frags fragments
}

// fragments remembers the lanes of datagrams that travel in pieces.
type fragments struct {
	keys [fragSlots]uint64 // of packet.Info.Datagram; 0: free
	data [fragSlots]struct {
		at      int64
		lane    packet.Lane
		demoted bool
	}
	next int // the slot that is overwritten next
	last int // the slot of the last hit, most likely that of the next
}

// New returns a classifier with the rules of cfg, followed by DefaultRules.
func New(cfg Config) *Classifier {
	rules := append([]Rule(nil), cfg.Rules...)
	for _, r := range DefaultRules() {
		if r.inspect && cfg.Inspector == nil {
			continue
		}
		rules = append(rules, r)
	}
	return &Classifier{table: compile(rules), inspector: cfg.Inspector}
}

// Class returns the lane of pkt, of which info is what Parse said. now is a
// monotonic clock in nanoseconds, flow the packet's Hash.
//
// Fragments follow the first one of their datagram, since one that is late or lost
// wastes the others; one whose first is not known is Bulk. A TCP segment with
// payload follows what its flow has queued in a lower lane, since overtaking it
// looks like loss to TCP.
func (c *Classifier) Class(pkt []byte, info *packet.Info, flow uint32, now int64) packet.Lane {
	switch info.Fragment {
	case packet.FirstFragment:
		lane := c.match(pkt, info)
		c.note(info, lane, now)
		return lane
	case packet.LaterFragment:
		return c.follow(info, now)
	case packet.NotFragment:
	}
	lane := c.match(pkt, info)
	if info.Proto == packet.ProtoTCP && (info.Payload > 0 || info.TCPFlags&tcpFINRST != 0) {
		slot := &c.queued[flow%flowSlots]
		for lower := packet.Bulk; lower > lane; lower-- {
			if slot[lower].Load() > 0 {
				return lower
			}
		}
	}
	return lane
}

// match looks up the table. The messages that keep the network working are Critical
// whatever the rules say.
func (c *Classifier) match(pkt []byte, info *packet.Info) packet.Lane {
	if vital(info) {
		return packet.Critical
	}
	t := c.table
	p := t.find(info)
	for n := uint32(0); n < t.words; n++ {
		for left := t.matching(&p, n); left != 0; left &= left - 1 {
			i := bits.TrailingZeros64(left)
			if t.inspect[n]>>i&1 == 0 {
				return t.lanes[int(n)*64+i]
			}
			if lane, ok := c.inspector.Inspect(pkt, *info); ok {
				return min(lane, packet.Bulk)
			}
		}
	}
	return packet.Bulk
}

// vital tells ICMP errors, without which nothing learns of a path's MTU or of a
// port that is shut, and IPv6 neighbour discovery.
func vital(info *packet.Info) bool {
	switch info.Proto {
	case packet.ProtoICMP:
		switch info.ICMPType {
		case 3, 4, 5, 11, 12: // RFC 1122, section 3.2.2
			return true
		}
	case packet.ProtoICMPv6:
		return info.ICMPType < 128 || info.ICMPType >= 133 && info.ICMPType <= 137 // RFC 4443, RFC 4861
	}
	return false
}

// Demote notes that the first fragment of a datagram goes as Bulk after all; Demoted
// reports that of a later one, of which Class still says what lane it asks for.
func (c *Classifier) Demote(info *packet.Info) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slot := c.frags.find(info.Datagram()); slot >= 0 {
		c.frags.data[slot].demoted = true
	}
}

// Demoted reports whether the first fragment of the datagram was demoted.
func (c *Classifier) Demoted(info *packet.Info) bool {
	key := info.Datagram()
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := c.frags.find(key)
	return slot >= 0 && c.frags.data[slot].demoted
}

// note remembers the lane of a datagram whose first fragment has come.
func (c *Classifier) note(info *packet.Info, lane packet.Lane, now int64) {
	key := info.Datagram()
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &c.frags
	slot := f.find(key)
	if slot < 0 { // else the identification came round: the old datagram is over
		slot = f.next
		f.next = (f.next + 1) % fragSlots
	}
	f.keys[slot], f.last = key, slot
	f.data[slot].at, f.data[slot].lane, f.data[slot].demoted = now, lane, false
}

func (c *Classifier) follow(info *packet.Info, now int64) packet.Lane {
	key := info.Datagram()
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &c.frags
	slot := f.find(key)
	if slot < 0 || now-f.data[slot].at >= fragLife {
		return packet.Bulk // its first fragment is unknown, so is its port
	}
	f.data[slot].at = now
	return f.data[slot].lane
}

// find returns the slot of a datagram, or -1.
func (f *fragments) find(key uint64) int {
	if f.keys[f.last] == key {
		return f.last
	}
	for i := range f.keys {
		if f.keys[i] == key {
			f.last = i
			return i
		}
	}
	return -1
}

// Queued tells that a packet of flow is on its way into lane l: the lane that it
// really enters, after policing. It must be called before the next packet of the
// flow is classified.
func (c *Classifier) Queued(flow uint32, l packet.Lane) {
	if l != packet.Critical { // nothing waits behind Critical
		c.queued[flow%flowSlots][l].Add(1)
	}
}

// Left tells that a packet of flow left lane l, sent or dropped.
func (c *Classifier) Left(flow uint32, l packet.Lane) {
	if l != packet.Critical {
		c.queued[flow%flowSlots][l].Add(-1)
	}
}
