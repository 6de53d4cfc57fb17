// SPDX-License-Identifier: Apache-2.0

// Package classify decides which lane a packet travels in, by an ordered table of
// rules.
package classify

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Rule sends the packets that match all of its set fields to Lane.
type Rule struct {
	// Protos are IP protocol numbers; none means any.
	Protos []uint8
	// Below matches packets of fewer bytes; 0 means any length.
	Below int
	// Port matches either port of TCP or UDP; 0 means any.
	Port uint16
	Lane packet.Lane
}

// DefaultRules returns the defaults: ICMP and packets under 100 bytes are
// Critical, port 5006 is Telemetry. What no rule matches is Bulk.
func DefaultRules() []Rule {
	return []Rule{
		{Protos: []uint8{packet.ProtoICMP, packet.ProtoICMPv6}, Lane: packet.Critical},
		{Below: 100, Lane: packet.Critical},
		{Port: 5006, Lane: packet.Telemetry},
	}
}

const (
	// FIN and RST use the sequence space as payload does.
	tcpFINRST = 5
	fragSlots = 64
	fragLife  = int64(time.Second)
	// flowSlots is a power of two; flows that share a slot only wait for each other.
	flowSlots = 4096
)

// Classifier is safe for concurrent use.
type Classifier struct {
	rules []Rule // set once in New

	// queued counts the packets of a flow that wait in each lane below Critical.
	queued [flowSlots][packet.NumLanes]atomic.Int32

	mu    sync.Mutex // guards the rest
	frags [fragSlots]fragment
	next  int
}

// fragment remembers the lane of a datagram that travels in pieces.
type fragment struct {
	key  packet.Info // Src, Dst, Proto and FragmentID only
	lane packet.Lane
	at   int64
}

// New returns a classifier with a copy of rules; nil means DefaultRules.
func New(rules []Rule) *Classifier {
	if rules == nil {
		rules = DefaultRules()
	}
	return &Classifier{rules: slices.Clone(rules)}
}

// Class returns the lane of a packet. now is a monotonic clock in nanoseconds,
// flow the packet's Hash.
//
// Fragments follow the first one of their datagram, since one that is late or
// lost wastes the others. A TCP segment with payload follows what its flow has
// queued in a lower lane, since overtaking it looks like loss to TCP.
func (c *Classifier) Class(info *packet.Info, flow uint32, now int64) packet.Lane {
	if info.Fragment != packet.NotFragment {
		return c.fragment(info, now)
	}
	lane := c.match(info)
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

func (c *Classifier) match(info *packet.Info) packet.Lane {
	for i := range c.rules {
		r := &c.rules[i]
		if r.Below != 0 && info.Len >= r.Below {
			continue
		}
		if r.Port != 0 && (info.Fragment == packet.LaterFragment || info.SrcPort != r.Port && info.DstPort != r.Port) {
			continue
		}
		if len(r.Protos) != 0 {
			hit := false
			for _, p := range r.Protos {
				hit = hit || p == info.Proto
			}
			if !hit {
				continue
			}
		}
		return r.Lane
	}
	return packet.Bulk
}

func (c *Classifier) fragment(info *packet.Info, now int64) packet.Lane {
	key := packet.Info{Src: info.Src, Dst: info.Dst, Proto: info.Proto, FragmentID: info.FragmentID}
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := &c.frags[c.next]
	for i := range c.frags {
		f := &c.frags[i]
		if f.at == 0 || f.key != key {
			continue
		}
		if info.Fragment == packet.FirstFragment {
			slot = f // the identification came round: the old datagram is over
			break
		}
		if now-f.at < fragLife {
			f.at = now
			return f.lane
		}
	}
	if info.Fragment == packet.LaterFragment {
		return packet.Bulk // its first fragment is unknown, so is its port
	}
	lane := c.match(info)
	if slot == &c.frags[c.next] {
		c.next = (c.next + 1) % fragSlots
	}
	*slot = fragment{key, lane, max(now, 1)}
	return lane
}

// Queued tells that a packet of flow is on its way into lane l. It must be called
// before the next packet of the flow is classified.
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
