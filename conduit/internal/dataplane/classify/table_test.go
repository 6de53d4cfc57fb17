// SPDX-License-Identifier: Apache-2.0

package classify

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// TestRules has each field decide alone, at both of its edges.
func TestRules(t *testing.T) {
	udp := func(src, dst uint16, change ...func(*packet.Info)) *packet.Info {
		i := &packet.Info{Proto: packet.ProtoUDP, Len: 500, SrcPort: src, DstPort: dst}
		for _, f := range change {
			f(i)
		}
		return i
	}
	tos := func(v uint8) func(*packet.Info) { return func(i *packet.Info) { i.TOS = v } }
	size := func(n int) func(*packet.Info) { return func(i *packet.Info) { i.Len = n } }
	proto := func(p uint8) func(*packet.Info) { return func(i *packet.Info) { i.Proto = p } }
	first := func(i *packet.Info) { i.Fragment = packet.FirstFragment }
	for name, tc := range map[string]struct {
		rule      Rule
		take, not []*packet.Info
	}{
		"range": {
			Rule{Port: Ports{7400, 7499}},
			[]*packet.Info{udp(7400, 1), udp(1, 7400), udp(7499, 1), udp(1, 7499), udp(7450, 7450)},
			[]*packet.Info{udp(7399, 1), udp(1, 7500), udp(7399, 7500)},
		},
		"whole range":  {Rule{Port: Ports{1, 65535}}, []*packet.Info{udp(1, 0), udp(0, 65535)}, []*packet.Info{udp(0, 0)}},
		"page edge":    {Rule{DstPort: Ports{255, 256}}, []*packet.Info{udp(1, 255), udp(1, 256)}, []*packet.Info{udp(255, 254), udp(256, 257)}},
		"source":       {Rule{SrcPort: Ports{9, 9}}, []*packet.Info{udp(9, 1)}, []*packet.Info{udp(1, 9)}},
		"destination":  {Rule{DstPort: Ports{9, 9}}, []*packet.Info{udp(1, 9)}, []*packet.Info{udp(9, 1)}},
		"both":         {Rule{SrcPort: Ports{9, 9}, DstPort: Ports{8, 8}}, []*packet.Info{udp(9, 8)}, []*packet.Info{udp(9, 9), udp(8, 8), udp(8, 9)}},
		"port of what": {Rule{Port: Ports{1, 9}}, []*packet.Info{udp(5, 5, proto(6))}, []*packet.Info{udp(5, 5, proto(47)), udp(5, 5, proto(132))}},
		"dscp":         {Rule{DSCP: []uint8{46, 0}}, []*packet.Info{udp(1, 1, tos(46<<2)), udp(1, 1, tos(46<<2|3)), udp(1, 1, tos(3))}, []*packet.Info{udp(1, 1, tos(47<<2)), udp(1, 1, tos(46))}},
		"below":        {Rule{Below: 300}, []*packet.Info{udp(1, 1, size(299))}, []*packet.Info{udp(1, 1, size(300)), udp(1, 1, size(299), first)}},
		"protocol":     {Rule{Protos: []uint8{47, 6}}, []*packet.Info{udp(1, 1, proto(47)), udp(1, 1, proto(6))}, []*packet.Info{udp(1, 1)}},
		"all":          {Rule{}, []*packet.Info{udp(1, 1), udp(1, 1, proto(0)), udp(1, 1, first)}, nil},
	} {
		tc.rule.Lane = packet.Telemetry
		c := New(Config{Rules: []Rule{tc.rule}})
		for _, i := range tc.take {
			if got := c.Class(nil, i, 1, 0); got != packet.Telemetry {
				t.Errorf("%s: %+v is %v, want telemetry", name, *i, got)
			}
		}
		for _, i := range tc.not {
			if got := c.Class(nil, i, 1, 0); got != packet.Bulk {
				t.Errorf("%s: %+v is %v, want bulk", name, *i, got)
			}
		}
	}
}

