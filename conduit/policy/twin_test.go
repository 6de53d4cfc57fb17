// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// twin is one end written straight from the package comment: no tables, no
// bounds, no bytes.
type twin struct {
	may   func(src, dst int, s *spec, port uint16, later bool, lane Lane) bool // a new flow, by naive
	flows map[twinFlow]int64                                                   // by the packet that began it
	frags map[twinFrag]*spec
	at    map[twinFrag]int64
}

type twinFlow struct {
	src, dst     netip.Addr
	sport, dport uint16
	proto        uint8
}

type twinFrag struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

func (t *twin) alive(f twinFlow, now int64) bool {
	seen, ok := t.flows[f]
	if ok = ok && now-seen <= life(f.proto); ok {
		t.flows[f] = now
	}
	return ok
}

// allows is the decision about a packet from src to dst, at either end.
func (t *twin) allows(src, dst int, s *spec, lane Lane, receiver bool, now int64) bool {
	some := func(src, dst int, s *spec, port uint16, later bool) bool {
		return t.may(src, dst, s, port, later, Critical) || t.may(src, dst, s, port, later, Telemetry) || t.may(src, dst, s, port, later, Bulk)
	}
	may := func(src, dst int, port uint16, later bool) bool {
		if receiver && lane == Bulk { // it may have been demoted
			return some(src, dst, s, port, later)
		}
		return t.may(src, dst, s, port, later, lane)
	}
	later := s.frag == packet.LaterFragment
	frag := twinFrag{s.src, s.dst, s.id, s.proto}
	if first := t.frags[frag]; later && first != nil && now-t.at[frag] <= fragLife {
		s, later = first, false // judged like its first
	}
	flow := twinFlow{s.src, s.dst, s.sport, s.dport, s.proto}
	back := twinFlow{s.dst, s.src, s.dport, s.sport, s.proto}
	kept := s.icmp() || s.ported() && !later
	ok := may(src, dst, s.dport, later)
	if ok && kept {
		t.flows[flow] = now
	}
	if !ok && kept {
		ok = t.answers(s, later) && may(dst, src, s.sport, later) && t.alive(back, now)
	}
	if !ok && s.quote != nil && s.frag == packet.NotFragment && (s.spoil == whole || s.spoil == cutOff) {
		q := s.quote
		about := q.src == s.dst && q.dst == s.src && q.frag != packet.LaterFragment && (q.ported() || q.icmp())
		request := !q.icmp() || q.proto == packet.ProtoICMP && q.typ == 8 || q.typ == 128
		reply := !q.icmp() || q.proto == packet.ProtoICMP && q.typ == 0 || q.typ == 129
		began, answered := twinFlow{q.src, q.dst, q.sport, q.dport, q.proto}, twinFlow{q.dst, q.src, q.dport, q.sport, q.proto}
		return about && (request && some(dst, src, q, q.dport, false) && t.alive(began, now) ||
			reply && some(src, dst, q, q.sport, false) && t.alive(answered, now))
	}
	if ok && s.frag == packet.FirstFragment && s.proto != packet.ProtoTCP && !later {
		if _, stored := t.frags[frag]; !stored || t.frags[frag] != s {
			t.frags[frag], t.at[frag] = s, now
		}
	}
	return ok
}

// answers: what begins something cannot be an answer.
func (t *twin) answers(s *spec, later bool) bool {
	switch {
	case s.proto == packet.ProtoTCP:
		return s.flags&0x12 != 0x02
	case s.proto == packet.ProtoICMP && !later:
		return s.typ == 0 || s.typ == 14 || s.typ == 16 || s.typ == 18
	case s.proto == packet.ProtoICMPv6 && !later:
		return s.typ == 129
	}
	return true
}

// twins are three nodes, each with its Engine and its twin.
type twins struct {
	nodes   []Subject
	addrs   [3][2]netip.Addr
	local   [3]map[netip.Addr]struct{}
	engines [3]*Engine
	peers   [3][3]*PeerRules
	twin    [3]*twin
	doc     *Document
	past    []*spec
	buf     []byte
	now     int64
	allowed map[string]int // by kind of packet
	denied  map[string]int
}

func newTwins(tb testing.TB, r *rand.Rand) *twins {
	w := &twins{nodes: randomNodes(r), doc: randomDocument(r), allowed: map[string]int{}, denied: map[string]int{}}
	for i := range w.doc.Roles {
		w.doc.Roles[i].Budgets = nil // they have tests of their own
	}
	if err := w.doc.Validate(); err != nil {
		tb.Fatal(err)
	}
	type question struct {
		src, dst    int
		proto       uint8
		port        uint16
		later, lane uint8
	}
	answers := map[question]bool{} // naive is slow, and forgets nothing
	may := func(src, dst int, s *spec, port uint16, later bool, lane Lane) bool {
		q := question{src, dst, s.proto, port, 0, uint8(lane)}
		info := &packet.Info{Proto: s.proto, DstPort: port}
		if later {
			info.Fragment, q.later = packet.LaterFragment, 1
		}
		a, ok := answers[q]
		if !ok {
			a = naive(w.doc, w.nodes[src], w.nodes[dst], info, lane)
			answers[q] = a
		}
		return a
	}
	for i := range w.nodes {
		w.addrs[i] = [2]netip.Addr{netip.AddrFrom4([4]byte{10, 66, 0, byte(i + 1)}), netip.AddrFrom16([16]byte{0xfd, 66, 15: byte(i + 1)})}
		w.local[i] = map[netip.Addr]struct{}{w.addrs[i][0]: {}, w.addrs[i][1]: {}}
		w.engines[i] = NewEngine(w.nodes[i])
		w.engines[i].Apply(w.doc, w.nodes)
		for j := range w.nodes {
			w.peers[i][j] = w.engines[i].Peer(w.nodes[j].ID)
		}
		w.twin[i] = &twin{may: may, flows: map[twinFlow]int64{}, frags: map[twinFrag]*spec{}, at: map[twinFrag]int64{}}
	}
	return w
}

