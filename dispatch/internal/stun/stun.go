// SPDX-License-Identifier: Apache-2.0

// Package stun answers STUN Binding requests (RFC 8489) over UDP, so that nodes
// learn their addresses without anybody else's server.
//
// Everybody can send here, under a forged source address too. So only complete
// and valid requests are answered, once, with little more than they were long,
// and never a message that is an answer itself.
package stun

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/pion/stun/v3"
)

const (
	headerLen = 20
	// maxRequest is the largest request that is looked at: RFC 8489 §6.1 keeps
	// requests below 548 bytes.
	maxRequest = 548
	// maxUnknown bounds the unknown attributes that an error lists.
	maxUnknown = 8
)

// understood are the comprehension-required attributes that a Binding request
// without authentication may carry.
var understood = map[stun.AttrType]bool{
	stun.AttrUsername: true, stun.AttrMessageIntegrity: true, stun.AttrMessageIntegritySHA256: true,
	stun.AttrRealm: true, stun.AttrNonce: true, stun.AttrUserhash: true, stun.AttrPasswordAlgorithm: true,
	stun.AttrPriority: true,
}

// Server answers on its sockets. Make one with Listen.
type Server struct {
	log   *slog.Logger
	conns []*net.UDPConn
	wg    sync.WaitGroup
	once  sync.Once
	err   error

	answered, dropped atomic.Uint64
}

// Listen opens addr, on IPv4 and IPv6 where it names no host, and starts to
// answer. Close ends it.
func Listen(ctx context.Context, addr string, log *slog.Logger) (*Server, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen for STUN: %w", err)
	}
	s := &Server{log: log}
	networks := []string{"udp"}
	if host == "" {
		networks = []string{"udp4", "udp6"}
	}
	var lc net.ListenConfig
	for _, n := range networks {
		pc, err := lc.ListenPacket(ctx, n, net.JoinHostPort(host, port))
		if err != nil {
			if n == "udp6" { // a machine without IPv6
				log.InfoContext(ctx, "STUN is served over IPv4 only", "err", err)
				continue
			}
			return nil, errors.Join(fmt.Errorf("listen for STUN: %w", err), s.Close())
		}
		c := pc.(*net.UDPConn)
		s.conns = append(s.conns, c)
		port = strconv.Itoa(c.LocalAddr().(*net.UDPAddr).Port)
		enablePktinfo(c)
	}
	for _, c := range s.conns {
		s.wg.Go(func() { s.serve(c) })
	}
	return s, nil
}

// Addr returns the address of the first socket.
func (s *Server) Addr() netip.AddrPort { return s.conns[0].LocalAddr().(*net.UDPAddr).AddrPort() }

// Counters returns how many packets were answered and dropped.
func (s *Server) Counters() (answered, dropped uint64) { return s.answered.Load(), s.dropped.Load() }

// Close closes the sockets and waits.
func (s *Server) Close() error {
	s.once.Do(func() {
		for _, c := range s.conns {
			s.err = errors.Join(s.err, c.Close())
		}
		s.wg.Wait()
	})
	return s.err
}

func (s *Server) serve(c *net.UDPConn) {
	buf, oob := make([]byte, maxRequest+1), make([]byte, oobSize)
	for {
		n, on, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that an answer brought back
		}
		res := Respond(buf[:n], from)
		if res == nil {
			s.dropped.Add(1)
			continue
		}
		if _, _, err := c.WriteMsgUDPAddrPort(res, replySource(oob[:on]), from); err != nil {
			s.dropped.Add(1)
			continue
		}
		s.answered.Add(1)
	}
}

// Respond returns the answer to a request that came from an address, or nil for
// what deserves none.
func Respond(req []byte, from netip.AddrPort) []byte {
	if !plausible(req) || from.Port() == 0 {
		return nil
	}
	m := &stun.Message{Raw: append([]byte(nil), req...)}
	if m.Decode() != nil {
		return nil
	}
	fingerprint := false
	var unknown stun.UnknownAttributes
	for i, a := range m.Attributes {
		if a.Type == stun.AttrFingerprint {
			if i != len(m.Attributes)-1 || stun.Fingerprint.Check(m) != nil {
				return nil
			}
			fingerprint = true
		}
		if a.Type < 0x8000 && !understood[a.Type] && len(unknown) < maxUnknown {
			unknown = append(unknown, a.Type)
		}
	}
	set := []stun.Setter{stun.NewTransactionIDSetter(m.TransactionID)}
	if len(unknown) > 0 {
		set = append(set, stun.BindingError, stun.ErrorCodeAttribute{Code: stun.CodeUnknownAttribute}, unknown)
	} else {
		a := from.Addr().Unmap()
		set = append(set, stun.BindingSuccess, &stun.XORMappedAddress{IP: a.AsSlice(), Port: int(from.Port())})
	}
	if fingerprint {
		set = append(set, stun.Fingerprint)
	}
	res, err := stun.Build(set...)
	if err != nil {
		return nil
	}
	return res.Raw
}

// plausible checks the header and that the attributes fill the message exactly.
func plausible(b []byte) bool {
	if len(b) < headerLen || len(b) > maxRequest || len(b)%4 != 0 ||
		binary.BigEndian.Uint16(b) != 0x0001 || // Binding request
		int(binary.BigEndian.Uint16(b[2:])) != len(b)-headerLen ||
		binary.BigEndian.Uint32(b[4:]) != 0x2112A442 {
		return false
	}
	for b = b[headerLen:]; len(b) > 0; {
		if len(b) < 4 {
			return false
		}
		n := 4 + (int(binary.BigEndian.Uint16(b[2:]))+3)&^3
		if n > len(b) {
			return false
		}
		b = b[n:]
	}
	return true
}