// The first rule that matches counts, the configured before the default ones, also
// where they fill several words of the table.
func TestOrder(t *testing.T) {
	var rules []Rule
	for i := range 200 {
		rules = append(rules, Rule{DstPort: Ports{uint16(1000 + i), 1400}, Lane: packet.Lane(i % 3)})
	}
	c := New(Config{Rules: rules})
	for i := range 200 {
		p := packet.Info{Proto: 17, Len: 500, DstPort: uint16(1000 + i)}
		if got := c.Class(nil, &p, 1, 0); got != packet.Critical {
			t.Errorf("port %d: %v, want critical of the first rule", p.DstPort, got)
		}
	}
	for i := range 200 {
		rules[i].DstPort.Hi = uint16(1000 + i)
	}
	c = New(Config{Rules: rules})
	for i := range 200 {
		p := packet.Info{Proto: 17, Len: 99, DstPort: uint16(1000 + i)}
		if got := c.Class(nil, &p, 1, 0); got != packet.Lane(i%3) {
			t.Errorf("port %d: %v, want %v", p.DstPort, got, packet.Lane(i%3))
		}
	}
	small := packet.Info{Proto: 17, Len: 99, DstPort: 2000}
	if got := c.Class(nil, &small, 1, 0); got != packet.Critical {
		t.Errorf("what the rules leave over: %v, want critical of the defaults", got)
	}
}

// Each of many sizes has its edge.
func TestSizes(t *testing.T) {
	for _, n := range []int{1, 8, 9, 150} {
		var rules []Rule
		for i := range n {
			rules = append(rules, Rule{Below: 210 + 10*i, Lane: packet.Lane(i % 3)})
		}
		c := New(Config{Rules: rules})
		for size := 195; size < 220+10*n; size++ {
			want := packet.Bulk
			if i := max(0, (size-200)/10); i < n {
				want = packet.Lane(i % 3)
			}
			if got := c.Class(nil, &packet.Info{Proto: 17, Len: size}, 1, 0); got != want {
				t.Errorf("%d sizes, %d bytes: %v, want %v", n, size, got, want)
			}
		}
	}
}

// No rule takes ICMP errors and neighbour discovery out of Critical.
func TestVital(t *testing.T) {
	c := New(Config{Rules: []Rule{{Lane: packet.Bulk}}})
	for _, tc := range []struct {
		proto, kind uint8
		want        packet.Lane
	}{
		{1, 3, packet.Critical},
		{1, 4, packet.Critical},
		{1, 5, packet.Critical},
		{1, 11, packet.Critical},
		{1, 12, packet.Critical},
		{1, 0, packet.Bulk},
		{1, 8, packet.Bulk},
		{58, 1, packet.Critical},
		{58, 2, packet.Critical},
		{58, 127, packet.Critical},
		{58, 128, packet.Bulk},
		{58, 129, packet.Bulk},
		{58, 132, packet.Bulk},
		{58, 133, packet.Critical},
		{58, 137, packet.Critical},
		{58, 138, packet.Bulk},
		{17, 3, packet.Bulk},
	} {
		if got := c.Class(nil, &packet.Info{Proto: tc.proto, ICMPType: tc.kind, Len: 500}, 1, 0); got != tc.want {
			t.Errorf("protocol %d type %d: %v, want %v", tc.proto, tc.kind, got, tc.want)
		}
	}
}

// inspector takes packets that begin with 'x' for their second byte.
type inspector struct{ asked int }

func (i *inspector) Inspect(pkt []byte, info packet.Info) (packet.Lane, bool) {
	i.asked++
	if len(pkt) < info.Transport+10 {
		return 0, false
	}
	body := pkt[info.Transport+8:]
	return packet.Lane(body[1]), body[0] == 'x'
}

