// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// offer takes M2 and sends M3.
func (m *Machine) offer(b []byte, sid wire.SID, now time.Time) error {
	at := m.open(sid)
	if at == nil {
		return refuse("offer for no open invite")
	}
	// The peer forgets its half as well: a confirm would make a session that only we
	// have.
	if now.Sub((*at).started) >= attemptLife {
		return refuse("offer is too late")
	}
	e, confirm, err := (*at).offer(b, now)
	if err != nil {
		// The hub may have tampered: the genuine offer can still come.
		m.lastErr = err
		return err
	}
	*at = nil        // its index lives on in the session
	m.established(e) // first: the answer to CONFIRM may be sealed with its keys
	m.send(confirm)
	return nil
}

func (m *Machine) invite(b []byte, now time.Time) error {
	if m.initiates {
		return refuse("invite from the peer that should knock")
	}
	h := hashAll(b)
	if _, ok := m.seen[h]; ok {
		return refuse("invite was seen before")
	}
	r, err := newResponder(&m.cfg, b, m.knocks, now)
	if rej, ok := errors.AsType[rejected](err); ok {
		m.remember(h, now)
		out := wire.Reject{Reason: rej.reason}
		_, out.SID, _ = wire.ParseMsgHeader(b)
		out.Sig = sign(m.cfg.Keys.Ed25519, "reject", hashAll(out.AppendUnsigned(nil), h[:]))
		m.send(out.Append(nil))
	}
	if err != nil {
		return err
	}
	m.remember(h, now)
	for _, old := range m.half {
		if old.sid == r.sid { // the peer began anew with the same knock
			m.dropHalf(old)
			break
		}
	}
	if len(m.half) >= maxHalfOpen {
		m.dropHalf(m.half[0])
	}
	m.half = append(m.half, r)
	m.cfg.Limits.add(m, r)
	m.send(r.offer)
	return nil
}

// dropHalf ends an unconfirmed attempt.
func (m *Machine) dropHalf(r *responder) {
	m.cfg.Indexes.Release(r.index)
	r.sched.erase()
	m.cfg.Limits.remove(r)
	m.half = slices.DeleteFunc(m.half, func(x *responder) bool { return x == r })
}

// remember keeps the hash of a message that must not count twice; the oldest goes.
func (m *Machine) remember(h [32]byte, now time.Time) {
	if len(m.seen) >= maxSeen {
		var oldest [32]byte
		at := now
		for k, t := range m.seen {
			if !t.After(at) {
				oldest, at = k, t
			}
		}
		delete(m.seen, oldest)
	}
	m.seen[h] = now
}

func (m *Machine) knock(b []byte, now time.Time) error {
	var k wire.Knock
	if err := k.Parse(b); err != nil {
		return err
	}
	if !m.initiates || k.From != m.cfg.Peer || k.To != m.cfg.Keys.ID() {
		return refuse("knock at the wrong door")
	}
	h := hashAll(b)
	if _, ok := m.seen[h]; ok {
		return refuse("knock was seen before")
	}
	if !m.lastTry.IsZero() && now.Sub(m.lastTry) < knockGap {
		return refuse("knocks too often")
	}
	if !m.cfg.Limits.allow(now) {
		return refuse("handshakes come too often")
	}
	if !verify(m.cfg.PeerEd25519, "knock", hashAll(k.AppendUnsigned(nil)), k.Sig[:]) {
		return refuse("bad signature in knock")
	}
	m.remember(h, now)
	m.lastTry = now
	if m.taken(k.SID) {
		return refuse("knock with the SID of something else")
	}
	if m.attempt != nil && now.Sub(m.attempt.started) < firstRetry {
		return nil // an invite is on its way; should it be lost, there is a next knock
	}
	return m.begin(&m.reply, &k.SID, now)
}

// taken reports whether a SID is in use.
func (m *Machine) taken(sid wire.SID) bool {
	return m.open(sid) != nil || slices.ContainsFunc(m.sessions, func(e *Established) bool { return e.SID == sid })
}

func (m *Machine) reject(b []byte, sid wire.SID, now time.Time) error {
	var r wire.Reject
	if err := r.Parse(b); err != nil {
		return err
	}
	at := m.open(sid)
	if at == nil {
		return refuse("reject for no open invite")
	}
	invite := hashAll((*at).invite)
	if !verify(m.cfg.PeerEd25519, "reject", hashAll(r.AppendUnsigned(nil), invite[:]), r.Sig[:]) {
		return refuse("bad signature in reject")
	}
	if r.Reason == wire.RejectPSKEpoch && m.cfg.PSKBefore != nil {
		// Once for each attempt: that of the epoch before is not repeated.
		if before, ok := m.cfg.PSKBefore(); ok && (*at).epoch != before {
			m.behind = true
			if (*at).knocked {
				return m.begin(&m.reply, &sid, now)
			}
			m.try(now)
			return nil
		}
	}
	if (*at).knocked {
		m.drop(at) // it was the peer's wish
		return nil
	}
	why, ok := map[uint8]string{
		wire.RejectSuite: "no cipher in common", wire.RejectPSKEpoch: "peer does not know the pre-shared key epoch",
		wire.RejectBusy: "peer is busy", wire.RejectPolicy: "peer's policy",
	}[r.Reason]
	if !ok {
		why = fmt.Sprintf("reason %d", r.Reason)
	}
	m.fail(fmt.Errorf("peer rejected the session: %s", why))
	return nil
}