// step sends one packet, and perhaps a forged one, and compares both ends.
func (w *twins) step(tb testing.TB, r *rand.Rand) {
	src := r.IntN(3)
	dst := (src + 1 + r.IntN(2)) % 3
	fam := r.IntN(2)
	s := randomSpec(r, w.addrs[src][fam], w.addrs[dst][fam], w.past)
	if len(w.past) > 0 && r.IntN(3) == 0 {
		if a := w.past[r.IntN(len(w.past))].answer(); !a.icmp() || !isError(&packet.Info{Proto: a.proto, ICMPType: a.typ}) {
			for i := range w.addrs {
				for f := range w.addrs[i] {
					if w.addrs[i][f] == a.src {
						src, fam = i, f
					}
					if w.addrs[i][f] == a.dst {
						dst = i
					}
				}
			}
			s = a
		}
	}
	forged := r.IntN(10) == 0
	bound := true
	if forged {
		// Who sends it speaks for another, or to one who is not its receiver.
		other := (3 - src - dst)
		if r.IntN(2) == 0 {
			s.src = w.addrs[other][fam]
		} else {
			s.dst = w.addrs[other][fam]
		}
		bound = false
	}
	w.now += int64(r.IntN(int(second / 2)))
	if r.IntN(500) == 0 {
		w.now += flowLife / 2
	}
	if s.quote == nil && !forged {
		if len(w.past) < 32 {
			w.past = append(w.past, s)
		} else {
			w.past[r.IntN(len(w.past))] = s
		}
	}
	lane := Lane(r.IntN(packet.NumLanes))
	w.buf = s.bytes(w.buf[:0])
	var info packet.Info
	if !packet.Parse(w.buf, &info) {
		tb.Fatalf("does not parse: %s: %x", s, w.buf)
	}
	if forged { // no dataplane would send it: here is another one
		got := Bound(&info, w.addrs[src][0], w.addrs[src][1], w.local[dst]) && w.engines[dst].Receive(w.peers[dst][src], w.buf, &info, lane, w.now).Allow
		if got != bound {
			tb.Fatalf("forged: %s passes", s)
		}
		w.denied["forged"]++
		return
	}
	want := w.twin[src].allows(src, dst, s, lane, false, w.now)
	got := w.engines[src].Send(w.peers[src][dst], w.buf, &info, lane, w.now)
	if got.Allow != want {
		tb.Fatalf("sender: %s on %s: %v, want %v\n%s", s, lane, got, want, w.doc.Marshal())
	}
	if !want && r.IntN(2) == 0 {
		w.count(s, false)
		return // most senders keep the policy, some do not
	}
	want = Bound(&info, w.addrs[src][0], w.addrs[src][1], w.local[dst]) && w.twin[dst].allows(src, dst, s, lane, true, w.now)
	got = w.engines[dst].Receive(w.peers[dst][src], w.buf, &info, lane, w.now)
	if got.Allow != want {
		tb.Fatalf("receiver: %s on %s: %v, want %v\n%s", s, lane, got, want, w.doc.Marshal())
	}
	w.count(s, want)
}

func (w *twins) count(s *spec, allowed bool) {
	kind := "proto " + strconv.Itoa(int(s.proto))
	switch {
	case s.quote != nil:
		kind = "error"
	case s.frag == packet.LaterFragment:
		kind = "later fragment"
	}
	if allowed {
		w.allowed[kind]++
	} else {
		w.denied[kind]++
	}
}

// TestTwin runs 10,000 real packets under each of 500 policies through the engines
// of both ends.
func TestTwin(t *testing.T) {
	policies, packets := 500, 10_000
	if testing.Short() || slow {
		packets = 500
	}
	allowed, denied := map[string]int{}, map[string]int{}
	for seed := range policies {
		r := rand.New(rand.NewPCG(uint64(seed), 5))
		w := newTwins(t, r)
		for range packets {
			w.step(t, r)
		}
		for k, n := range w.allowed {
			allowed[k] += n
		}
		for k, n := range w.denied {
			denied[k] += n
		}
	}
	for _, kind := range []string{"proto 1", "proto 6", "proto 17", "proto 58", "proto 132", "error", "later fragment", "forged"} {
		if n := allowed[kind] + denied[kind]; kind != "forged" && allowed[kind] < n/20 || denied[kind] < n/20 || n == 0 {
			t.Errorf("%s: %d allowed, %d denied: the packets test little", kind, allowed[kind], denied[kind])
		}
	}
	t.Log("allowed", allowed, "denied", denied)
}

func FuzzTwin(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(seed, seed*7, uint16(200))
	}
	f.Fuzz(func(t *testing.T, policy, packets uint64, n uint16) {
		w := newTwins(t, rand.New(rand.NewPCG(policy, 6)))
		r := rand.New(rand.NewPCG(packets, 7))
		for range n % 2000 {
			w.step(t, r)
		}
	})
}

func (s *spec) String() string {
	if s == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s:%d to %s:%d proto %d flags %#x type %d fragment %d id %d extensions %v spoilt %d quoting (%s)",
		s.src, s.sport, s.dst, s.dport, s.proto, s.flags, s.typ, s.frag, s.id, s.ext, s.spoil, s.quote)
}
