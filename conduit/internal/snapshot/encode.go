// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// What is written. Keys are numbers that are never used for anything else; a new
// one needs a new minor version, another meaning of an old one a new major.

type envelope struct {
	Major uint64 `cbor:"1,keyasint"`
	Minor uint64 `cbor:"2,keyasint"`
	Body  []byte `cbor:"3,keyasint"`
	Sum   []byte `cbor:"4,keyasint"` // what checksum says
}

type body struct {
	MeshID  string   `cbor:"1,keyasint"`
	Self    []byte   `cbor:"2,keyasint"`
	Written int64    `cbor:"3,keyasint"` // Unix, ms
	Peers   []peer   `cbor:"4,keyasint,omitempty"`
	Version uint64   `cbor:"5,keyasint,omitempty"`
	Policy  []byte   `cbor:"6,keyasint,omitempty"`
	Denials []denial `cbor:"7,keyasint,omitempty"`
	Resume  []byte   `cbor:"8,keyasint,omitempty"`
	Spent   []spent  `cbor:"9,keyasint,omitempty"`
	Port    uint16   `cbor:"10,keyasint,omitempty"`
	Rates   []rate   `cbor:"11,keyasint,omitempty"` // since 1.1
}

type peer struct {
	ID       []byte   `cbor:"1,keyasint"`
	Name     string   `cbor:"2,keyasint"`
	Virtual4 []byte   `cbor:"3,keyasint"`
	Virtual6 []byte   `cbor:"4,keyasint,omitempty"`
	Ed25519  []byte   `cbor:"5,keyasint"`
	X25519   []byte   `cbor:"6,keyasint"`
	Tags     []string `cbor:"7,keyasint,omitempty"`
	Addrs    []addr   `cbor:"8,keyasint,omitempty"`
}

type addr struct {
	IP     []byte `cbor:"1,keyasint"`
	Port   uint16 `cbor:"2,keyasint"`
	Kind   string `cbor:"3,keyasint"`
	Uplink string `cbor:"4,keyasint,omitempty"`
	At     int64  `cbor:"5,keyasint"` // Unix, ms
}

type denial struct {
	ID      []byte `cbor:"1,keyasint,omitempty"`
	Ed25519 []byte `cbor:"2,keyasint,omitempty"`
	Serial  []byte `cbor:"3,keyasint,omitempty"`
	Until   int64  `cbor:"4,keyasint,omitempty"` // Unix, ms; 0 for ever
}

type spent struct {
	Uplink string `cbor:"1,keyasint"`
	Day    int64  `cbor:"2,keyasint"`
	Bytes  uint64 `cbor:"3,keyasint"`
}

// encMode is the core deterministic encoding of RFC 8949 §4.2.1.
var encMode = func() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.IndefLength = cbor.IndefLengthForbidden
	o.TagsMd = cbor.TagsForbidden
	m, err := o.EncMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// Encode returns the bytes of s; equal snapshots give equal bytes. Of more than
// MaxPeers peers those that were reached last are kept, of a peer the MaxAddrs
// newest addresses, and denials that have run out are left out. What does not fit
// otherwise is an error that Is ErrLimit. s is not changed.
func (s *Snapshot) Encode() ([]byte, error) {
	b, err := s.encodeBody()
	if err != nil {
		return nil, err
	}
	out, err := encMode.Marshal(&envelope{Major: Major, Minor: Minor, Body: b, Sum: checksum(Major, Minor, b)})
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	if len(out) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrLimit, len(out), MaxSize)
	}
	return out, nil
}

// checksum is SHA-256 over a label, both parts of the version as 64 bits each, big
// endian, and the body.
func checksum(major, minor uint64, body []byte) []byte {
	h := sha256.New()
	head := binary.BigEndian.AppendUint64([]byte("bx-state"), major)
	h.Write(binary.BigEndian.AppendUint64(head, minor))
	h.Write(body)
	return h.Sum(nil)
}

