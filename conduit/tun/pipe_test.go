// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPipe(t *testing.T) {
	dev, app := Pipe(0)
	ctx := t.Context()
	for i := range 3 {
		if err := app.Send(ctx, []byte{byte(i), 1, 2}); err != nil {
			t.Fatal(err)
		}
	}
	bufs := [][]byte{make([]byte, 20), make([]byte, 20)}
	sizes := make([]int, 2)
	for _, want := range []int{2, 1} {
		n, err := dev.Read(0, bufs, sizes, 16)
		if err != nil || n != want {
			t.Fatalf("read = %d, %v; want %d", n, err, want)
		}
	}
	if !bytes.Equal(bufs[0][16:19], []byte{2, 1, 2}) || sizes[0] != 3 {
		t.Errorf("last packet = %x of %d bytes", bufs[0][16:], sizes[0])
	}
	if n, err := dev.Write(0, [][]byte{append(make([]byte, 4), "down"...)}, 4); n != 1 || err != nil {
		t.Fatalf("write = %d, %v", n, err)
	}
	got := make([]byte, 10)
	if n, err := app.Recv(ctx, got); err != nil || string(got[:n]) != "down" {
		t.Errorf("recv = %q, %v", got[:n], err)
	}
}

// The application waits for room; the node never does and drops the oldest.
func TestPipeBounds(t *testing.T) {
	dev, app := Pipe(1350)
	defer app.Close()
	pkt := make([]byte, 1024)
	for range pipeBytes / len(pkt) {
		if err := app.Send(t.Context(), pkt); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := app.Send(ctx, pkt); !errors.Is(err, context.Canceled) {
		t.Errorf("send into a full pipe: %v, want context.Canceled", err)
	}
	for i := range 2 * pipeBytes / len(pkt) {
		pkt[0] = byte(i)
		if _, err := dev.Write(0, [][]byte{pkt}, 0); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 1350)
	if _, err := app.Recv(t.Context(), got); err != nil || got[0] != byte(pipeBytes/len(pkt)) {
		t.Errorf("oldest kept packet is number %d (%v), want %d", got[0], err, pipeBytes/len(pkt))
	}
	if err := app.Send(t.Context(), make([]byte, 1351)); err == nil {
		t.Error("a packet over the MTU was taken")
	}
}

func TestPipeClose(t *testing.T) {
	dev, app := Pipe(0)
	errs := make(chan error, 2)
	go func() {
		_, err := dev.Read(0, [][]byte{make([]byte, 100)}, make([]int, 1), 0)
		errs <- err
	}()
	go func() {
		_, err := app.Recv(context.Background(), make([]byte, 100))
		errs <- err
	}()
	if err := errors.Join(dev.Close(), app.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after close: %v, want net.ErrClosed", err)
		}
	}
	if _, err := dev.Write(0, [][]byte{{1}}, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{
		"small MTU": {MTU: 1279},
		"large MTU": {MTU: 9000},
		"long name": {Name: "a-name-of-16-chr"},
		"driver":    {Driver: "tap"},
	} {
		if d, err := Open(cfg); err == nil {
			_ = d.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
