// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
)

var (
	now  = time.Date(2026, 11, 24, 12, 0, 0, 5e6, time.UTC)
	self = identity.PeerID{9}
	same = cmp.Options{
		cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}), cmpopts.EquateEmpty(),
		cmp.Comparer(func(a, b *ecdh.PublicKey) bool { return a == b || a != nil && b != nil && a.Equal(b) }),
	}
)

// keysOf derives keys from a number, so that equal seeds give equal files.
func keysOf(n int) *identity.Keys {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	seed := sha256.Sum256(append([]byte("ed"), b[:]...))
	x := sha256.Sum256(append([]byte("x"), b[:]...))
	xk, err := fips.NewX25519PrivateKey(x[:])
	if err != nil {
		panic(err)
	}
	return &identity.Keys{Ed25519: ed25519.NewKeyFromSeed(seed[:]), X25519: xk}
}

func peerOf(n int) Peer {
	k := keysOf(n)
	return Peer{
		Peer: registry.Peer{
			ID: k.ID(), Name: fmt.Sprintf("robot%d", n),
			Virtual4: netip.AddrFrom4([4]byte{10, 66, byte(n >> 8), byte(n)}),
			Virtual6: netip.AddrFrom16([16]byte{0xfd, 0x66, 14: byte(n >> 8), 15: byte(n)}),
			Ed25519:  k.Ed25519.Public().(ed25519.PublicKey), X25519: k.X25519.PublicKey(), Tags: []string{"site:a", "robot"},
		},
		Addrs: []Addr{
			{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 51820), Kind: "direct", Uplink: "wlan0", At: now.Add(-time.Minute)},
			{Addr: netip.MustParseAddrPort("[2001:db8::7]:4000"), Kind: "turn", At: now.Add(-time.Hour)},
		},
	}
}

func sample(peers int) *Snapshot {
	s := &Snapshot{
		MeshID: "m1", Self: self, Written: now, PolicyVersion: 7, Policy: []byte(`{"version":1}`), Resume: []byte{1, 2, 3},
		Denials: []Denial{
			{Serial: []byte{4, 5}, Until: now.Add(time.Hour)},
			{Ed25519: keysOf(900).Ed25519.Public().(ed25519.PublicKey)},
			{ID: identity.PeerID{3}, Until: now.Add(time.Minute)},
		},
		Spent: []Spent{{"wwan0", Day(now), 12345}, {"wlan0", Day(now), 1}},
		Rates: []Rate{
			{Peer: identity.PeerID{4}, Uplink: "wwan0", Network: netip.MustParsePrefix("2001:db8:1:2::/64"), Remote: netip.MustParsePrefix("2001:db8::/64"), Rate: 7e5, At: now.Add(-time.Hour)},
			{Peer: identity.PeerID{3}, Network: netip.MustParsePrefix("192.0.2.0/24"), Remote: netip.MustParsePrefix("198.51.100.0/24"), Rate: 25e6, At: now.Add(-time.Minute)},
		},
		Port: 41641,
	}
	for i := range peers {
		s.Peers = append(s.Peers, peerOf(i))
	}
	sortLike(s)
	return s
}

// sortLike brings s into the order of the file.
func sortLike(s *Snapshot) {
	slices.SortFunc(s.Peers, func(a, b Peer) int { return a.ID.Compare(b.ID) })
	slices.SortFunc(s.Spent, func(a, b Spent) int { return strings.Compare(a.Uplink, b.Uplink) })
	slices.SortFunc(s.Rates, func(a, b Rate) int { return a.Peer.Compare(b.Peer) })
	slices.SortFunc(s.Denials, func(a, b Denial) int {
		key := func(d Denial) []byte {
			if !d.ID.IsZero() {
				return append([]byte{2}, d.ID[:]...)
			}
			return append([]byte{byte(min(1, len(d.Ed25519)))}, d.Ed25519...)
		}
		return bytes.Compare(key(a), key(b))
	})
}

func encoded(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	for _, s := range []*Snapshot{sample(5), {MeshID: "m1", Self: self, Written: now}} {
		got, err := Decode(encoded(t, s), "m1", self)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, got, same); d != "" {
			t.Errorf("round trip (-want +got):\n%s", d)
		}
	}
}

func TestDeterministic(t *testing.T) {
	a, b := sample(20), sample(20)
	slices.Reverse(b.Peers)
	slices.Reverse(b.Denials)
	slices.Reverse(b.Spent)
	slices.Reverse(b.Rates)
	slices.Reverse(b.Peers[3].Addrs)
	first := b.Peers[0].ID
	if !bytes.Equal(encoded(t, a), encoded(t, b)) {
		t.Error("the order of the input shows in the bytes")
	}
	if b.Peers[0].ID != first {
		t.Error("Encode changed its receiver")
	}
}

func TestEncodeLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Snapshot)
		want   error
	}{
		"Policy":    {func(s *Snapshot) { s.Policy = make([]byte, MaxPolicy+1) }, ErrLimit},
		"Resume":    {func(s *Snapshot) { s.Resume = make([]byte, MaxResume+1) }, ErrLimit},
		"Denials":   {func(s *Snapshot) { s.Denials = make([]Denial, MaxDenials+1) }, ErrLimit},
		"Uplinks":   {func(s *Snapshot) { s.Spent = make([]Spent, MaxUplinks+1) }, ErrLimit},
		"Rates":     {func(s *Snapshot) { s.Rates = make([]Rate, MaxRates+1) }, ErrLimit},
		"Uplink":    {func(s *Snapshot) { s.Spent[0].Uplink = strings.Repeat("x", maxName+1) }, ErrLimit},
		"Mesh":      {func(s *Snapshot) { s.MeshID = "" }, ErrLimit},
		"Tags":      {func(s *Snapshot) { s.Peers[0].Tags = make([]string, maxTags+1) }, ErrLimit},
		"Tag":       {func(s *Snapshot) { s.Peers[0].Tags = []string{strings.Repeat("x", maxTag+1)} }, ErrLimit},
		"NoDenial":  {func(s *Snapshot) { s.Denials = []Denial{{}} }, ErrLimit},
		"TwoInOne":  {func(s *Snapshot) { s.Denials = []Denial{{ID: self, Serial: []byte{1}}} }, ErrLimit},
		"WrongKeys": {func(s *Snapshot) { s.Peers[0].ID[0]++ }, registry.ErrKeys},
		"Total": {func(s *Snapshot) {
			s.Policy = make([]byte, MaxPolicy)
			s.Denials = make([]Denial, MaxDenials)
			for i := range s.Denials {
				s.Denials[i].Serial = binary.BigEndian.AppendUint64(make([]byte, maxSerial-8), uint64(i))
			}
			tags := slices.Repeat([]string{strings.Repeat("t", maxTag)}, maxTags)
			for i := range 300 {
				p := peerOf(100 + i)
				p.Tags = tags
				s.Peers = append(s.Peers, p)
			}
		}, ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			s := sample(2)
			tc.change(s)
			if b, err := s.Encode(); !errors.Is(err, tc.want) {
				t.Errorf("Encode = %d bytes, %v; want %v", len(b), err, tc.want)
			}
		})
	}
	s := sample(1)
	s.Peers = append(s.Peers, s.Peers[0])
	if _, err := s.Encode(); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("one peer twice: %v", err)
	}
}

func TestKeepsTheNewest(t *testing.T) {
	s := sample(1)
	s.Denials = append(s.Denials, Denial{Serial: []byte{8}, Until: now})
	p := &s.Peers[0]
	p.Addrs = nil
	for i := range 12 {
		p.Addrs = append(p.Addrs, Addr{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 1), Kind: "direct", At: now.Add(time.Duration(i) * time.Second)})
	}
	p.Addrs = append(p.Addrs,
		Addr{Addr: netip.MustParseAddrPort("0.0.0.0:1"), At: now.Add(time.Hour)},
		Addr{Addr: netip.MustParseAddrPort("224.0.0.1:1"), At: now.Add(time.Hour)},
		Addr{Addr: netip.MustParseAddrPort("192.0.2.1:0"), At: now.Add(time.Hour)},
		Addr{Addr: netip.MustParseAddrPort("[::ffff:192.0.2.1]:5"), At: now.Add(time.Hour)})
	got, err := Decode(encoded(t, s), "m1", self)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Denials) != 3 {
		t.Errorf("%d denials, want 3 without the one that has run out", len(got.Denials))
	}
	a := got.Peers[0].Addrs
	if len(a) != MaxAddrs || a[0].Addr.String() != "192.0.2.11:1" || a[7].Addr.String() != "192.0.2.4:1" {
		t.Errorf("addresses %v", a)
	}
}

func TestTooManyPeers(t *testing.T) {
	s := &Snapshot{MeshID: "m1", Self: self, Written: now}
	for i := range MaxPeers + 2 {
		ed := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i))) // real keys take long
		x, err := fips.NewX25519PublicKey(ed[:])
		if err != nil {
			t.Fatal(err)
		}
		s.Peers = append(s.Peers, Peer{Peer: registry.Peer{
			ID: identity.NewPeerID(ed[:], ed[:]), Name: "r", Virtual4: netip.MustParseAddr("10.66.0.1"), Ed25519: ed[:], X25519: x,
		}})
	}
	sortLike(s)
	reached := &s.Peers[MaxPeers+1] // the last by id
	reached.Addrs = peerOf(1).Addrs
	got, err := Decode(encoded(t, s), "m1", self)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Peers); n != MaxPeers || got.Peers[n-1].ID != reached.ID {
		t.Errorf("%d peers; the one that was reached is among them: %v", n, got.Peers[n-1].ID == reached.ID)
	}
}