func TestInspector(t *testing.T) {
	in := &inspector{}
	c := New(Config{Rules: []Rule{{DstPort: Ports{9, 9}, Lane: packet.Telemetry}}, Inspector: in})
	udp := func(dst uint16, kind, lane byte) ([]byte, *packet.Info) {
		pkt := append(make([]byte, 28), kind, lane)
		return pkt, &packet.Info{Proto: 17, Len: 500, DstPort: dst, Transport: 20}
	}
	for name, tc := range map[string]struct {
		dst        uint16
		kind, lane byte
		change     func(*packet.Info)
		want       packet.Lane
		asked      int
	}{
		"decided":                 {7, 'x', 0, nil, packet.Critical, 1},
		"decided before port":     {5006, 'x', 2, nil, packet.Bulk, 1},
		"no lane":                 {7, 'x', 99, nil, packet.Bulk, 1},
		"undecided":               {7, 'y', 0, nil, packet.Bulk, 1},
		"undecided, port":         {5006, 'y', 0, nil, packet.Telemetry, 1},
		"a rule first":            {9, 'x', 0, nil, packet.Telemetry, 0},
		"small":                   {7, 'x', 2, func(i *packet.Info) { i.Len = 99 }, packet.Critical, 0},
		"tcp":                     {7, 'x', 0, func(i *packet.Info) { i.Proto = 6 }, packet.Bulk, 0},
		"first fragment":          {7, 'x', 1, func(i *packet.Info) { i.Fragment = packet.FirstFragment }, packet.Telemetry, 1},
		"fragment of what it saw": {7, 'x', 0, func(i *packet.Info) { i.Fragment = packet.LaterFragment }, packet.Bulk, 0},
	} {
		pkt, info := udp(tc.dst, tc.kind, tc.lane)
		if tc.change != nil {
			tc.change(info)
		}
		info.FragmentID = uint32(len(name))
		in.asked = 0
		if got := c.Class(pkt, info, 1, 0); got != tc.want || in.asked != tc.asked {
			t.Errorf("%s: %v after %d questions, want %v after %d", name, got, in.asked, tc.want, tc.asked)
		}
	}
}

// twin is the text of the rules, read once more and as slowly as can be. It has no
// code in common with the classifier, not even the decoder.
type twin struct {
	rules []Rule
	seen  map[string]packet.Lane
}

func (w *twin) class(b []byte) (lane packet.Lane, ok bool) {
	var l4 []byte
	var proto, tos int
	var first, later bool
	var name string
	if len(b) < 20 {
		return 0, false
	}
	switch b[0] >> 4 {
	case 4:
		head := int(b[0]&15) * 4
		if head < 20 || len(b) < head || int(b[2])<<8|int(b[3]) != len(b) {
			return 0, false
		}
		proto, tos, l4 = int(b[9]), int(b[1]), b[head:]
		offset, more := (int(b[6])<<8|int(b[7]))&0x1fff, b[6]&0x20 != 0
		first, later = offset == 0 && more, offset != 0
		name = fmt.Sprintf("%x %d %x", b[12:20], proto, b[4:6])
	case 6:
		if len(b) < 40 || int(b[4])<<8|int(b[5]) != len(b)-40 {
			return 0, false
		}
		proto, tos, l4 = int(b[6]), int(b[0]&15)<<4|int(b[1]>>4), b[40:]
		for headers := 1; !later; headers++ {
			if proto != 0 && proto != 43 && proto != 44 && proto != 60 {
				break
			}
			if headers > 8 || len(l4) < 8 {
				return 0, false
			}
			next := int(l4[0])
			if proto == 44 {
				offset, more := int(l4[2])<<5|int(l4[3])>>3, l4[3]&1 != 0
				if offset != 0 || more {
					first, later = offset == 0, offset != 0
					name = fmt.Sprintf("%x %x", b[8:40], l4[4:8])
				}
				l4 = l4[8:]
			} else {
				if len(l4) < 8+8*int(l4[1]) {
					return 0, false
				}
				l4 = l4[8+8*int(l4[1]):]
			}
			proto = next
		}
	default:
		return 0, false
	}
	if later {
		lane = packet.Bulk
		if l, known := w.seen[name]; known {
			lane = l
		}
		return lane, true
	}
	src, dst, kind := 0, 0, -1
	switch proto {
	case 6, 17:
		if proto == 17 && len(l4) < 8 || proto == 6 && (len(l4) < 20 || l4[12]>>4 < 5 || int(l4[12]>>4)*4 > len(l4)) {
			return 0, false
		}
		src, dst = int(l4[0])<<8|int(l4[1]), int(l4[2])<<8|int(l4[3])
	case 1, 58:
		if len(l4) < 4 {
			return 0, false
		}
		kind = int(l4[0])
	}
	lane = w.decide(proto, tos>>2, src, dst, kind, len(b), first)
	if first {
		w.seen[name] = lane
	}
	return lane, true
}

