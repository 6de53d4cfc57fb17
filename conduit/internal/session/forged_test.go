// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// stranger is a member of the mesh of p, or of another, that is no end of p.
func (p *pair) stranger(ca *conduittest.CA) (*identity.Keys, [][]byte) {
	p.t.Helper()
	k, err := identity.GenerateKeys()
	if err != nil {
		p.t.Fatal(err)
	}
	return k, p.issue(ca, k, time.Hour)
}

func (p *pair) issue(ca *conduittest.CA, k *identity.Keys, life time.Duration) [][]byte {
	p.t.Helper()
	c, err := ca.Issue(k, "mallory", conduittest.Addr(9), netip.Addr{}, life)
	if err != nil {
		p.t.Fatal(err)
	}
	return c.Chain
}

// refused reports whether err is one of a dropped message.
func refused(err error) bool {
	return errors.Is(err, session.ErrHandshake) || errors.Is(err, identity.ErrCertificate) || errors.Is(err, wire.ErrMalformed)
}

// quiet checks that e took b for nothing: an error, no answer, no session, and no
// index kept beside those of live attempts.
func (e *end) quiet(t *testing.T, b []byte, now time.Time, want string) {
	t.Helper()
	est, live := len(e.est), len(e.idx.live)
	err := e.step(b, now)
	if !refused(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("error = %v, want one about %q", err, want)
	}
	if len(e.est) != est || len(e.out) != 0 || len(e.failed) != 0 || len(e.idx.live) != live {
		t.Errorf("a dropped message left %d sessions, %d answers, %d failures, %d indexes", len(e.est)-est, len(e.out), len(e.failed), len(e.idx.live)-live)
	}
}

// Whoever lacks one of the peer's secrets cannot pass for it: the hub, which has
// the CA, and members of the mesh among them. The lies are told with all that the
// handshake keys can make right, so that each check is the only one in the way.
func TestForgedOffer(t *testing.T) {
	other, err := conduittest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		lie  func(p *pair, m, ghost *identity.Keys, ghostChain [][]byte) lie
		want string
	}{
		"another signs":           {func(_ *pair, _, g *identity.Keys, _ [][]byte) lie { return lie{signer: g.Ed25519} }, "signature"},
		"signature of confirm":    {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{role: "confirm"} }, "signature"},
		"signature of other hash": {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{sigHash: 1} }, "signature"},
		"MAC":                     {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{mac: 1} }, "MAC"},
		"MAC of A's key":          {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{otherFin: true} }, "MAC"},
		"without B's X25519 key":  {func(_ *pair, _, g *identity.Keys, _ [][]byte) lie { return lie{static: g.X25519} }, "open"},
		"without the PSK":         {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{psk: make([]byte, 32)} }, "open"},
		"another's chain":         {func(_ *pair, _, g *identity.Keys, ch [][]byte) lie { return lie{signer: g.Ed25519, chain: ch} }, "another peer"},
		"chain of another CA":     {func(p *pair, m, _ *identity.Keys, _ [][]byte) lie { return lie{chain: p.issue(other, m, time.Hour)} }, "certificate"},
		"expired chain":           {func(p *pair, m, _ *identity.Keys, _ [][]byte) lie { return lie{chain: p.issue(p.ca, m, -time.Minute)} }, "certificate"},
		"suite that A lacks":      {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{suite: wire.SuiteAES} }, "suite"},
		"other sid":               {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{sid: &wire.SID{1}} }, "no open invite"},
		"degenerate point":        {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{point: new([32]byte)} }, "degenerate"},
		"longer body":             {func(*pair, *identity.Keys, *identity.Keys, [][]byte) lie { return lie{trailing: true} }, "offer body"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "suite that A lacks" {
				needChaCha(t)
			}
			p := newPair(t, func(lo, _ *session.Config) { lo.Suites = lo.Suites[:1] })
			ghost, chain := p.stranger(p.ca)
			p.lo.connect(p.now)
			m1 := p.lo.take()
			p.lo.quiet(t, p.hi.as(t, p.lo).offer(m1, c.lie(p, p.hi.keys, ghost, chain)), p.now, c.want)
			if err := p.hi.step(m1, p.now); err != nil { // the attempt is still open
				t.Fatal(err)
			}
			p.run()
			p.agreed()
		})
	}
}

