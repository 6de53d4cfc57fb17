// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/fxamacker/cbor/v2"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/registry"
)

// strict knows every key of this version; lenient passes over those of a newer
// minor one.
var strict, lenient = decMode(cbor.ExtraDecErrorUnknownField), decMode(cbor.ExtraDecErrorNone)

func decMode(extra cbor.ExtraDecErrorCond) cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   8,
		MaxArrayElements:  MaxDenials,
		MaxMapPairs:       64,
		ExtraReturnErrors: extra,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}

// Decode reads what Encode wrote for the node self of a mesh. Its errors are
// ErrDamaged, ErrVersion or ErrForeign. Peers whose keys do not hash to their
// PeerID are left out, since nothing vouches for them.
func Decode(b []byte, meshID string, self identity.PeerID) (*Snapshot, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrDamaged, len(b), MaxSize)
	}
	var head struct {
		Major uint64 `cbor:"1,keyasint"`
		Minor uint64 `cbor:"2,keyasint"`
	}
	if err := lenient.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch {
	case head.Major == 0:
		return nil, fmt.Errorf("%w: no version", ErrDamaged)
	case head.Major != Major:
		return nil, fmt.Errorf("%w: it has format %d.%d, this program reads %d.x", ErrVersion, head.Major, head.Minor, Major)
	}
	mode := strict
	if head.Minor > Minor {
		mode = lenient
	}
	var e envelope
	if err := mode.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if string(checksum(e.Major, e.Minor, e.Body)) != string(e.Sum) {
		return nil, fmt.Errorf("%w: checksum does not match", ErrDamaged)
	}
	return decodeBody(e.Body, mode, meshID, self)
}

func decodeBody(b []byte, mode cbor.DecMode, meshID string, self identity.PeerID) (*Snapshot, error) {
	var in body
	if err := mode.Unmarshal(b, &in); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch {
	case len(in.Self) != len(self) || in.MeshID == "" || len(in.MeshID) > maxName:
		return nil, fmt.Errorf("%w: it does not say whose it is", ErrDamaged)
	case in.MeshID != meshID:
		return nil, fmt.Errorf("%w: of the mesh %q, this one is %q", ErrForeign, in.MeshID, meshID)
	case identity.PeerID(in.Self) != self:
		return nil, fmt.Errorf("%w: peer %s, this one is %s", ErrForeign, identity.PeerID(in.Self).Short(), self.Short())
	case len(in.Peers) > MaxPeers, len(in.Policy) > MaxPolicy, len(in.Denials) > MaxDenials,
		len(in.Resume) > MaxResume, len(in.Spent) > MaxUplinks, len(in.Rates) > MaxRates:
		return nil, fmt.Errorf("%w: more than there can be", ErrDamaged)
	}
	s := &Snapshot{
		MeshID: in.MeshID, Self: self, Written: moment(in.Written),
		PolicyVersion: in.Version, Policy: in.Policy, Resume: in.Resume, Port: in.Port,
		Peers: make([]Peer, 0, len(in.Peers)),
	}
	last := identity.PeerID{}
	for i := range in.Peers {
		p, err := in.Peers[i].read()
		if err != nil || p.ID == self {
			s.Dropped++
			continue
		}
		if p.ID.Compare(last) <= 0 { // the order also shows that none is there twice
			return nil, fmt.Errorf("%w: peers are out of order", ErrDamaged)
		}
		last = p.ID
		s.Peers = append(s.Peers, *p)
	}
	for i := range in.Denials {
		d := &in.Denials[i]
		if !d.valid() {
			return nil, fmt.Errorf("%w: denial %d", ErrDamaged, i)
		}
		out := Denial{Ed25519: d.Ed25519, Until: moment(d.Until)}
		if len(d.Serial) > 0 {
			out.Serial = d.Serial
		}
		if d.ID != nil {
			out.ID = identity.PeerID(d.ID)
		}
		s.Denials = append(s.Denials, out)
	}
	for _, u := range in.Spent {
		if len(u.Uplink) > maxName {
			return nil, fmt.Errorf("%w: name of an uplink", ErrDamaged)
		}
		s.Spent = append(s.Spent, Spent(u))
	}
	for i := range in.Rates {
		if r, ok := in.Rates[i].read(); ok {
			s.Rates = append(s.Rates, r)
		}
	}
	return s, nil
}

// read returns the peer if it is consistent.
func (p *peer) read() (*Peer, error) {
	if len(p.ID) != len(identity.PeerID{}) || len(p.Virtual4) != 4 || len(p.Virtual6) != 0 && len(p.Virtual6) != 16 {
		return nil, errors.New("lengths")
	}
	if err := checkTags(p.Tags); err != nil {
		return nil, err
	}
	x, err := fips.NewX25519PublicKey(p.X25519)
	if err != nil {
		return nil, err
	}
	q := &Peer{Peer: registry.Peer{
		ID: identity.PeerID(p.ID), Name: p.Name, Ed25519: p.Ed25519, X25519: x, Tags: p.Tags,
	}}
	q.Virtual4, _ = netip.AddrFromSlice(p.Virtual4)
	if len(p.Virtual6) > 0 {
		q.Virtual6, _ = netip.AddrFromSlice(p.Virtual6)
	}
	if err := q.Check(); err != nil {
		return nil, err
	}
	if len(p.Addrs) > MaxAddrs {
		p.Addrs = p.Addrs[:MaxAddrs]
	}
	for i := range p.Addrs {
		if a, ok := p.Addrs[i].read(); ok {
			q.Addrs = append(q.Addrs, a)
		}
	}
	return q, nil
}
