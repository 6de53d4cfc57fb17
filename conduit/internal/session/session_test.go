// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/conduittest"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// indexes counts what is reserved.
type indexes struct {
	next uint32
	live map[uint32]bool
	full bool
}

func (x *indexes) Reserve() uint32 {
	if x.full {
		return 0
	}
	x.next++
	x.live[x.next] = true
	return x.next
}

func (x *indexes) Release(i uint32) {
	if !x.live[i] {
		panic(fmt.Sprintf("index %d released twice", i))
	}
	delete(x.live, i)
}

// end is one machine and what came out of it.
type end struct {
	m       *session.Machine
	cfg     session.Config
	keys    *identity.Keys
	idx     *indexes
	out     [][]byte
	est     []*session.Established
	cands   []*session.Candidates
	failed  []error
	dropped int
}

// pair is two ends; lo has the lower PeerID and initiates.
type pair struct {
	t      testing.TB
	ca     *conduittest.CA
	lo, hi *end
	now    time.Time
}

func newPair(t testing.TB, change func(lo, hi *session.Config)) *pair {
	t.Helper()
	ca, err := conduittest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, ca: ca, now: time.Now()}
	var ends [2]*end
	psk := bytes.Repeat([]byte{9}, 32)
	for i := range ends {
		keys, err := identity.GenerateKeys()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := ca.Issue(keys, fmt.Sprintf("n%d", i), conduittest.Addr(i), netip.Addr{}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		x := &indexes{live: map[uint32]bool{}, next: uint32(1000 * (i + 1))}
		n := 0
		ends[i] = &end{keys: keys, idx: x, cfg: session.Config{
			Keys: keys, Chain: cert.Chain, Roots: ca.Roots(), Indexes: x, Caps: uint32(i),
			PSK: func(epoch uint8) []byte {
				if epoch == 1 {
					return psk
				}
				return nil
			},
			PSKEpoch: 1, Suites: suites(),
			NewICE: func() wire.ICE { n++; return wire.ICE{Ufrag: fmt.Sprintf("u%d-%d", i, n), Pwd: "p"} },
		}}
	}
	if ends[0].keys.ID().Compare(ends[1].keys.ID()) > 0 {
		ends[0], ends[1] = ends[1], ends[0]
	}
	p.lo, p.hi = ends[0], ends[1]
	p.lo.peer(p.hi.keys)
	p.hi.peer(p.lo.keys)
	if change != nil {
		change(&p.lo.cfg, &p.hi.cfg)
	}
	p.lo.m, p.hi.m = session.New(p.lo.cfg), session.New(p.hi.cfg)
	return p
}

func (e *end) peer(k *identity.Keys) {
	id := k.ID()
	e.cfg.Peer, e.cfg.PeerX25519 = id, k.X25519.PublicKey()
	e.cfg.PeerEd25519 = k.Ed25519.Public().(ed25519.PublicKey)
}

// collect takes what the machine wants done.
func (e *end) collect() {
	for _, o := range e.m.Ready() {
		switch {
		case o.Send != nil:
			e.out = append(e.out, o.Send)
		case o.Established != nil:
			e.est = append(e.est, o.Established)
		case o.Candidates != nil:
			e.cands = append(e.cands, o.Candidates)
		case o.Failed != nil:
			e.failed = append(e.failed, o.Failed)
		}
	}
}

func (e *end) step(b []byte, now time.Time) error {
	err := e.m.Step(bytes.Clone(b), now)
	if err != nil {
		e.dropped++
	}
	e.collect()
	return err
}

func (e *end) connect(now time.Time) { e.m.Connect(now); e.collect() }
func (e *end) tick(now time.Time)    { e.m.Tick(now); e.collect() }

func (e *end) take() []byte {
	b := e.out[0]
	e.out = e.out[1:]
	return b
}

// run delivers everything until it is quiet.
func (p *pair) run() {
	p.t.Helper()
	for len(p.lo.out)+len(p.hi.out) > 0 {
		if len(p.lo.out) > 0 {
			_ = p.hi.step(p.lo.take(), p.now)
		}
		if len(p.hi.out) > 0 {
			_ = p.lo.step(p.hi.take(), p.now)
		}
	}
}