func (w *twin) decide(proto, dscp, src, dst, kind, size int, fragment bool) packet.Lane {
	if proto == 1 && (kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12) ||
		proto == 58 && (kind < 128 || 133 <= kind && kind <= 137) {
		return packet.Critical
	}
	inside := func(port int, p Ports) bool { return int(p.Lo) <= port && port <= int(p.Hi) }
	contains := func(list []uint8, v int) bool {
		for _, x := range list {
			if int(x) == v {
				return true
			}
		}
		return len(list) == 0
	}
	for _, r := range w.rules {
		ok := contains(r.Protos, proto) && contains(r.DSCP, dscp)
		ok = ok && (r.Below == 0 || size < r.Below && !fragment)
		named := 0
		if r.Port.Hi != 0 {
			named++
			ok = ok && (inside(src, r.Port) || inside(dst, r.Port))
		}
		if r.SrcPort.Hi != 0 {
			named++
			ok = ok && inside(src, r.SrcPort)
		}
		if r.DstPort.Hi != 0 {
			named++
			ok = ok && inside(dst, r.DstPort)
		}
		if ok && (named == 0 || proto == 6 || proto == 17) {
			return r.Lane
		}
	}
	switch {
	case proto == 1 || proto == 58 || size < 100 && !fragment:
		return packet.Critical
	case (proto == 6 || proto == 17) && (src == 5006 || dst == 5006):
		return packet.Telemetry
	}
	return packet.Bulk
}

// source draws numbers from fuzzed bytes, and zeros after them.
type source struct{ b []byte }

func (s *source) n(limit int) int {
	if len(s.b) == 0 {
		return 0
	}
	v := int(s.b[0])
	s.b = s.b[1:]
	if limit > 256 && len(s.b) > 0 {
		v = v<<8 | int(s.b[0])
		s.b = s.b[1:]
	}
	return v % limit
}

func (s *source) port() uint16 {
	near := []uint16{1, 255, 256, 5005, 5006, 5006, 5007, 7400, 7410, 65535}
	if k := s.n(len(near) + 1); k < len(near) {
		return near[k]
	}
	return uint16(max(1, s.n(65536)))
}

func (s *source) ports() Ports {
	if s.n(2) == 0 {
		return Ports{}
	}
	lo, hi := s.port(), s.port()
	return Ports{min(lo, hi), max(lo, hi)}
}

func (s *source) list(limit int) (out []uint8) {
	for range s.n(3) {
		out = append(out, uint8(s.n(limit)))
	}
	return out
}

func (s *source) rules() (out []Rule) {
	for range s.n(4) * s.n(40) {
		r := Rule{Lane: packet.Lane(s.n(3)), DSCP: s.list(64), Port: s.ports()}
		switch s.n(4) {
		case 0:
			r.SrcPort = s.ports()
		case 1:
			r.DstPort = s.ports()
		}
		if s.n(3) == 0 {
			r.Protos = []uint8{[]uint8{1, 6, 17, 47, 58, 60, 44, 0}[s.n(8)]}
		}
		if s.n(3) == 0 {
			r.Below = []int{100, 300, 1350, 50}[s.n(4)]
		}
		out = append(out, r)
	}
	return out
}

