// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestAnswers(t *testing.T) {
	const ms = time.Millisecond
	a := Answers{start: time.Now()}
	// Every 10 ms: ten quick ones, ten slow ones of which two are lost, then quick
	// ones with a slow one among them.
	for i := range 60 {
		rtt := 5 * ms
		switch {
		case i == 12 || i == 13:
			rtt = 0
		case i >= 10 && i < 20 || i == 25:
			rtt = 50 * ms
		}
		a.sent, a.rtt = append(a.sent, time.Duration(i)*10*ms), append(a.rtt, rtt)
	}
	at := func(d time.Duration) time.Time { return a.start.Add(d) }
	l := a.Within(at(100*ms), at(200*ms))
	if l.Sent != 10 || l.Lost() != 2 || l.LongestGap != 2 || l.P50 != 50*ms {
		t.Errorf("the slow part is %+v, want 10 with 2 lost in a row and a median of 50ms", l)
	}
	if l := a.All(); l.Sent != 60 || l.Max != 50*ms || l.P999 != 50*ms || l.P50 != 5*ms {
		t.Errorf("all are %+v", l)
	}
	for _, tt := range []struct {
		hold time.Duration
		want time.Duration
		ok   bool
	}{
		{40 * ms, 100 * ms, true},  // from the 20th on, before the one that is slow again
		{100 * ms, 160 * ms, true}, // from the 26th on
		{400 * ms, 0, false},       // never for so long
	} {
		got, ok := a.Inside(at(100*ms), at(600*ms), 6*ms, tt.hold)
		if got != tt.want || ok != tt.ok {
			t.Errorf("inside for %v after %v, %v, want %v, %v", tt.hold, got, ok, tt.want, tt.ok)
		}
	}
	if got, ok := a.Inside(at(120*ms), at(600*ms), 50*ms, 50*ms); got != 20*ms || !ok {
		t.Errorf("inside a bound that only the lost ones miss after %v, %v, want 20ms", got, ok)
	}
	if _, ok := a.Inside(at(100*ms), at(200*ms), 6*ms, 10*ms); ok {
		t.Error("inside while all were slow")
	}
}

func TestTripsStop(t *testing.T) {
	server, client := udpPair(t)
	e := StartEcho(server)
	defer e.Close()
	trips, err := StartTrips(client, e.Addr(), Requests{Count: MaxRequests, Interval: time.Millisecond, Linger: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(50 * time.Millisecond)
	began := time.Now()
	a, err := trips.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if l := a.All(); l.Sent == 0 || l.Lost() != 0 {
		t.Errorf("%+v, want some and none lost", l)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v to stop although all were answered", took)
	}
}

func udpPair(t *testing.T) (server, client *net.UDPConn) {
	t.Helper()
	var conns [2]*net.UDPConn
	for i := range conns {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		conns[i] = c
	}
	return conns[0], conns[1]
}

func TestBlast(t *testing.T) {
	at, from := udpPair(t)
	b := StartBlast(from, at, at.LocalAddr().(*net.UDPAddr).AddrPort(), 100, 4, 4_000_000) // 5,000 a second
	<-time.After(200 * time.Millisecond)
	b.StopSending()
	b.StopSending()
	sent := b.Sent()
	b.Close()
	packets, bytes := b.Got()
	if sent < 300 || sent > 3000 {
		t.Errorf("sent %d datagrams in 200ms, want about 1000", sent)
	}
	if packets == 0 || packets > sent || bytes != packets*100 {
		t.Errorf("got %d datagrams of %d with %d bytes", packets, sent, bytes)
	}
}