// agreed checks that the newest sessions of both ends are the two halves of one.
func (p *pair) agreed() {
	p.t.Helper()
	if len(p.lo.est) == 0 || len(p.hi.est) == 0 {
		p.t.Fatalf("not established: %d and %d; failed %v %v", len(p.lo.est), len(p.hi.est), p.lo.failed, p.hi.failed)
	}
	a, b := p.lo.est[len(p.lo.est)-1], p.hi.est[len(p.hi.est)-1]
	if a.SID != b.SID || !a.Initiator || b.Initiator || a.LocalIndex != b.RemoteIndex || a.RemoteIndex != b.LocalIndex ||
		a.LocalICE != b.RemoteICE || a.RemoteICE != b.LocalICE || a.PeerCaps != p.hi.cfg.Caps || b.PeerCaps != p.lo.cfg.Caps {
		p.t.Errorf("halves differ:\n%+v\n%+v", a, b)
	}
	if a.Secrets.Send != b.Secrets.Recv || a.Secrets.Recv != b.Secrets.Send || a.Secrets.Rekey != b.Secrets.Rekey || a.Secrets.Exporter != b.Secrets.Exporter {
		p.t.Error("keys differ")
	}
	seen := map[[32]byte]bool{a.Secrets.Rekey: true, a.Secrets.Exporter: true}
	for _, k := range append(a.Secrets.Send[:], a.Secrets.Recv[:]...) {
		if seen[k.Key] {
			p.t.Error("a key serves twice")
		}
		seen[k.Key] = true
	}
	if a.Certificate.ID != p.hi.keys.ID() || b.Certificate.ID != p.lo.keys.ID() {
		p.t.Error("certificates are not the peers'")
	}
	for i, e := range []*end{p.lo, p.hi} {
		if len(e.idx.live) != len(e.est) {
			p.t.Errorf("end %d: %d indexes live, %d sessions", i, len(e.idx.live), len(e.est))
		}
	}
}

func TestHandshake(t *testing.T) {
	for name, start := range map[string]func(p *pair){
		"lower":  func(p *pair) { p.lo.connect(p.now) },
		"higher": func(p *pair) { p.hi.connect(p.now) },
		"both":   func(p *pair) { p.hi.connect(p.now); p.lo.connect(p.now) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, nil)
			start(p)
			p.run()
			p.agreed()
			if p.lo.m.Connecting() || p.hi.m.Connecting() {
				t.Error("an end still wants a session")
			}
			if s := p.lo.est[len(p.lo.est)-1].Secrets.Suite; s != suites()[0] {
				t.Errorf("suite = %v", s)
			}
		})
	}
}

func TestPSK(t *testing.T) {
	p := newPair(t, func(_, hi *session.Config) { hi.PSK = func(uint8) []byte { return bytes.Repeat([]byte{8}, 32) } })
	p.lo.connect(p.now)
	p.run()
	p.now = p.now.Add(31 * time.Second)
	p.lo.tick(p.now)
	if len(p.lo.est)+len(p.hi.est) != 0 || len(p.lo.failed) != 1 || !errors.Is(p.lo.failed[0], session.ErrHandshake) {
		t.Errorf("other PSK: established %d %d, failed %v", len(p.lo.est), len(p.hi.est), p.lo.failed)
	}
	p = newPair(t, func(lo, _ *session.Config) { lo.PSKEpoch = 2 })
	p.lo.connect(p.now)
	p.run()
	if len(p.lo.failed) != 1 || !strings.Contains(p.lo.failed[0].Error(), "epoch") {
		t.Errorf("unknown epoch: %v", p.lo.failed)
	}
	if len(p.hi.est) != 0 {
		t.Error("unknown epoch: established")
	}
	// While the mesh changes its key, the one before will do for who is behind.
	p = newPair(t, func(lo, _ *session.Config) {
		lo.PSK = func(epoch uint8) []byte { return bytes.Repeat([]byte{8 + 2 - epoch}, 32) }
		lo.PSKEpoch, lo.PSKBefore = 2, func() (uint8, bool) { return 1, true }
	})
	p.lo.connect(p.now)
	p.run()
	p.agreed()
	p = newPair(t, nil) // the key changes between invite and offer
	p.lo.connect(p.now)
	p.lo.m.SetPSKEpoch(2)
	p.run()
	p.agreed()
	for name, change := range map[string]func(lo, hi *session.Config){
		"only lower":  func(_, hi *session.Config) { hi.PSK = nil },
		"only higher": func(lo, _ *session.Config) { lo.PSK = nil },
	} {
		p = newPair(t, change)
		p.lo.connect(p.now)
		p.run()
		if len(p.lo.est)+len(p.hi.est) != 0 {
			t.Errorf("PSK at %s end: established", name)
		}
	}
}

