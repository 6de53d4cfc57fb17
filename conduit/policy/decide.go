// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Verdict is the decision about a packet.
type Verdict struct {
	Allow bool
	// Demote is set, beside Allow, where the packet is over its sender's budget. The
	// sender puts it behind all of Bulk; a receiver takes it as it is.
	Demote bool
	// Rule is the number of what decided: a rule or, with Demote, a budget.
	Rule int32
}

// ruleNone is the number of the default denial, ruleFlow of what an allowed flow
// lets back in.
const (
	ruleNone int32 = 0
	ruleFlow int32 = -1
)

// Send decides about a packet to the peer and takes it from this node's budget.
// pkt is the packet, info what Parse says of it, lane where it belongs, now a
// monotonic clock in nanoseconds. It does not allocate, and sees one policy only.
func (e *Engine) Send(p *PeerRules, pkt []byte, info *packet.Info, lane Lane, now int64) Verdict {
	v := p.table.Load()
	if v == nil {
		return e.deny(ruleNone)
	}
	d := e.decide(p, v, pkt, info, lane, now, true)
	if d.Allow && v.own != nil {
		d = e.spend(v.own, d, lane, info.Len, now)
	}
	return d
}

// Receive decides about a packet from the peer that came on the lane and takes it
// from the peer's budget, of which this node sees its own part only.
func (e *Engine) Receive(p *PeerRules, pkt []byte, info *packet.Info, lane Lane, now int64) Verdict {
	v := p.table.Load()
	if v == nil {
		return e.deny(ruleNone)
	}
	d := e.decide(p, v, pkt, info, lane, now, false)
	if d.Allow && v.theirs != nil {
		d = e.spend(v.theirs, d, lane, info.Len, now)
	}
	return d
}

// Bound reports whether a peer that has the virtual addresses v4 and v6 may send
// the packet to a node with the addresses local: it speaks for itself only, and to
// that node.
func Bound[T any](info *packet.Info, v4, v6 netip.Addr, local map[netip.Addr]T) bool {
	if info.Src != v4 && info.Src != v6 {
		return false
	}
	_, ours := local[info.Dst]
	return ours
}

func (e *Engine) decide(p *PeerRules, v *peerView, pkt []byte, info *packet.Info, lane Lane, now int64, outbound bool) Verdict {
	if v.free {
		return Verdict{Allow: true}
	}
	if lane >= packet.NumLanes {
		return e.deny(ruleNone)
	}
	began, answered := &v.out, &v.in // rules for what the sender, the other side begins
	column := lane
	if !outbound {
		began, answered = &v.in, &v.out
		// The sender judged it on its own lane and may have demoted it.
		if lane == Bulk {
			column = anyLane
		}
	}
	kind := protoOf(info)
	later := info.Fragment == packet.LaterFragment
	var first packet.Info
	if later && (kind == protoUDP || kind == protoICMP) && e.frags.find(p, info, &first, now, outbound) {
		info, later = &first, false
	}
	hasPort := (kind == protoTCP || kind == protoUDP) && !later
	isFlow := hasPort || kind == protoICMP
	rule, allow := began.judge(kind, info.DstPort, hasPort, column)
	switch {
	case allow:
		if isFlow {
			e.flows.note(p, info, now, outbound)
		}
	case !isFlow:
	case mayAnswer(kind, info, later):
		// Is it the answer to a flow that the other side began and that the policy in
		// force still allows, on this lane?
		if _, ok := answered.judge(kind, info.SrcPort, hasPort, column); ok && e.flows.known(p, info, now, outbound) {
			rule, allow = ruleFlow, true
		}
	case isError(info) && e.aboutFlow(p, began, answered, pkt, info, now, outbound):
		return Verdict{Allow: true, Rule: ruleFlow}
	}
	if !allow {
		return e.deny(rule)
	}
	if info.Fragment == packet.FirstFragment && info != &first && kind != protoTCP {
		e.frags.note(p, info, now, outbound)
	}
	return Verdict{Allow: true, Rule: rule}
}

// aboutFlow reports whether an ICMP error is about a packet of a flow that was
// seen and that the policy in force allows, on some lane: errors come from
// kernels, which know of no lanes.
func (e *Engine) aboutFlow(p *PeerRules, began, answered *ruleSet, pkt []byte, info *packet.Info, now int64, outbound bool) bool {
	var q packet.Info
	if !quoted(pkt, info, &q) {
		return false
	}
	kind := protoOf(&q)
	hasPort := kind != protoICMP
	request := kind != protoICMP || q.ICMPType == 8 || q.ICMPType == 128
	answer := kind != protoICMP || !request
	// The packet that it quotes went the other way.
	if request {
		if _, ok := answered.judge(kind, q.DstPort, hasPort, anyLane); ok && e.flows.began(p, &q, now, !outbound) {
			return true
		}
	}
	if answer {
		if _, ok := began.judge(kind, q.SrcPort, hasPort, anyLane); ok && e.flows.known(p, &q, now, !outbound) {
			return true
		}
	}
	return false
}

// mayAnswer reports whether the packet can belong to a flow that its receiver
// began: a TCP SYN alone and ICMP requests begin something themselves.
func mayAnswer(kind proto, info *packet.Info, later bool) bool {
	const syn, ack = 0x02, 0x10
	switch {
	case kind == protoTCP:
		return info.TCPFlags&(syn|ack) != syn
	case kind != protoICMP || later:
		return true
	case info.Proto == packet.ProtoICMP:
		switch info.ICMPType {
		case 0, 14, 16, 18: // echo, timestamp, information, address mask
			return true
		}
		return false
	}
	return info.ICMPType == 129
}

func protoOf(info *packet.Info) proto {
	switch info.Proto {
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return protoICMP
	case packet.ProtoTCP:
		return protoTCP
	case packet.ProtoUDP:
		return protoUDP
	}
	return protoOther
}

func (e *Engine) deny(rule int32) Verdict {
	(*e.denied.Load())[rule].Add(1)
	return Verdict{Rule: rule}
}
