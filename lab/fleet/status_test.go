// SPDX-License-Identifier: Apache-2.0

package fleet

import "testing"

func TestParseStatus(t *testing.T) {
	s, err := ParseStatus([]byte(`{
		"node": {"id": "abc", "name": "robot1", "virtual_ip": "10.66.0.1", "virtual_ip6": "fd00::1", "more": 1},
		"hub": {"connected": true},
		"peers": [{"id": "def", "name": "robot2", "virtual_ip": "10.66.0.2",
			"path": {"type": "direct", "remote": "198.18.3.2:4711", "rtt_ms": 1.5}, "cipher": "chacha20-poly1305"}],
		"counters": {"tx_packets": 3, "tx_bytes": 300, "tx_dropped": 1, "tx_dropped_by_reason": {"no_path": 1}},
		"lanes": {"critical": {}, "telemetry": {}, "bulk": {}}}`))
	if err != nil {
		t.Fatal(err)
	}
	p, ok := s.Peer("robot2")
	if !ok || p.Path.Type != PathDirect || p.Path.RTTms != 1.5 || !s.Hub.Connected || s.Counters.TxBytes != 300 {
		t.Errorf("status = %+v", s)
	}
	if _, ok := s.Peer("robot3"); ok {
		t.Error("found a peer that is not there")
	}
	if _, err := ParseStatus([]byte("not running")); err == nil {
		t.Error("parsed a sentence")
	}
}
