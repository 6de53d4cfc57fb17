// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// onNode picks a node that nobody has touched in this round.
func (l *load) onNode(rng *rand.Rand, kind string, f func(*nodeRow, *op) (outcome, error)) bool {
	l.mu.Lock()
	if len(l.pool) == 0 || l.unserved[kind] {
		l.mu.Unlock()
		return false
	}
	key := l.pool[rng.IntN(len(l.pool))]
	row := l.base.nodes[key]
	sub := "node:" + key
	ok := l.take(sub)
	l.mu.Unlock()
	if !ok {
		return false
	}
	o := &op{kind: kind, subject: sub, entry: func(_, _ *state) string { return kind + " " + row.id }}
	out, err := f(row, o)
	return l.record(o, out, err).out != unsent
}

func (l *load) updateNode(row *nodeRow, o *op) (outcome, error) {
	n := l.n.Add(1)
	req := &dispatchv1.UpdateNodeRequest{Node: row.id, Version: uint64(row.version)}
	want := *row
	to := sites[(slices.Index(sites, row.site)+1)%len(sites)]
	l.mu.Lock()
	room := l.served[to] < maxServed
	l.mu.Unlock()
	switch {
	case n%3 == 0:
		req.Name = fmt.Sprintf("renamed-%d", n)
		want.name = req.Name
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: []string{"name"}}
	case n%3 == 1 || !room:
		req.Tags = []string{"chaos", fmt.Sprintf("u-%06d", n)}
		want.tags = "chaos," + req.Tags[1]
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: []string{"tags"}}
	default:
		req.Site = to
		want.site = req.Site
		req.UpdateMask = &fieldmaskpb.FieldMask{Paths: []string{"site"}}
	}
	o.check = func(_ *op, before, after *state) (bool, string) {
		have := after.byID[row.id]
		switch {
		case have == nil:
			return false, "node " + row.id + " is gone after an update"
		case have.text == before.byID[row.id].text:
			return false, ""
		case have.name != want.name || have.tags != want.tags || have.site != want.site || have.state != want.state || have.ip != want.ip:
			return true, fmt.Sprintf("node %s was updated by half: %s, want %+v", row.id, have.text, want)
		case len(after.changed[row.id]) == 0:
			return true, "node " + row.id + " was updated, but no watcher will hear of it"
		}
		return true, ""
	}
	return l.call(func(ctx context.Context) error {
		_, err := l.c.fleet.UpdateNode(ctx, req)
		return err
	})
}

func (l *load) revokeNode(row *nodeRow, o *op) (outcome, error) {
	o.check = func(_ *op, before, after *state) (bool, string) {
		have, id := after.byID[row.id], rawID(row.id)
		denied := after.denials[denialKey("node", id)] != ""
		switch {
		case have == nil:
			return false, "node " + row.id + " is gone after a revocation"
		case have.state != "revoked" && (denied || have.text != before.byID[row.id].text || have.revoked != before.byID[row.id].revoked):
			return true, "node " + row.id + " is revoked by half"
		case have.state != "revoked":
			return false, ""
		case !denied:
			return true, "node " + row.id + " is revoked, but not denied"
		case len(after.changed[row.id])+len(after.changed["denial"]) == 0:
			return true, "node " + row.id + " is revoked, but no watcher will hear of it"
		}
		return true, ""
	}
	return l.call(func(ctx context.Context) error {
		_, err := l.c.fleet.RevokeNode(ctx, &dispatchv1.RevokeNodeRequest{
			Subject: &dispatchv1.RevokeNodeRequest_Node{Node: row.id}, Reason: "chaos",
		})
		return err
	})
}

func (l *load) deleteNode(row *nodeRow, o *op) (outcome, error) {
	o.check = func(_ *op, before, after *state) (bool, string) {
		have := after.byID[row.id]
		switch {
		case have != nil && have.text != before.byID[row.id].text:
			return true, "node " + row.id + " is deleted by half"
		case have != nil:
			return false, ""
		case !after.quarantine[row.index]:
			return true, "node " + row.id + " is deleted, but its address is not in quarantine"
		}
		return true, ""
	}
	return l.call(func(ctx context.Context) error {
		_, err := l.c.fleet.DeleteNode(ctx, &dispatchv1.DeleteNodeRequest{Node: row.id})
		return err
	})
}

func rawID(id string) []byte {
	b, _ := idEncoding.DecodeString(id)
	return b
}

func checkJoin(o *op, before, after *state) (bool, string) {
	m := o.join
	n := after.nodes[m.key()]
	if n == nil {
		return false, ""
	}
	old := before.nodes[m.key()]
	switch {
	case n.token != m.tok.id || n.tags != m.tok.tag || len(n.certs) == 0:
		return true, fmt.Sprintf("node %s is there by half: %s, certificates %v", n.id, n.text, n.certs)
	case old == nil && len(after.changed[n.id]) == 0:
		return true, "node " + n.id + " joined, but no watcher will hear of it"
	case old != nil && (old.name != n.name || old.ip != n.ip || old.id != n.id):
		return true, fmt.Sprintf("node %s joined again and became another: %s, was %s", n.id, n.text, old.text)
	case o.out != acked:
		return true, ""
	case n.id != m.res.GetNodeId() || n.name != m.res.GetName() || n.ip != m.res.GetVirtualIp():
		return true, fmt.Sprintf("node was told (%s, %s, %s), database has %s", m.res.GetNodeId(), m.res.GetName(), m.res.GetVirtualIp(), n.text)
	case !slices.Contains(n.certs, m.serial()):
		return true, fmt.Sprintf("certificate %s of node %s is not on record", m.serial(), n.id)
	}
	return true, ""
}