func TestReplays(t *testing.T) {
	p := newPair(t, nil)
	p.lo.connect(p.now)
	invite := p.lo.take()
	if err := p.hi.step(invite, p.now); err != nil {
		t.Fatal(err)
	}
	if err := p.hi.step(invite, p.now); err == nil {
		t.Error("invite twice: accepted")
	}
	offer := p.hi.take()
	if err := p.lo.step(offer, p.now); err != nil {
		t.Fatal(err)
	}
	confirm := p.lo.take()
	if err := p.lo.step(offer, p.now); err == nil {
		t.Error("offer twice: accepted")
	}
	if err := p.hi.step(confirm, p.now); err != nil {
		t.Fatal(err)
	}
	if err := p.hi.step(confirm, p.now); err == nil {
		t.Error("confirm twice: accepted")
	}
	p.agreed()
	p.now = p.now.Add(time.Hour)
	if err := p.hi.step(invite, p.now); err == nil {
		t.Error("invite after an hour: accepted")
	}
}

// The hub cannot put itself between: a message that it makes is not signed by
// the peer, and one for another pair is refused.
func TestHubInBetween(t *testing.T) {
	p := newPair(t, nil)
	evil := newPair(t, nil)
	p.lo.connect(p.now)
	var m wire.Invite
	if err := m.Parse(p.lo.take()); err != nil {
		t.Fatal(err)
	}
	hub, err := identity.GenerateKeys()
	if err != nil {
		t.Fatal(err)
	}
	copy(m.X25519[:], hub.X25519.PublicKey().Bytes()) // its own ephemeral
	if err := p.hi.step(m.Append(nil), p.now); err == nil {
		t.Error("invite with another ephemeral: accepted")
	}
	ghost, err := p.ca.Issue(hub, "ghost", conduittest.Addr(7), netip.Addr{}, time.Hour) // the hub owns the CA
	if err != nil {
		t.Fatal(err)
	}
	m.Chain = ghost.Chain
	if err := p.hi.step(m.Append(nil), p.now); err == nil {
		t.Error("invite with another certificate: accepted")
	}
	evil.lo.connect(evil.now)
	if err := p.hi.step(evil.lo.take(), p.now); err == nil {
		t.Error("invite of another pair: accepted")
	}
}