// TestGolden: what an older program of this major version wrote is read for ever.
func TestGolden(t *testing.T) {
	const file = "testdata/v1.1.cbor.hex"
	text := hex.EncodeToString(encoded(t, sample(2)))
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(string(want)) != text {
		t.Error("the bytes of the format have changed; a new version keeps this file and adds its own")
	}
	old := sample(2)
	old.Rates = nil
	for file, want := range map[string]*Snapshot{file: sample(2), "testdata/v1.0.cbor.hex": old} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b, "m1", self)
		if err != nil {
			t.Fatal(file, err)
		}
		if d := cmp.Diff(want, got, same); d != "" {
			t.Errorf("%s (-want +got):\n%s", file, d)
		}
	}
}

// TestVersions: a newer minor version may say more, a newer major nothing.
func TestVersions(t *testing.T) {
	good := encoded(t, sample(1))
	var e map[uint64]any
	if err := cbor.Unmarshal(good, &e); err != nil {
		t.Fatal(err)
	}
	var in map[uint64]any
	if err := cbor.Unmarshal(e[3].([]byte), &in); err != nil {
		t.Fatal(err)
	}
	in[40] = []any{"new", 1}
	in[4].([]any)[0].(map[any]any)[uint64(41)] = true
	more, err := cbor.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name         string
		major, minor uint64
		want         error
	}{
		{"NewerMinor", Major, Minor + 1, nil},
		{"UnknownInThisOne", Major, Minor, ErrDamaged},
		{"NewerMajor", Major + 1, 0, ErrVersion},
		{"None", 0, 0, ErrDamaged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := cbor.Marshal(map[uint64]any{1: tc.major, 2: tc.minor, 3: more, 4: checksum(tc.major, tc.minor, more), 9: "later"})
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode(b, "m1", self)
			if !errors.Is(err, tc.want) || tc.want == nil && (err != nil || len(got.Peers) != 1) {
				t.Errorf("Decode = %v, want %v", err, tc.want)
			}
			if errors.Is(err, ErrVersion) && !strings.Contains(err.Error(), "format 2.0, this program reads 1.x") {
				t.Errorf("error %q does not tell the versions", err)
			}
		})
	}
}

func TestForeign(t *testing.T) {
	b := encoded(t, sample(1))
	if _, err := Decode(b, "m2", self); !errors.Is(err, ErrForeign) {
		t.Errorf("another mesh: %v", err)
	}
	if _, err := Decode(b, "m1", identity.PeerID{8}); !errors.Is(err, ErrForeign) {
		t.Errorf("another node: %v", err)
	}
}

// TestEveryBit: no flipped bit and no missing or added byte passes.
func TestEveryBit(t *testing.T) {
	good := encoded(t, sample(2))
	for i := range good {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			if _, err := Decode(b, "m1", self); err == nil {
				t.Fatalf("bit %d of byte %d flipped: no error", bit, i)
			}
		}
		if _, err := Decode(good[:i], "m1", self); !errors.Is(err, ErrDamaged) {
			t.Fatalf("first %d bytes: %v", i, err)
		}
	}
	if _, err := Decode(append(bytes.Clone(good), 0), "m1", self); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte more: %v", err)
	}
}