func TestForgedInvite(t *testing.T) {
	other, err := conduittest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		lie  func(p *pair, ghost *identity.Keys, ghostChain [][]byte) lie
		want string
	}{
		"another signs":        {func(_ *pair, g *identity.Keys, _ [][]byte) lie { return lie{signer: g.Ed25519} }, "signature"},
		"signature of a knock": {func(*pair, *identity.Keys, [][]byte) lie { return lie{role: "knock"} }, "signature"},
		"another's chain":      {func(_ *pair, g *identity.Keys, ch [][]byte) lie { return lie{signer: g.Ed25519, chain: ch} }, "another peer"},
		"chain of another CA": {func(p *pair, _ *identity.Keys, _ [][]byte) lie {
			return lie{chain: p.issue(other, p.lo.keys, time.Hour)}
		}, "certificate"},
		"expired chain": {func(p *pair, _ *identity.Keys, _ [][]byte) lie {
			return lie{chain: p.issue(p.ca, p.lo.keys, -time.Minute)}
		}, "certificate"},
		"to another": {func(_ *pair, g *identity.Keys, _ [][]byte) lie {
			return lie{invite: func(m *wire.Invite) { m.To = g.ID() }}
		}, "another pair"},
		"from another": {func(_ *pair, g *identity.Keys, _ [][]byte) lie {
			return lie{invite: func(m *wire.Invite) { m.From = g.ID() }}
		}, "another pair"},
		"degenerate point": {func(*pair, *identity.Keys, [][]byte) lie { return lie{point: new([32]byte)} }, "degenerate"},
		"ML-KEM key out of range": {func(*pair, *identity.Keys, [][]byte) lie {
			return lie{invite: func(m *wire.Invite) {
				for i := range m.EncapKey {
					m.EncapKey[i] = 0xff
				}
			}}
		}, "ML-KEM"},
		"reserved index": {func(*pair, *identity.Keys, [][]byte) lie {
			return lie{invite: func(m *wire.Invite) { m.Index = wire.ReservedIndex }}
		}, "invite"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, nil)
			ghost, chain := p.stranger(p.ca)
			p.hi.quiet(t, p.lo.as(t, p.hi).invite(c.lie(p, ghost, chain)), p.now, c.want)
			p.lo.connect(p.now)
			p.run()
			p.agreed()
		})
	}
	// The lower peer never answers an invite, not even a good one.
	p := newPair(t, nil)
	p.lo.quiet(t, p.hi.as(t, p.lo).invite(lie{}), p.now, "should knock")
}

func TestForgedConfirm(t *testing.T) {
	for name, c := range map[string]struct {
		lie  func(ghost *identity.Keys) lie
		want string
	}{
		"another signs":           {func(g *identity.Keys) lie { return lie{signer: g.Ed25519} }, "signature"},
		"signature of offer":      {func(*identity.Keys) lie { return lie{role: "offer"} }, "signature"},
		"signature of other hash": {func(*identity.Keys) lie { return lie{sigHash: 1} }, "signature"},
		"MAC":                     {func(*identity.Keys) lie { return lie{mac: 0x80} }, "MAC"},
		"MAC of B's key":          {func(*identity.Keys) lie { return lie{otherFin: true} }, "MAC"},
		"without A's X25519 key":  {func(g *identity.Keys) lie { return lie{static: g.X25519} }, "open"},
		"without the PSK":         {func(*identity.Keys) lie { return lie{psk: make([]byte, 32)} }, "open"},
		"other sid":               {func(*identity.Keys) lie { return lie{sid: &wire.SID{1}} }, "no open offer"},
		"longer body":             {func(*identity.Keys) lie { return lie{trailing: true} }, "confirm body"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, nil)
			ghost, _ := p.stranger(p.ca)
			a := p.lo.as(t, p.hi)
			if err := p.hi.step(a.invite(lie{}), p.now); err != nil {
				t.Fatal(err)
			}
			m2 := p.hi.take()
			p.hi.quiet(t, a.confirm(m2, c.lie(ghost)), p.now, c.want)
			if err := p.hi.step(a.confirm(m2, lie{}), p.now); err != nil {
				t.Errorf("genuine confirm afterwards: %v", err)
			}
		})
	}
	// A confirm counts for the attempt that it names only.
	p := newPair(t, nil)
	a, b := p.lo.as(t, p.hi), p.lo.as(t, p.hi)
	var offers [2][]byte
	var sids [2]wire.SID
	for i, r := range []*ref{a, b} {
		m1 := r.invite(lie{})
		_, sids[i], _ = wire.ParseMsgHeader(m1)
		if err := p.hi.step(m1, p.now); err != nil {
			t.Fatal(err)
		}
		offers[i] = p.hi.take()
	}
	p.hi.quiet(t, a.confirm(offers[0], lie{sid: &sids[1]}), p.now, "open")
}

