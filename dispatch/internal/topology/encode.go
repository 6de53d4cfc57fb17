// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// maxChunk is how many peers one snapshot chunk holds: some 25 KB.
	maxChunk = 128
	// maxDenials is how many denials one chunk holds: some 70 KB.
	maxDenials = 1024
)

// Message is what the stream sends.
type Message = dispatchv1.WatchTopologyResponse

// Peer returns n as others see it.
func Peer(n *store.Node) *dispatchv1.Peer {
	return &dispatchv1.Peer{
		NodeId: n.ID.String(), Name: n.Name, VirtualIp: n.Virtual4.String(), VirtualIp6: n.Virtual6.String(),
		Ed25519PublicKey: n.Ed25519, X25519PublicKey: n.X25519, Tags: n.Tags, Site: n.Site,
	}
}

// denial returns d as others see it.
func denial(d store.Denial) *dispatchv1.Denial {
	out := &dispatchv1.Denial{}
	if !d.Until.IsZero() {
		out.Until = d.Until.Unix()
	}
	switch d.Kind {
	case store.DenyNode:
		if len(d.Value) == len(identity.PeerID{}) {
			out.Subject = &dispatchv1.Denial_NodeId{NodeId: identity.PeerID(d.Value).String()}
		}
	case store.DenyKey:
		out.Subject = &dispatchv1.Denial_Ed25519PublicKey{Ed25519PublicKey: d.Value}
	case store.DenySerial:
		out.Subject = &dispatchv1.Denial_Serial{Serial: d.Value}
	}
	return out
}

// EncodeChange is the store's Encode.
func EncodeChange(rv uint64, c store.Change) ([]byte, error) {
	d := &dispatchv1.Delta{Rv: rv, PolicyVersion: c.Policy, PskEpoch: c.PSKEpoch}
	if c.Upsert != nil {
		d.Upserts = []*dispatchv1.Peer{Peer(c.Upsert)}
	}
	if !c.Delete.IsZero() {
		d.Deletes = []string{c.Delete.String()}
	}
	for _, x := range c.Denials {
		d.Denials = append(d.Denials, denial(x))
	}
	return proto.Marshal(&Message{Event: &dispatchv1.WatchTopologyResponse_Delta{Delta: d}})
}

// EncodeSnapshot cuts a snapshot into chunks. The denials go first: no peer is
// known before those that are shut out are.
func EncodeSnapshot(snap *store.Snapshot) ([][]byte, error) {
	var out [][]byte
	add := func(c *dispatchv1.SnapshotChunk) error {
		b, err := proto.Marshal(&Message{Event: &dispatchv1.WatchTopologyResponse_SnapshotChunk{SnapshotChunk: c}})
		if err != nil {
			return fmt.Errorf("encode snapshot: %w", err)
		}
		out = append(out, b)
		return nil
	}
	for ds := range slices.Chunk(snap.Denials, maxDenials) {
		c := &dispatchv1.SnapshotChunk{}
		for _, d := range ds {
			c.Denials = append(c.Denials, denial(d))
		}
		if err := add(c); err != nil {
			return nil, err
		}
	}
	for nodes := range slices.Chunk(snap.Nodes, maxChunk) {
		c := &dispatchv1.SnapshotChunk{}
		for i := range nodes {
			c.Peers = append(c.Peers, Peer(&nodes[i]))
		}
		if err := add(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// EncodePresence returns the event of a node of a site that came or went.
func EncodePresence(id identity.PeerID, site string, online bool, instance uint64) Event {
	raw, err := proto.Marshal(&Message{Event: &dispatchv1.WatchTopologyResponse_Presence{Presence: &dispatchv1.Presence{
		NodeId: id.String(), Online: online, Instance: instance,
	}}})
	if err != nil {
		panic(err) // three scalars always encode
	}
	return Event{Scope: site, Node: id, Raw: raw}
}

// Wrap returns a message that marshals to exactly raw in the binary codec. Sending
// it to thousands of watchers encodes nothing again.
func Wrap(raw []byte) *Message {
	m := &Message{}
	m.ProtoReflect().SetUnknown(raw)
	return m
}