func TestCertificateExpired(t *testing.T) {
	p := newPair(t, nil)
	p.lo.connect(p.now)
	if err := p.hi.step(p.lo.take(), p.now.Add(2*time.Hour)); !errors.Is(err, identity.ErrCertificate) {
		t.Errorf("expired certificate: %v", err)
	}
	p = newPair(t, func(lo, _ *session.Config) {
		ca, err := conduittest.NewCA()
		if err != nil {
			t.Fatal(err)
		}
		c, err := ca.Issue(lo.Keys, "n", conduittest.Addr(0), netip.Addr{}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		lo.Chain = c.Chain
	})
	p.lo.connect(p.now)
	if err := p.hi.step(p.lo.take(), p.now); !errors.Is(err, identity.ErrCertificate) {
		t.Errorf("certificate of another mesh: %v", err)
	}
}

func TestTimes(t *testing.T) {
	p := newPair(t, nil)
	p.lo.connect(p.now)
	if next := p.lo.m.NextTick(); !next.Equal(p.now.Add(time.Second)) {
		t.Errorf("first retry at %v, want a second after %v", next, p.now)
	}
	sent := 0
	for end := p.now.Add(time.Minute); p.now.Before(end); p.now = p.now.Add(100 * time.Millisecond) {
		p.lo.tick(p.now)
		sent += len(p.lo.out)
		p.lo.out = nil
	}
	if len(p.lo.failed) != 1 || !errors.Is(p.lo.failed[0], session.ErrNoAnswer) || sent < 4 || sent > 8 {
		t.Errorf("unanswered: failed %v after %d invites", p.lo.failed, sent)
	}
	if len(p.lo.idx.live) != 0 || !p.lo.m.NextTick().IsZero() {
		t.Errorf("left behind: indexes %v, next tick %v", p.lo.idx.live, p.lo.m.NextTick())
	}
	// Half-open attempts: no more than three, and they end.
	var invites [][]byte
	for range 5 {
		p.lo.connect(p.now)
		invites = append(invites, p.lo.take())
		if err := p.hi.step(invites[len(invites)-1], p.now); err != nil {
			t.Fatal(err)
		}
		p.lo.m.Cancel()
	}
	for i, b := range invites {
		if err := p.hi.step(b, p.now); err == nil {
			t.Errorf("invite %d again: accepted", i)
		}
	}
	if n := len(p.hi.idx.live); n != 3 {
		t.Errorf("%d half-open attempts, want 3", n)
	}
	p.now = p.now.Add(5 * time.Second)
	p.hi.tick(p.now)
	if n := len(p.hi.idx.live); n != 0 {
		t.Errorf("%d half-open attempts after 5 s", n)
	}
	p.lo.connect(p.now)
	p.lo.m.Undeliverable("offline")
	p.lo.collect()
	if len(p.lo.failed) != 2 || !strings.Contains(p.lo.failed[1].Error(), "offline") {
		t.Errorf("offline: %v", p.lo.failed)
	}
	p.lo.connect(p.now)
	p.lo.m.Undeliverable("busy")
	p.lo.collect()
	if !p.lo.m.Connecting() {
		t.Error("busy ended the attempt")
	}
	p.lo.m.Close()
	if len(p.lo.idx.live) != 0 {
		t.Error("Close left an index")
	}
}

func TestCandidates(t *testing.T) {
	p := newPair(t, nil)
	p.lo.connect(p.now)
	p.run()
	p.agreed()
	for _, ends := range [][2]*end{{p.lo, p.hi}, {p.hi, p.lo}} {
		from, to := ends[0], ends[1]
		var msgs [][]byte
		for i := range 3 {
			b, err := from.est[0].SealCandidates([]string{fmt.Sprintf("1 1 udp 1 192.0.2.%d 4000 typ host", i)}, []wire.CandidateFlags{0, wire.CandidatesFresh, wire.CandidatesDone}[i])
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, []byte("192.0.2")) {
				t.Error("the hub can read an address")
			}
			msgs = append(msgs, b)
		}
		bad := bytes.Clone(msgs[0])
		bad[len(bad)-1] ^= 1
		if to.step(bad, p.now) == nil || from.step(msgs[0], p.now) == nil {
			t.Error("tampered or own candidates: accepted")
		}
		if err := to.step(msgs[0], p.now); err != nil {
			t.Error(err)
		}
		if err := to.step(msgs[2], p.now); err != nil {
			t.Errorf("a lost message before: %v", err)
		}
		if to.step(msgs[2], p.now) == nil || to.step(msgs[1], p.now) == nil {
			t.Error("candidates twice or late: accepted")
		}
		if n := len(to.cands); n != 2 || !to.cands[1].Done || !strings.Contains(to.cands[0].Lines[0], "192.0.2.0") {
			t.Errorf("got %d: %+v", n, to.cands)
		}
	}
}