func (s *Snapshot) encodeBody() ([]byte, error) {
	switch {
	case len(s.MeshID) > maxName || s.MeshID == "":
		return nil, fmt.Errorf("%w: mesh id has %d bytes", ErrLimit, len(s.MeshID))
	case len(s.Policy) > MaxPolicy:
		return nil, fmt.Errorf("%w: policy has %d bytes, at most %d", ErrLimit, len(s.Policy), MaxPolicy)
	case len(s.Denials) > MaxDenials:
		return nil, fmt.Errorf("%w: %d denials, at most %d", ErrLimit, len(s.Denials), MaxDenials)
	case len(s.Resume) > MaxResume:
		return nil, fmt.Errorf("%w: resume token has %d bytes, at most %d", ErrLimit, len(s.Resume), MaxResume)
	case len(s.Spent) > MaxUplinks:
		return nil, fmt.Errorf("%w: %d uplinks, at most %d", ErrLimit, len(s.Spent), MaxUplinks)
	case len(s.Rates) > MaxRates:
		return nil, fmt.Errorf("%w: %d rates, at most %d", ErrLimit, len(s.Rates), MaxRates)
	}
	out := body{
		MeshID: s.MeshID, Self: s.Self[:], Written: millis(s.Written),
		Version: s.PolicyVersion, Policy: s.Policy, Resume: s.Resume, Port: s.Port,
		Peers: make([]peer, 0, min(len(s.Peers), MaxPeers)), Denials: make([]denial, 0, len(s.Denials)),
	}
	for _, p := range keep(s.Peers) {
		q, err := encodePeer(p)
		if err != nil {
			return nil, err
		}
		out.Peers = append(out.Peers, q)
	}
	slices.SortFunc(out.Peers, func(a, b peer) int { return bytes.Compare(a.ID, b.ID) })
	for i := range out.Peers {
		if i > 0 && bytes.Equal(out.Peers[i-1].ID, out.Peers[i].ID) {
			return nil, fmt.Errorf("encode state: peer %s is there twice", identity.PeerID(out.Peers[i].ID).Short())
		}
	}
	for i := range s.Denials {
		d := &s.Denials[i]
		if !d.Until.IsZero() && !s.Written.Before(d.Until) {
			continue
		}
		q := denial{Ed25519: d.Ed25519, Serial: d.Serial, Until: millis(d.Until)}
		if !d.ID.IsZero() {
			q.ID = d.ID[:]
		}
		if !q.valid() {
			return nil, fmt.Errorf("%w: denial %d has not exactly one of id, key and serial number", ErrLimit, i)
		}
		out.Denials = append(out.Denials, q)
	}
	slices.SortFunc(out.Denials, func(a, b denial) int {
		return cmp.Or(bytes.Compare(a.ID, b.ID), bytes.Compare(a.Ed25519, b.Ed25519), bytes.Compare(a.Serial, b.Serial), cmp.Compare(a.Until, b.Until))
	})
	for _, u := range s.Spent {
		if len(u.Uplink) > maxName {
			return nil, fmt.Errorf("%w: name of an uplink has %d bytes", ErrLimit, len(u.Uplink))
		}
		out.Spent = append(out.Spent, spent(u))
	}
	slices.SortFunc(out.Spent, func(a, b spent) int { return cmp.Or(cmp.Compare(a.Uplink, b.Uplink), cmp.Compare(a.Day, b.Day)) })
	for i := range s.Rates {
		w := encodeRate(&s.Rates[i])
		if _, ok := w.read(); ok { // what could not be read is of no use
			out.Rates = append(out.Rates, w)
		}
	}
	slices.SortFunc(out.Rates, func(a, b rate) int {
		return cmp.Or(bytes.Compare(a.Peer, b.Peer), cmp.Compare(a.Uplink, b.Uplink), bytes.Compare(a.Network, b.Network),
			bytes.Compare(a.Remote, b.Remote), cmp.Compare(a.At, b.At), cmp.Compare(a.Rate, b.Rate))
	})
	b, err := encMode.Marshal(&out)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return b, nil
}

// keep returns the peers to write: those that were reached last, where there are
// too many.
func keep(peers []Peer) []*Peer {
	out := make([]*Peer, len(peers))
	for i := range peers {
		out[i] = &peers[i]
	}
	if len(out) <= MaxPeers {
		return out
	}
	newest := func(p *Peer) int64 {
		var at int64
		for _, a := range p.Addrs {
			at = max(at, millis(a.At))
		}
		return at
	}
	slices.SortStableFunc(out, func(a, b *Peer) int {
		return cmp.Or(cmp.Compare(newest(b), newest(a)), a.ID.Compare(b.ID))
	})
	return out[:MaxPeers]
}

func encodePeer(p *Peer) (peer, error) {
	if err := p.Check(); err != nil {
		return peer{}, fmt.Errorf("encode peer %s: %w", p.ID.Short(), err)
	}
	if err := checkTags(p.Tags); err != nil {
		return peer{}, fmt.Errorf("%w: peer %s: %w", ErrLimit, p.ID.Short(), err)
	}
	q := peer{
		ID: p.ID[:], Name: p.Name, Virtual4: p.Virtual4.AsSlice(), Virtual6: p.Virtual6.AsSlice(),
		Ed25519: p.Ed25519, X25519: p.X25519.Bytes(), Tags: p.Tags,
	}
	addrs := slices.Clone(p.Addrs)
	slices.SortStableFunc(addrs, func(a, b Addr) int { return cmp.Compare(millis(b.At), millis(a.At)) })
	for _, a := range addrs {
		w := addr{IP: a.Addr.Addr().AsSlice(), Port: a.Addr.Port(), Kind: a.Kind, Uplink: a.Uplink, At: millis(a.At)}
		if _, ok := w.read(); ok && len(q.Addrs) < MaxAddrs { // what could not be read is of no use
			q.Addrs = append(q.Addrs, w)
		}
	}
	return q, nil
}

func checkTags(tags []string) error {
	if len(tags) > maxTags {
		return fmt.Errorf("%d tags, at most %d", len(tags), maxTags)
	}
	for _, t := range tags {
		if len(t) > maxTag {
			return fmt.Errorf("a tag has %d bytes, at most %d", len(t), maxTag)
		}
	}
	return nil
}

func (d *denial) valid() bool {
	n := 0
	if len(d.ID) > 0 {
		n++
	}
	if len(d.Ed25519) > 0 {
		n++
	}
	if len(d.Serial) > 0 {
		n++
	}
	return n == 1 && (d.ID == nil || len(d.ID) == 32) && (d.Ed25519 == nil || len(d.Ed25519) == 32) && len(d.Serial) <= maxSerial
}

// read returns what a says, if it can be an end of a path.
func (a *addr) read() (Addr, bool) {
	ip, ok := netip.AddrFromSlice(a.IP)
	if !ok || ip.Is4In6() || ip.IsUnspecified() || ip.IsMulticast() || a.Port == 0 || len(a.Kind) > maxName || len(a.Uplink) > maxName {
		return Addr{}, false
	}
	return Addr{Addr: netip.AddrPortFrom(ip, a.Port), Kind: a.Kind, Uplink: a.Uplink, At: moment(a.At)}, true
}

// millis and moment turn a time into a number and back; the zero time is 0.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
