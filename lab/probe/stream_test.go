// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func local(t *testing.T) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestStream has a box in the middle that loses, doubles and delays by number.
func TestStream(t *testing.T) {
	from, _ := local(t)
	at, to := local(t)
	box, via := local(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2000)
		var held []byte
		for i := 0; ; i++ {
			n, _, err := box.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			switch i {
			case 3: // lost
			case 5: // after its successor
				held = append(held, buf[:n]...)
			case 6:
				_, _ = box.WriteToUDPAddrPort(buf[:n], to)
				_, _ = box.WriteToUDPAddrPort(held, to)
			case 8:
				_, _ = box.WriteToUDPAddrPort(buf[:n], to)
				_, _ = box.WriteToUDPAddrPort(buf[:n], to)
			default:
				_, _ = box.WriteToUDPAddrPort(buf[:n], to)
			}
		}
	}()
	s, err := StartStream(from, at, via, Requests{Count: 20, Interval: 5 * time.Millisecond, Linger: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Wait(t.Context())
	box.Close()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	if d.Sent != 20 || d.Lost != 1 || d.Missing[0] != 3 || d.Duplicated != 1 || d.Reordered != 1 || d.Got != 19 {
		t.Errorf("account = %v, missing %v; want 20 sent, number 3 lost, one twice, one late", &d, d.Missing)
	}
	if d.MaxGap < 8*time.Millisecond || d.Max <= 0 || d.P50 > d.P99 {
		t.Errorf("account = %v, want a gap of about 10 ms", &d)
	}
	if again, ok := d.Resumed(d.start.Add(d.sent[3])); !ok || again < 4*time.Millisecond {
		t.Errorf("resumed after %v, %v, want about 5 ms: number 3 was lost", again, ok)
	}
	if n := d.LostAfterFirst(); n != 1 {
		t.Errorf("%d lost after the first, want 1", n)
	}
}

func TestFlow(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	f := StartFlow(a, b, FlowConfig{Size: 10, Interval: time.Millisecond})
	timer := time.NewTimer(100 * time.Millisecond)
	<-timer.C
	end := time.Now()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for side := range 2 {
		if gap := f.Gap(side, began, end); gap <= 0 || gap > 50*time.Millisecond {
			t.Errorf("gap at end %d = %v, want a few ms", side, gap)
		}
		// Nothing came after the end.
		if gap := f.Gap(side, end.Add(time.Second), end.Add(3*time.Second)); gap != 2*time.Second {
			t.Errorf("gap after the end = %v, want all of it", gap)
		}
	}
}