// wrap makes a file around a body of one's own.
func wrap(t testing.TB, v any) []byte {
	t.Helper()
	b, ok := v.([]byte)
	if !ok {
		var err error
		if b, err = cbor.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	out, err := cbor.Marshal(&envelope{Major: Major, Minor: Minor, Body: b, Sum: checksum(Major, Minor, b)})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDecodeRefuses(t *testing.T) {
	full := func(change func(*body)) body {
		raw, err := sample(2).encodeBody()
		if err != nil {
			t.Fatal(err)
		}
		var b body
		if err := cbor.Unmarshal(raw, &b); err != nil {
			t.Fatal(err)
		}
		change(&b)
		return b
	}
	for name, v := range map[string]any{
		"Duplicate":   []byte{0xa2, 0x01, 0x61, 'm', 0x01, 0x61, 'm'},
		"Indefinite":  []byte{0xbf, 0x01, 0x61, 'm', 0xff},
		"Tag":         []byte{0xa1, 0x01, 0xc2, 0x41, 0x01},
		"UTF8":        []byte{0xa1, 0x01, 0x61, 0xff},
		"Depth":       append(append([]byte{0xa1, 0x04}, bytes.Repeat([]byte{0x81}, 20)...), 0x00),
		"HugeArray":   []byte{0xa1, 0x04, 0x9b, 0, 0, 0, 1, 0, 0, 0, 0},
		"NoSelf":      full(func(b *body) { b.Self = b.Self[:31] }),
		"NoMesh":      full(func(b *body) { b.MeshID = "" }),
		"Peers":       full(func(b *body) { b.Peers = make([]peer, MaxPeers+1) }),
		"Policy":      full(func(b *body) { b.Policy = make([]byte, MaxPolicy+1) }),
		"Resume":      full(func(b *body) { b.Resume = make([]byte, MaxResume+1) }),
		"Spent":       full(func(b *body) { b.Spent = make([]spent, MaxUplinks+1) }),
		"Rates":       full(func(b *body) { b.Rates = make([]rate, MaxRates+1) }),
		"Uplink":      full(func(b *body) { b.Spent[0].Uplink = strings.Repeat("x", maxName+1) }),
		"Order":       full(func(b *body) { slices.Reverse(b.Peers) }),
		"Twice":       full(func(b *body) { b.Peers[1] = b.Peers[0] }),
		"Denial":      full(func(b *body) { b.Denials[0] = denial{Until: 1} }),
		"DenialKey":   full(func(b *body) { b.Denials[0] = denial{Ed25519: make([]byte, 31)} }),
		"DenialID":    full(func(b *body) { b.Denials[0] = denial{ID: make([]byte, 33)} }),
		"DenialLong":  full(func(b *body) { b.Denials[0] = denial{Serial: make([]byte, maxSerial+1)} }),
		"DenialMixed": full(func(b *body) { b.Denials[0] = denial{Serial: []byte{1}, ID: make([]byte, 32)} }),
		"NoMap":       []byte{0x80},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(wrap(t, v), "m1", self); !errors.Is(err, ErrDamaged) {
				t.Errorf("Decode = %v, want ErrDamaged", err)
			}
		})
	}
	if _, err := Decode(make([]byte, MaxSize+1), "m1", self); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too large a file: %v", err)
	}
}

// TestDropsPeers: a peer that is not what it says costs nobody else.
func TestDropsPeers(t *testing.T) {
	me := keysOf(2)
	for name, change := range map[string]func(*peer){
		"ID":       func(p *peer) { p.ID[31] ^= 1 },
		"Key":      func(p *peer) { p.Ed25519[0] ^= 1 },
		"KeyShort": func(p *peer) { p.X25519 = p.X25519[:31] },
		"NoKey":    func(p *peer) { p.Ed25519 = nil },
		"Address":  func(p *peer) { p.Virtual4 = p.Virtual4[:3] },
		"Address6": func(p *peer) { p.Virtual6 = p.Virtual6[:4] },
		"Mapped":   func(p *peer) { copy(p.Virtual6, netip.MustParseAddr("::ffff:1.2.3.4").AsSlice()) },
		"Name":     func(p *peer) { p.Name = "A b" },
		"Tags":     func(p *peer) { p.Tags = make([]string, maxTags+1) },
		"Self": func(p *peer) {
			id := me.ID()
			p.ID, p.Ed25519, p.X25519 = id[:], me.Ed25519.Public().(ed25519.PublicKey), me.X25519.PublicKey().Bytes()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := sample(2)
			s.Self = me.ID()
			raw, err := s.encodeBody()
			if err != nil {
				t.Fatal(err)
			}
			var b body
			if err := cbor.Unmarshal(raw, &b); err != nil {
				t.Fatal(err)
			}
			change(&b.Peers[0])
			got, err := Decode(wrap(t, b), "m1", s.Self)
			if err != nil {
				t.Fatal(err)
			}
			if got.Dropped != 1 || len(got.Peers) != 1 || got.Peers[0].ID != s.Peers[1].ID {
				t.Errorf("dropped %d, %d left", got.Dropped, len(got.Peers))
			}
		})
	}
}

func TestDay(t *testing.T) {
	for _, tc := range []struct {
		at   time.Time
		want int64
	}{
		{time.Unix(0, 0), 0},
		{time.Unix(86399, 0), 0},
		{time.Unix(86400, 0), 1},
		{time.Unix(-1, 0), -1},
		{time.Unix(-86400, 0), -1},
		{time.Date(1970, 1, 2, 1, 0, 0, 0, time.FixedZone("", 7200)), 0},
	} {
		if got := Day(tc.at); got != tc.want {
			t.Errorf("Day(%v) = %d, want %d", tc.at, got, tc.want)
		}
	}
}
