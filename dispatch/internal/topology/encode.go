// SPDX-License-Identifier: Apache-2.0

package topology

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// maxChunk is how many peers one snapshot chunk holds: some 25 KB.
const maxChunk = 128

// Message is what the stream sends.
type Message = dispatchv1.WatchTopologyResponse

// Peer returns n as others see it.
func Peer(n *store.Node) *dispatchv1.Peer {
	return &dispatchv1.Peer{
		NodeId: n.ID.String(), Name: n.Name, VirtualIp: n.Virtual4.String(), VirtualIp6: n.Virtual6.String(),
		Ed25519PublicKey: n.Ed25519, X25519PublicKey: n.X25519, Tags: n.Tags,
	}
}

// EncodeChange is the store's Encode.
func EncodeChange(rv uint64, c store.Change) ([]byte, error) {
	d := &dispatchv1.Delta{Rv: rv, PolicyVersion: c.Policy}
	if c.Upsert != nil {
		d.Upserts = []*dispatchv1.Peer{Peer(c.Upsert)}
	}
	if !c.Delete.IsZero() {
		d.Deletes = []string{c.Delete.String()}
	}
	return proto.Marshal(&Message{Event: &dispatchv1.WatchTopologyResponse_Delta{Delta: d}})
}

// EncodeSnapshot cuts nodes into chunks.
func EncodeSnapshot(nodes []store.Node) ([][]byte, error) {
	var out [][]byte
	for len(nodes) > 0 {
		n := min(len(nodes), maxChunk)
		c := &dispatchv1.SnapshotChunk{}
		for i := range nodes[:n] {
			c.Peers = append(c.Peers, Peer(&nodes[i]))
		}
		b, err := proto.Marshal(&Message{Event: &dispatchv1.WatchTopologyResponse_SnapshotChunk{SnapshotChunk: c}})
		if err != nil {
			return nil, fmt.Errorf("encode snapshot: %w", err)
		}
		out, nodes = append(out, b), nodes[n:]
	}
	return out, nil
}

// EncodePresence returns the event of a node that came or went.
func EncodePresence(id identity.PeerID, online bool, instance uint64) Event {
	raw, err := proto.Marshal(&Message{Event: &dispatchv1.WatchTopologyResponse_Presence{Presence: &dispatchv1.Presence{
		NodeId: id.String(), Online: online, Instance: instance,
	}}})
	if err != nil {
		panic(err) // three scalars always encode
	}
	return Event{Node: id, Raw: raw}
}

// Wrap returns a message that marshals to exactly raw in the binary codec. Sending
// it to thousands of watchers encodes nothing again.
func Wrap(raw []byte) *Message {
	m := &Message{}
	m.ProtoReflect().SetUnknown(raw)
	return m
}