// The hub takes the ephemeral key of a message for its own and signs with what it
// has; it sits in the middle of nothing.
func TestHubSwapsKeys(t *testing.T) {
	p := newPair(t, nil)
	hub, chain := p.stranger(p.ca)
	p.lo.connect(p.now)
	m1 := p.lo.take()
	for name, change := range map[string]func(m *wire.Invite){
		"the peer's certificate": func(*wire.Invite) {},
		"its own certificate":    func(m *wire.Invite) { m.Chain = chain },
		"its own name":           func(m *wire.Invite) { m.Chain, m.From = chain, hub.ID() },
	} {
		var m wire.Invite
		if err := m.Parse(bytes.Clone(m1)); err != nil {
			t.Fatal(err)
		}
		copy(m.X25519[:], hub.X25519.PublicKey().Bytes())
		change(&m)
		m.Sig = refSign(hub.Ed25519, "invite", refHash(m.AppendUnsigned(nil)))
		if err := p.hi.step(m.Append(nil), p.now); !errors.Is(err, session.ErrHandshake) || len(p.hi.out) != 0 {
			t.Errorf("invite of the hub with %s: %v", name, err)
		}
	}
	// It answers A itself, with B's certificate, which it knows.
	asB := p.hi.as(t, p.lo)
	asB.keys = hub
	p.lo.quiet(t, asB.offer(m1, lie{}), p.now, "open")
	if err := p.hi.step(m1, p.now); err != nil {
		t.Fatal(err)
	}
	p.run()
	p.agreed()
}

func TestReject(t *testing.T) {
	for reason, want := range map[uint8]string{
		wire.RejectSuite: "cipher", wire.RejectPSKEpoch: "epoch", wire.RejectBusy: "busy", wire.RejectPolicy: "policy", 77: "77",
	} {
		p := newPair(t, nil)
		ghost, _ := p.stranger(p.ca)
		p.lo.connect(p.now)
		m1 := p.lo.take()
		_, sid, _ := wire.ParseMsgHeader(m1)
		reject := func(k ed25519.PrivateKey, role string, sid wire.SID) []byte {
			r := wire.Reject{SID: sid, Reason: reason}
			r.Sig = refSign(k, role, refHash(r.AppendUnsigned(nil), refHash(m1)))
			return r.Append(nil)
		}
		good := reject(p.hi.keys.Ed25519, "reject", sid)
		p.lo.quiet(t, reject(ghost.Ed25519, "reject", sid), p.now, "signature")
		p.lo.quiet(t, reject(p.lo.keys.Ed25519, "reject", sid), p.now, "signature")
		p.lo.quiet(t, reject(p.hi.keys.Ed25519, "knock", sid), p.now, "signature")
		p.lo.quiet(t, reject(p.hi.keys.Ed25519, "reject", wire.SID{}), p.now, "no open invite")
		other := wire.Reject{SID: sid, Reason: reason} // of another invite with this sid
		other.Sig = refSign(p.hi.keys.Ed25519, "reject", refHash(other.AppendUnsigned(nil), refHash(append(slices.Clone(m1), 0))))
		p.lo.quiet(t, other.Append(nil), p.now, "signature")
		for i := range good {
			bad := slices.Clone(good)
			bad[i] ^= 1
			p.lo.quiet(t, bad, p.now, "")
		}
		p.lo.quiet(t, append(slices.Clone(good), 0), p.now, "reject")
		if err := p.lo.step(good, p.now); err != nil {
			t.Fatal(err)
		}
		if len(p.lo.failed) != 1 || !strings.Contains(p.lo.failed[0].Error(), want) || len(p.lo.idx.live) != 0 || p.lo.m.Connecting() {
			t.Errorf("reason %d: failed %v, indexes %v", reason, p.lo.failed, p.lo.idx.live)
		}
		p.lo.failed = nil
		p.lo.quiet(t, good, p.now, "no open invite")
	}
}

