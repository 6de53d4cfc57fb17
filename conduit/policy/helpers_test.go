// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/bauxite-mesh/bauxite/conduit/internal/packet"

// SpendOutbound takes a packet from the engine's own budget, SpendInbound from a
// peer's, whatever the rules say of it.
func (e *Engine) SpendOutbound(lane Lane, size int, now int64) Verdict {
	e.mu.Lock()
	own := e.own
	e.mu.Unlock()
	return e.spend(own, Verdict{Allow: true}, lane, size, now)
}

func (e *Engine) SpendInbound(p *PeerRules, lane Lane, size int, now int64) Verdict {
	v := p.table.Load()
	if v == nil {
		return e.deny(ruleNone)
	}
	return e.spend(v.theirs, Verdict{Allow: true}, lane, size, now)
}

// Outbound is Send without budgets and without what ICMP errors quote, Inbound
// Receive.
func (e *Engine) Outbound(p *PeerRules, info *packet.Info, lane Lane, now int64) Verdict {
	return e.only(p, info, lane, now, true)
}

func (e *Engine) Inbound(p *PeerRules, info *packet.Info, lane Lane, now int64) Verdict {
	return e.only(p, info, lane, now, false)
}

func (e *Engine) only(p *PeerRules, info *packet.Info, lane Lane, now int64, outbound bool) Verdict {
	v := p.table.Load()
	if v == nil {
		return e.deny(ruleNone)
	}
	return e.decide(p, v, nil, info, lane, now, outbound)
}
