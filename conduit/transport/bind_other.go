// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package transport

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// portable moves one datagram per call.
type portable struct {
	conn *net.UDPConn
	addr netip.AddrPort
}

func newBind(conn *net.UDPConn, cfg Config) (Bind, error) {
	_ = conn.SetReadBuffer(cfg.RecvBuffer)
	_ = conn.SetWriteBuffer(cfg.SendBuffer)
	return &portable{conn, localAddr(conn)}, nil
}

func (cfg *Config) control(string, string, syscall.RawConn) error { return nil }

func (p *portable) LocalAddr() netip.AddrPort { return p.addr }
func (p *portable) Sockets() int              { return 1 }
func (p *portable) BatchSize() int            { return 1 }
func (p *portable) RecvBufSize() int          { return 2048 }
func (p *portable) Close() error              { return closeOnce(p.conn.Close()) }

func (p *portable) Receive(_ int, msgs []Message) (int, error) {
	n, from, err := p.conn.ReadFromUDPAddrPort(msgs[0].Buf)
	if err != nil {
		return 0, err
	}
	msgs[0].N, msgs[0].Segment, msgs[0].Time = n, 0, 0
	msgs[0].Addr = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	return 1, nil
}

func (p *portable) Send(_ int, msgs []Message) (sent int, err error) {
	var refused *SendError
	for i := range msgs {
		_, e := p.conn.WriteToUDPAddrPort(msgs[i].Buf, msgs[i].Addr)
		if e == nil {
			sent++
			continue
		}
		if errors.Is(e, net.ErrClosed) {
			return sent, e
		}
		errno := syscall.EINVAL // what package net itself refuses
		_ = errors.As(e, &errno)
		if refused == nil {
			refused = new(SendError)
		}
		refused.Refused = append(refused.Refused, Refusal{i, errno})
	}
	if refused != nil {
		return sent, refused
	}
	return sent, nil
}
