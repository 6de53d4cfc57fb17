// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"bytes"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

func marshal(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func topologyEvents() map[event]*dispatchv1.WatchTopologyResponse {
	type m = dispatchv1.WatchTopologyResponse
	return map[event]*m{
		{kind: evChunk, peers: 2, denials: 1}: {Event: &dispatchv1.WatchTopologyResponse_SnapshotChunk{SnapshotChunk: &dispatchv1.SnapshotChunk{
			Peers: []*dispatchv1.Peer{{Name: "a"}, {}}, Denials: []*dispatchv1.Denial{{Until: 3}},
		}}},
		{kind: evSynced, epoch: 1 << 62, rv: 300, policy: 2, snapshot: true, lazy: true}: {Event: &dispatchv1.WatchTopologyResponse_Synced{Synced: &dispatchv1.Synced{
			Epoch: 1 << 62, Rv: 300, PolicyVersion: 2, Snapshot: true, Lazy: true, PskEpoch: 9,
		}}},
		{kind: evDelta, rv: 301, policy: 3, upserts: 1, deletes: 2, denials: 1}: {Event: &dispatchv1.WatchTopologyResponse_Delta{Delta: &dispatchv1.Delta{
			Rv: 301, PolicyVersion: 3, Upserts: []*dispatchv1.Peer{{}}, Deletes: []string{"a", "b"}, Denials: []*dispatchv1.Denial{{}}, PskEpoch: 1,
		}}},
		{kind: evPresence}: {Event: &dispatchv1.WatchTopologyResponse_Presence{Presence: &dispatchv1.Presence{NodeId: "x", Online: true, Instance: 5}}},
		{kind: evBookmark, rv: 17}: {Event: &dispatchv1.WatchTopologyResponse_Bookmark{Bookmark: &dispatchv1.Bookmark{
			Rv: 17, ServerTime: 1, Checkpoint: []byte{1},
		}}},
		{kind: evResync}: {Event: &dispatchv1.WatchTopologyResponse_Resync{Resync: &dispatchv1.Resync{Reason: "r"}}},
		{}:               {},
	}
}

func TestParseEvent(t *testing.T) {
	for want, m := range topologyEvents() {
		b := marshal(t, m)
		if got, err := parseEvent(b); err != nil || got != want {
			t.Errorf("parse %v = %+v, %v; want %+v", m, got, err, want)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = parseEvent(b) }); n != 0 {
			t.Errorf("parse %v allocates %v times", m, n)
		}
	}
	// Field 99, as a newer hub might send.
	if got, err := parseEvent([]byte{0x9a, 0x06, 0x01, 0x00}); err != nil || got != (event{}) {
		t.Errorf("unknown event: %+v, %v", got, err)
	}
	if _, err := parseEvent([]byte{0x1a, 0x05, 0x08}); !errors.Is(err, errProtocol) {
		t.Errorf("cut message: %v", err)
	}
}

func TestParseSignal(t *testing.T) {
	tests := []struct {
		m    *dispatchv1.ExchangeCandidatesResponse
		want signalEvent
	}{
		{&dispatchv1.ExchangeCandidatesResponse{Event: &dispatchv1.ExchangeCandidatesResponse_Ready{Ready: &dispatchv1.SignalReady{}}}, signalEvent{kind: sigReady}},
		{&dispatchv1.ExchangeCandidatesResponse{Event: &dispatchv1.ExchangeCandidatesResponse_Delivery{Delivery: &dispatchv1.SignalDelivery{
			From: "f", Body: []byte("body"),
		}}}, signalEvent{kind: sigDelivery, body: []byte("body")}},
		{&dispatchv1.ExchangeCandidatesResponse{Event: &dispatchv1.ExchangeCandidatesResponse_Undeliverable{Undeliverable: &dispatchv1.SignalUndeliverable{
			To: "t", Seq: 12, Reason: dispatchv1.UndeliverableReason_UNDELIVERABLE_REASON_BUSY,
		}}}, signalEvent{kind: sigUndeliverable, seq: 12, reason: 4}},
	}
	for _, tt := range tests {
		got, err := parseSignal(marshal(t, tt.m))
		if err != nil || got.kind != tt.want.kind || !bytes.Equal(got.body, tt.want.body) || got.seq != tt.want.seq || got.reason != tt.want.reason {
			t.Errorf("parse %v = %+v, %v; want %+v", tt.m, got, err, tt.want)
		}
	}
}

// FuzzParseEvent compares with the generated code, which is slower and knows all.
func FuzzParseEvent(f *testing.F) {
	for _, m := range topologyEvents() {
		f.Add(marshal(f, m))
	}
	f.Add([]byte{0x1a, 0x05, 0x08})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseEvent(b)
		_, _ = parseSignal(b)
		var m dispatchv1.WatchTopologyResponse
		if proto.Unmarshal(b, &m) != nil || err != nil {
			return
		}
		// A message that repeats the oneof merges its parts; the hub sends none.
		if d := m.GetDelta(); d != nil && got.kind == evDelta && len(b) == proto.Size(&m) && !bytes.Contains(b[1:], b[:1]) && got.rv != d.GetRv() {
			t.Errorf("rv = %d, want %d", got.rv, d.GetRv())
		}
	})
}

// FuzzCutEnvelope feeds a stream in pieces: it must fall apart in the same way.
func FuzzCutEnvelope(f *testing.F) {
	f.Add(append(envelope([]byte("one")), envelope(nil)...), uint8(3))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff}, uint8(1))
	f.Add([]byte{2, 0, 0, 0, 2, '{', '}'}, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		split := func(size int) (out [][]byte, err error) {
			var ended error
			c := &conn{streams: make(map[uint32]*stream)}
			s := &stream{c: c, ended: func(err error) { ended = err }, message: func(m []byte) error {
				out = append(out, bytes.Clone(m))
				return nil
			}}
			c.streams[0] = s
			for rest := b; len(rest) > 0; {
				n := min(size, len(rest))
				if err := s.take(rest[:n]); err != nil {
					return out, err
				}
				if c.streams[0] == nil {
					return out, ended
				}
				rest = rest[n:]
			}
			return out, nil
		}
		whole, err1 := split(len(b) + 1)
		pieces, err2 := split(int(piece) + 1)
		if (err1 == nil) != (err2 == nil) || len(whole) != len(pieces) {
			t.Fatalf("whole: %d messages, %v; in pieces: %d, %v", len(whole), err1, len(pieces), err2)
		}
		for i := range whole {
			if !bytes.Equal(whole[i], pieces[i]) {
				t.Errorf("message %d = %x, want %x", i, pieces[i], whole[i])
			}
		}
	})
}
