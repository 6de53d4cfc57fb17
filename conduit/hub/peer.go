// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

var (
	errPeer   = errors.New("malformed peer")
	errDenial = errors.New("unusable denial")
)

// maxTags bounds the tags of a peer.
const maxTags = 64

// peerFrom reads a peer and checks that its id certifies its keys.
func peerFrom(p *dispatchv1.Peer) (conduit.Peer, error) {
	id, err := identity.ParsePeerID(p.GetNodeId())
	if err != nil {
		return conduit.Peer{}, fmt.Errorf("%w: %w", errPeer, err)
	}
	bad := func(why string) (conduit.Peer, error) {
		return conduit.Peer{}, fmt.Errorf("%w %s: %s", errPeer, id.Short(), why)
	}
	if !identity.ValidName(p.GetName()) {
		return bad("bad name")
	}
	if len(p.GetEd25519PublicKey()) != ed25519.PublicKeySize {
		return bad("bad ed25519 key")
	}
	x, err := fips.NewX25519PublicKey(p.GetX25519PublicKey())
	if err != nil {
		return bad("bad x25519 key")
	}
	ed := ed25519.PublicKey(p.GetEd25519PublicKey())
	if identity.NewPeerID(ed, x.Bytes()) != id {
		return bad("id does not match the keys")
	}
	v4, err := netip.ParseAddr(p.GetVirtualIp())
	if err != nil || !v4.Is4() {
		return bad("bad IPv4 address")
	}
	var v6 netip.Addr
	if s := p.GetVirtualIp6(); s != "" {
		if v6, err = netip.ParseAddr(s); err != nil || !v6.Is6() || v6.Is4In6() || v6.Zone() != "" {
			return bad("bad IPv6 address")
		}
	}
	if len(p.GetTags()) > maxTags {
		return bad("too many tags")
	}
	return conduit.Peer{
		ID: id, Name: p.GetName(), Virtual4: v4, Virtual6: v6,
		Ed25519: ed, X25519: x, Tags: p.GetTags(),
	}, nil
}

// denialFrom reads a denial.
func denialFrom(d *dispatchv1.Denial) (conduit.Denial, error) {
	var out conduit.Denial
	if u := d.GetUntil(); u != 0 {
		out.Until = time.Unix(u, 0)
	}
	switch s := d.GetSubject().(type) {
	case *dispatchv1.Denial_NodeId:
		id, err := identity.ParsePeerID(s.NodeId)
		if err != nil || id.IsZero() {
			return out, fmt.Errorf("%w: malformed node id", errDenial)
		}
		out.ID = id
	case *dispatchv1.Denial_Ed25519PublicKey:
		if len(s.Ed25519PublicKey) != ed25519.PublicKeySize {
			return out, fmt.Errorf("%w: malformed key", errDenial)
		}
		out.Ed25519 = s.Ed25519PublicKey
	case *dispatchv1.Denial_Serial:
		if len(s.Serial) == 0 || len(s.Serial) > 32 {
			return out, fmt.Errorf("%w: malformed serial number", errDenial)
		}
		out.Serial = s.Serial
	default:
		return out, fmt.Errorf("%w: unknown kind", errDenial)
	}
	return out, nil
}

// reasonWord is the reason as HubEvents.Undeliverable names it.
func reasonWord(r dispatchv1.UndeliverableReason) string {
	switch r {
	case dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_OFFLINE:
		return "offline"
	case dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_UNKNOWN:
		return "unknown"
	case dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_DENIED:
		return "denied"
	case dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_BUSY:
		return "busy"
	case dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_RATE:
		return "rate"
	case dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_UNSPECIFIED,
		dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_INVALID:
	}
	return "invalid"
}
