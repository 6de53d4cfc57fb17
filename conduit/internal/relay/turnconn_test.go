// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/fips140"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/transport"
)

// TestTurnHearsTheServerOnly sends what the server could send, from elsewhere.
func TestTurnHearsTheServerOnly(t *testing.T) {
	s := startTurn(t, nil)
	a := dialTurn(t, s, func(c *TurnConfig) { c.Local = netip.MustParseAddr("127.0.0.1") })
	got := receiver(t, a)
	stranger, err := transport.Listen(transport.Config{Network: "udp4", Addr: netip.MustParseAddr("127.0.0.1"), NoGRO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	forged := dataIndication(t, netip.MustParseAddrPort("192.0.2.1:5"), meshPacket(0, "forged!!"))
	for deadline := time.Now().Add(10 * time.Second); a.Counters().RxDropped == 0; {
		if _, err := stranger.Send(0, []transport.Message{{Buf: forged, Addr: a.LocalAddr()}}); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("it was not dropped")
		}
	}
	if len(got) > 0 || a.Counters().RxPackets > 0 {
		t.Errorf("got %q", <-got)
	}
	// The same from the server passes.
	if _, err := s.conn.WriteTo(forged, net.UDPAddrFromAddrPort(a.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	if g := next(t, "packet of the server", got); g != "192.0.2.1:5 forged!!" {
		t.Errorf("got %q", g)
	}
}

// TestTurnGate shows the gate what a server may and may not send.
func TestTurnGate(t *testing.T) { fips140.WithoutEnforcement(func() { testTurnGate(t) }) }

func testTurnGate(t *testing.T) {
	t.Helper()
	bind, err := transport.Listen(transport.Config{Network: "udp4", Addr: netip.MustParseAddr("127.0.0.1"), NoGRO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer bind.Close()
	c := newTurnConn(bind, netip.MustParseAddrPort("127.0.0.1:9"), "robot", "secret")
	request := func(method uint16) []byte {
		b := make([]byte, headerSize)
		binary.BigEndian.PutUint16(b, method)
		binary.BigEndian.PutUint32(b[4:], magicCookie)
		b[8] = byte(method)
		return b
	}
	answer := func(req []byte, class uint16, attrs ...byte) []byte {
		b := append(append([]byte(nil), req...), attrs...)
		binary.BigEndian.PutUint16(b, binary.BigEndian.Uint16(req)|class)
		binary.BigEndian.PutUint16(b[2:], uint16(len(attrs))) //nolint:gosec // a length
		return b
	}
	unauthorized := []byte{0, attrErrorCode, 0, 4, 0, 0, 4, 1, 0, attrRealm, 0, 4, 't', 'e', 's', 't'}
	mismatch := []byte{0, attrErrorCode, 0, 4, 0, 0, 4, 37}
	refresh, allocate := request(methodRefresh), request(methodAllocate)
	verdictOf := func(b []byte) verdict {
		v, _, _, _ := c.inspect(b)
		return v
	}
	if v := verdictOf(answer(refresh, classError, mismatch...)); v != drop {
		t.Errorf("an error that answers nothing: %v", v)
	}
	if _, err := c.WriteTo(allocate, nil); err != nil {
		t.Fatal(err)
	}
	if v := verdictOf(answer(allocate, classError, unauthorized...)); v != toPion || c.key == nil {
		t.Errorf("the question for credentials: %v, key %x", v, c.key)
	}
	if v := verdictOf(answer(allocate, classError, unauthorized...)); v != drop {
		t.Errorf("the same answer again: %v", v)
	}
	if _, err := c.WriteTo(allocate, nil); err != nil {
		t.Fatal(err)
	}
	if v := verdictOf(answer(allocate, classSuccess)); v != drop {
		t.Errorf("a success that is not signed: %v", v)
	}
	if _, err := c.WriteTo(refresh, nil); err != nil {
		t.Fatal(err)
	}
	if v := verdictOf(answer(refresh, classError, mismatch...)); v != fatal {
		t.Errorf("allocation mismatch: %v", v)
	}
	if v := verdictOf([]byte{0x40, 0, 0, 2, 0x80, 0, 0, 0}); v != drop {
		t.Errorf("data of an unknown channel: %v", v)
	}
	c.channels[0x4000] = netip.MustParseAddrPort("192.0.2.1:5")
	v, peer, data, _ := c.inspect([]byte{0x40, 0, 0, 2, 0x80, 7, 0, 0})
	if v != deliver || peer.Port() != 5 || len(data) != 2 {
		t.Errorf("channel data: %v from %v, %d bytes", v, peer, len(data))
	}
	for _, b := range [][]byte{nil, {0x40}, {0x40, 0, 0, 9, 1}, {0x40, 0, 0, 1, 1, 2, 3, 4, 5}, request(0x001), answer(request(0x001), classSuccess), answer(refresh, classIndication)} {
		if v := verdictOf(b); v != drop {
			t.Errorf("%x: %v, want drop", b, v)
		}
	}
}
