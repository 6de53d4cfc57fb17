// SPDX-License-Identifier: Apache-2.0

// Command probe makes test traffic by hand, as package probe does in tests.
//
//	probe echo -listen :9999                    answer every datagram
//	probe rr   -to IP:9999 [-count -interval -size]   round trip times
//	probe wait -to IP:9999                      seconds until the first answer
//	probe recv -listen :9998                    take one TCP transfer
//	probe send -to IP:9998 [-bytes]             send one
//
// Results are one line of JSON. Everything ends after -timeout.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/probe"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: probe echo|rr|wait|recv|send [flags]")
	}
	fs := flag.NewFlagSet("probe "+args[0], flag.ExitOnError)
	listen := fs.String("listen", ":9999", "address to listen on")
	to := fs.String("to", "", "address of the other probe")
	count := fs.Int("count", 100, "requests")
	interval := fs.Duration("interval", 10*time.Millisecond, "time between requests")
	size := fs.Int("size", 64, "payload bytes of a request")
	bytes := fs.Int64("bytes", 100<<20, "bytes to send")
	timeout := fs.Duration("timeout", time.Minute, "end after this time")
	_ = fs.Parse(args[1:]) // exits on error

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	switch args[0] {
	case "echo":
		return echo(ctx, *listen)
	case "rr", "wait":
		peer, err := netip.ParseAddrPort(*to)
		if err != nil {
			return fmt.Errorf("parse -to: %w", err)
		}
		conn, err := net.ListenUDP("udp", nil)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer conn.Close()
		if args[0] == "wait" {
			d, err := probe.WaitAnswer(ctx, conn, peer, 0)
			if err != nil {
				return err
			}
			return show(map[string]float64{"seconds": d.Seconds()})
		}
		l, err := probe.RoundTrips(ctx, conn, peer, probe.Requests{Count: *count, Interval: *interval, Size: *size})
		if err != nil {
			return err
		}
		return show(l)
	case "recv":
		return receive(ctx, *listen)
	case "send":
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", *to)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		defer conn.Close()
		return showTransfer(probe.Send(ctx, conn, probe.Pattern(uint64(time.Now().UnixNano()), nil), *bytes, nil))
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func echo(ctx context.Context, addr string) error {
	pc, err := new(net.ListenConfig).ListenPacket(ctx, "udp", addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	e := probe.StartEcho(pc.(*net.UDPConn))
	<-ctx.Done()
	return e.Close()
}

func receive(ctx context.Context, addr string) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	conn, err := ln.Accept()
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	defer conn.Close()
	return showTransfer(probe.Receive(ctx, conn, nil, probe.MaxTransfer))
}

func showTransfer(t probe.Transfer, err error) error {
	if err != nil {
		return err
	}
	return show(map[string]any{
		"bytes": t.Bytes, "seconds": t.Duration.Seconds(), "mbit_s": t.Mbit(), "sha256": fmt.Sprintf("%x", t.SHA256),
	})
}

func show(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
