// SPDX-License-Identifier: Apache-2.0

package flood

import (
	"context"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	at, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	from, err := net.ListenUDP("udp4", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	seen := Header{Type: TypeData, Index: 7, Counter: 1 << 40}
	sent, err := Run(ctx, from, at.LocalAddr().(*net.UDPAddr).AddrPort(), 2000, HighCounter(seen))
	if err != nil || sent < 100 || sent > 420 {
		t.Fatalf("sent %d, %v, want about 400", sent, err)
	}
	buf := make([]byte, maxPacket)
	_ = at.SetReadDeadline(time.Now().Add(time.Second))
	n, _, err := at.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	if h, ok := ParseHeader(buf[:n]); !ok || h.Type != TypeData || h.Index != 7 || h.Counter < 1<<59 || h.Counter >= 1<<60 {
		t.Errorf("received %+v, %v, want a packet of session 7 with a high counter", h, ok)
	}
}

func TestMakers(t *testing.T) {
	b := make([]byte, maxPacket)
	for name, tt := range map[string]struct {
		make Maker
		typ  byte
	}{
		"unknown index": {UnknownIndex(), TypeData},
		"bad tag":       {BadTag(Header{Type: TypeData, Index: 9}), TypeData},
		"invite":        {Invite(), TypeHandshake},
	} {
		n := tt.make(b)
		if h, ok := ParseHeader(b[:n]); !ok || h.Type != tt.typ {
			t.Errorf("%s: %+v, %v, want type %d", name, h, ok, tt.typ)
		}
	}
	if _, ok := ParseHeader(make([]byte, 100)); ok {
		t.Error("zeros are a mesh packet")
	}
}
