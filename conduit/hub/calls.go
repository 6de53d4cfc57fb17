// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

const (
	// maxInterests is how many resolved peers the hub follows for a node; the one
	// that was resolved longest ago gives way.
	maxInterests = 1024
	// maxPaths and maxDenied bound a report.
	maxPaths  = 256
	maxDenied = 64
)

var _ conduit.PeerResolver = (*Connector)(nil)

// call runs f on the connection there is, within the time for one call. Without a
// connection it returns an error that Is ErrDown.
func (c *Connector) call(ctx context.Context, f func(context.Context, *session) error) error {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s == nil {
		return ErrDown
	}
	ctx, cancel := context.WithTimeout(ctx, c.timing.unary)
	defer cancel()
	return f(ctx, s)
}

// ResolvePeer implements conduit.PeerResolver. The hub tells of the peer's changes
// from then on, also after a reconnection.
func (c *Connector) ResolvePeer(ctx context.Context, q conduit.PeerQuery) (conduit.ResolvedPeer, error) {
	req := &dispatchv1.ResolvePeerRequest{}
	switch {
	case !q.ID.IsZero():
		req.By = &dispatchv1.ResolvePeerRequest_NodeId{NodeId: q.ID.String()}
	case q.Name != "":
		req.By = &dispatchv1.ResolvePeerRequest_Name{Name: q.Name}
	default:
		req.By = &dispatchv1.ResolvePeerRequest_VirtualIp{VirtualIp: q.Addr.String()}
	}
	var out conduit.ResolvedPeer
	err := c.call(ctx, func(ctx context.Context, s *session) error {
		res, err := s.topology.ResolvePeer(ctx, req)
		if connect.CodeOf(err) == connect.CodeNotFound {
			return fmt.Errorf("%w: the hub does not know it either", conduit.ErrUnknownPeer)
		}
		if connect.CodeOf(err) == connect.CodeResourceExhausted && c.trim() {
			c.Redial() // with fewer interests; the next question is answered
		}
		if err != nil {
			return fmt.Errorf("resolve peer: %w", plain(err))
		}
		p, err := peerFrom(res.GetPeer())
		if err != nil {
			return err
		}
		// The answer must be one to the question: it goes into the routes.
		if p.ID == s.self || !q.ID.IsZero() && p.ID != q.ID || q.Name != "" && p.Name != q.Name ||
			q.Addr.IsValid() && p.Virtual4 != q.Addr && p.Virtual6 != q.Addr {
			return fmt.Errorf("%w: the hub answered with another", conduit.ErrUnknownPeer)
		}
		out = conduit.ResolvedPeer{Peer: p, Online: res.GetOnline(), Instance: res.GetInstance()}
		c.interested(p.ID)
		return nil
	})
	return out, err
}

// interested makes id the newest of the interests.
func (c *Connector) interested(id identity.PeerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interests = append(slices.DeleteFunc(c.interests, func(o identity.PeerID) bool { return o == id }), id)
	if n := len(c.interests) - maxInterests; n > 0 {
		c.interests = slices.Delete(c.interests, 0, n)
	}
}

// trim gives up the oldest quarter of the interests, where there are as many as the
// hub takes on one connection, and tells whether it did.
func (c *Connector) trim() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.interests) < maxInterests {
		return false
	}
	c.interests = slices.Delete(c.interests, 0, maxInterests/4)
	return true
}

// forget ends the interest in nodes that left.
func (c *Connector) forget(gone func(identity.PeerID) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interests = slices.DeleteFunc(c.interests, gone)
}

func (c *Connector) interestNames() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]string, len(c.interests))
	for i, id := range c.interests {
		out[i] = id.String()
	}
	return out
}

// MeshKey fetches the mesh's pre-shared key in force and its epoch. psk is nil
// where the operator distributes his own.
func (c *Connector) MeshKey(ctx context.Context) (psk []byte, epoch uint32, err error) {
	err = c.call(ctx, func(ctx context.Context, s *session) error {
		res, err := s.provisioning.GetMeshKey(ctx, &dispatchv1.GetMeshKeyRequest{})
		if err != nil {
			return fmt.Errorf("fetch mesh key: %w", plain(err))
		}
		psk, epoch = res.GetPsk(), res.GetPskEpoch()
		if len(psk) == 0 {
			psk = nil
		} else if len(psk) != 32 {
			return fmt.Errorf("fetch mesh key: it has %d bytes", len(psk))
		}
		return nil
	})
	return psk, epoch, err
}

// Report is what a node reports of itself.
type Report struct {
	// Status is the node's. Required.
	Status *conduit.Status
	// Started is when the counters began.
	Started time.Time
	// Version is the program's.
	Version string
	// PSKEpoch is that of the mesh key in use.
	PSKEpoch uint32
	// ROSDiscoveryPort is 0 where there is no discovery server.
	ROSDiscoveryPort   uint16
	ROSDiscoveryStatus string
}