func TestKnock(t *testing.T) {
	p := newPair(t, nil)
	p.hi.connect(p.now)
	knock := p.hi.take()
	for i := range knock {
		bad := bytes.Clone(knock)
		bad[i] ^= 0x40
		if err := p.lo.step(bad, p.now); err == nil && i >= wire.MsgHeaderLen {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
	if len(p.lo.out) != 0 {
		t.Fatal("a forged knock was answered")
	}
	if err := p.lo.step(knock, p.now); err != nil {
		t.Fatal(err)
	}
	if err := p.lo.step(knock, p.now.Add(time.Millisecond)); err == nil {
		t.Error("a second knock after a millisecond: accepted")
	}
	if err := p.hi.step(knock, p.now); err == nil {
		t.Error("the higher peer took a knock")
	}
	p.run()
	p.agreed()
}

// A knock is a wish of the peer that has the higher PeerID, to us.
func TestForgedKnock(t *testing.T) {
	p := newPair(t, nil)
	ghost, _ := p.stranger(p.ca)
	lo, hi := p.lo.keys, p.hi.keys
	for name, c := range map[string]struct {
		to       *end
		from, by *identity.Keys
		whom     *identity.Keys
		role     string
		want     string
	}{
		"another signs":        {p.lo, hi, ghost, lo, "knock", "signature"},
		"other role":           {p.lo, hi, hi, lo, "reject", "signature"},
		"from another":         {p.lo, ghost, hi, lo, "knock", "wrong door"},
		"to another":           {p.lo, hi, hi, ghost, "knock", "wrong door"},
		"back at its sender":   {p.hi, hi, hi, lo, "knock", "wrong door"},
		"of the lower peer":    {p.hi, lo, lo, hi, "knock", "wrong door"},
		"of the one addressed": {p.lo, lo, lo, hi, "knock", "wrong door"},
	} {
		k := wire.Knock{SID: wire.SID{5}, From: c.from.ID(), To: c.whom.ID()}
		k.Sig = refSign(c.by.Ed25519, c.role, refHash(k.AppendUnsigned(nil)))
		t.Run(name, func(t *testing.T) { c.to.quiet(t, k.Append(nil), p.now, c.want) })
	}
}

// Two sessions live side by side while keys are replaced; the candidates of each
// are its own.
func TestCandidatesOfTwoSessions(t *testing.T) {
	p := newPair(t, nil)
	for range 3 {
		p.lo.connect(p.now)
		p.run()
		p.agreed()
	}
	for i, from := range p.lo.est {
		b, err := from.SealCandidates([]string{"x"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = p.hi.step(b, p.now)
		if i == 0 { // only the last two
			if !errors.Is(err, session.ErrHandshake) {
				t.Errorf("candidates of a forgotten session: %v", err)
			}
			continue
		}
		if err != nil || p.hi.cands[len(p.hi.cands)-1].SID != from.SID {
			t.Errorf("candidates of session %d: %v", i, err)
		}
		moved := wire.Candidates{}
		if err := moved.Parse(bytes.Clone(b)); err != nil {
			t.Fatal(err)
		}
		moved.SID, moved.Seq = p.lo.est[3-i].SID, 9
		p.hi.quiet(t, moved.Append(nil), p.now, "open")
	}
}

// refusedFor reports whether err is one of a dropped message, about want.
func refusedFor(err error, want string) bool {
	return refused(err) && strings.Contains(err.Error(), want)
}
