// SPDX-License-Identifier: Apache-2.0

package policy

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