// Report sends r to the hub and returns the interval that the hub asks for; 0
// means as before.
func (c *Connector) Report(ctx context.Context, r Report) (interval time.Duration, err error) {
	if r.Status == nil {
		return 0, errors.New("report: Status is required")
	}
	m := r.message()
	c.mu.Lock()
	m.PolicyGeneration = c.generation
	c.mu.Unlock()
	err = c.call(ctx, func(ctx context.Context, s *session) error {
		res, err := s.metrics.ReportMetrics(ctx, m)
		if err != nil {
			return fmt.Errorf("report metrics: %w", plain(err))
		}
		interval = time.Duration(res.GetIntervalMs()) * time.Millisecond
		return nil
	})
	return interval, err
}

func (r *Report) message() *dispatchv1.ReportMetricsRequest {
	st := r.Status
	m := &dispatchv1.ReportMetricsRequest{
		Started: r.Started.UnixMicro(), Version: r.Version, PskEpoch: r.PSKEpoch,
		RosDiscoveryPort: uint32(r.ROSDiscoveryPort), RosDiscoveryStatus: r.ROSDiscoveryStatus,
		PolicyVersion: st.Policy.Version, Dropped: st.Counters.TxDropped + st.Counters.RxDropped,
	}
	for _, l := range []struct {
		name string
		conduit.LaneStatus
	}{{"critical", st.Lanes.Critical}, {"telemetry", st.Lanes.Telemetry}, {"bulk", st.Lanes.Bulk}} {
		m.Lanes = append(m.Lanes, &dispatchv1.LaneCounters{
			Lane: l.name, TxPackets: l.TxPackets, TxBytes: l.TxBytes, RxPackets: l.RxPackets, RxBytes: l.RxBytes, Dropped: l.Dropped,
		})
	}
	for i := range st.Peers {
		if paths := pathMetrics(&st.Peers[i]); len(paths) > 0 {
			m.Sessions++
			m.Paths = append(m.Paths, paths...)
		}
	}
	slices.SortStableFunc(m.Paths, func(a, b *dispatchv1.PathMetrics) int {
		return cmp.Compare(b.GetTxBytes()+b.GetRxBytes(), a.GetTxBytes()+a.GetRxBytes())
	})
	m.Paths = m.Paths[:min(len(m.Paths), maxPaths)]
	m.Denied = busiest(st.Policy.Denied)
	return m
}

// Relaying tells whether the hub carries packets for this node now.
func (c *Connector) Relaying() bool { return c.relay.Load() != nil }

// pathMetrics is what a report says of a peer's paths: those that carry, or would.
func pathMetrics(p *conduit.PeerStatus) (out []*dispatchv1.PathMetrics) {
	for i := range p.Paths {
		d := &p.Paths[i]
		if !knownKind(d.Kind) || d.State != "valid" && d.State != "suspect" {
			continue
		}
		out = append(out, &dispatchv1.PathMetrics{
			Peer: p.ID, Kind: d.Kind, RttUs: micros(d.RTT), LossPpm: uint32(min(max(d.Loss, 0), 1) * 1e6), TxBytes: d.TxBytes, RxBytes: d.RxBytes,
		})
	}
	if len(p.Paths) == 0 && knownKind(p.Path.Type) {
		out = append(out, &dispatchv1.PathMetrics{Peer: p.ID, Kind: p.Path.Type, RttUs: micros(p.Path.RTT), TxBytes: p.TxBytes, RxBytes: p.RxBytes})
	}
	return out
}

func micros(ms float64) uint64 { return uint64(max(ms, 0) * 1000) }

func knownKind(kind string) bool {
	return slices.Contains([]string{"direct", "turn", "peer-relay", "hub-relay"}, kind)
}

// busiest keeps the rules that denied most.
func busiest(denied map[string]uint64) map[string]uint64 {
	if len(denied) <= maxDenied {
		return denied
	}
	rules := make([]string, 0, len(denied))
	for r := range denied {
		rules = append(rules, r)
	}
	slices.SortFunc(rules, func(a, b string) int {
		return cmp.Or(cmp.Compare(denied[b], denied[a]), cmp.Compare(a, b))
	})
	out := make(map[string]uint64, maxDenied)
	for _, r := range rules[:maxDenied] {
		out[r] = denied[r]
	}
	return out
}

// retryAfter is the delay that the hub asks for with an error; 0 means none.
func retryAfter(err error) time.Duration {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return 0
	}
	for _, d := range ce.Details() {
		if v, derr := d.Value(); derr == nil {
			if info, ok := v.(*dispatchv1.ErrorInfo); ok {
				return time.Duration(info.GetRetryAfterMs()) * time.Millisecond
			}
		}
	}
	return 0
}