// packet makes one that is well formed, or nearly.
func (s *source) packet() []byte {
	l4 := make([]byte, 4+s.n(400))
	binary.BigEndian.PutUint16(l4, s.port())
	binary.BigEndian.PutUint16(l4[2:], s.port())
	proto := []byte{1, 6, 17, 17, 47, 58}[s.n(6)]
	if proto == 1 || proto == 58 {
		l4[0] = byte(s.n(256))
	}
	if len(l4) > 12 {
		l4[12] = byte(s.n(12)) << 4
	}
	frag, id := s.n(65536), byte(s.n(2))
	if s.n(8) != 0 {
		frag = []int{0, 0x2000, 0x2001, 0x0001}[s.n(4)]
	}
	var b []byte
	if s.n(2) == 0 {
		b = make([]byte, 20+4*s.n(2))
		b[0], b[1], b[9] = 0x40|byte(len(b)/4), byte(s.n(256)), proto
		b[5], b[15], b[19] = id, byte(s.n(2)), 9
		binary.BigEndian.PutUint16(b[6:], uint16(frag))
		b = append(b, l4...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		for range s.n(4) {
			h := make([]byte, 8)
			h[0] = proto
			proto = []byte{0, 43, 60, 44, 44, 44}[s.n(6)]
			if proto == 44 {
				binary.BigEndian.PutUint16(h[2:], uint16(frag>>13&1|frag<<3))
				h[7] = id
			} else if s.n(4) == 0 {
				h[1] = 1
				h = append(h, make([]byte, 8)...)
			}
			l4 = append(h, l4...)
		}
		b = make([]byte, 40, 40+len(l4))
		b[0], b[1], b[6] = 0x60|byte(s.n(16)), byte(s.n(256)), proto
		b[23], b[39] = byte(s.n(2)), 9
		if s.n(5) == 0 { // an IPv4 address in disguise
			b[18], b[19], b[34], b[35] = 0xff, 0xff, 0xff, 0xff
		}
		binary.BigEndian.PutUint16(b[4:], uint16(len(l4)))
		b = append(b, l4...)
	}
	switch s.n(8) {
	case 0:
		b = b[:s.n(len(b)+1)]
	case 1:
		b[s.n(len(b))] ^= byte(s.n(256))
	}
	return b
}

// compare has classifier and twin judge a stream of packets under one set of rules.
func compare(t *testing.T, in []byte, count map[string]int) {
	s := &source{in}
	w := &twin{rules: s.rules(), seen: make(map[string]packet.Lane)}
	c := New(Config{Rules: w.rules})
	for n := 0; n < 64 && len(s.b) > 0; n++ { // more would be more datagrams than it remembers
		b := s.packet()
		if s.n(16) == 0 {
			b = s.b // whatever it is
			s.b = nil
		}
		var info packet.Info
		ok := packet.Parse(b, &info)
		want, wantOK := w.class(b)
		if ok != wantOK {
			t.Fatalf("Parse = %v, twin = %v for %x", ok, wantOK, b)
		}
		if !ok {
			count["refused"]++
			continue
		}
		// Another flow for each: that none overtakes itself is not the twin's business.
		if got := c.Class(b, &info, uint32(n), int64(n)); got != want {
			t.Fatalf("%v, twin says %v\nrules %+v\npacket %x\n%+v", got, want, w.rules, b, info)
		}
		count[fmt.Sprintf("%v of v%d, fragment %d", want, b[0]>>4, info.Fragment)]++
	}
}

func TestAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	count := make(map[string]int)
	in := make([]byte, 4096)
	for range 500 {
		for i := range in {
			in[i] = byte(rng.Uint32())
		}
		compare(t, in, count)
	}
	for _, v := range []int{4, 6} {
		for f := range 3 {
			for l := range packet.Lane(packet.NumLanes) {
				if name := fmt.Sprintf("%v of v%d, fragment %d", l, v, f); count[name] < 10 {
					t.Errorf("only %d packets were %s", count[name], name)
				}
			}
		}
	}
}

func FuzzClass(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 8 {
		in := make([]byte, 600)
		for i := range in {
			in[i] = byte(rng.Uint32())
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) { compare(t, in, make(map[string]int)) })
}

func BenchmarkClass(b *testing.B) {
	for _, n := range []int{0, 10, 200} {
		var rules []Rule
		for i := range n {
			rules = append(rules, Rule{Protos: []uint8{17}, DSCP: []uint8{uint8(i % 64)}, Port: Ports{uint16(10000 + 20*i), uint16(10010 + 20*i)}})
		}
		c := New(Config{Rules: rules})
		for name, info := range map[string]packet.Info{
			"default": {Proto: 17, Len: 1300, SrcPort: 40000, DstPort: 8000},
			"tcp":     {Proto: 6, Len: 1300, Payload: 1260, SrcPort: 40000, DstPort: 8000},
			"small":   {Proto: 17, Len: 80, SrcPort: 40000, DstPort: 8000},
			"piece":   {Src: a, Dst: b2, Proto: 17, Len: 1300, Fragment: packet.LaterFragment, FragmentID: 7},
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				first := info
				first.Fragment = packet.FirstFragment
				c.Class(nil, &first, 1, 0)
				b.ReportAllocs()
				for b.Loop() {
					c.Class(nil, &info, 1, 1)
				}
			})
		}
	}
}
