// SPDX-License-Identifier: Apache-2.0

// Package stun answers STUN Binding requests (RFC 8489) over UDP, so that nodes
// learn their addresses without anybody else's server. Its sockets serve package
// turn as well.
//
// Everybody can send here, under a forged source address too. So only complete
// and valid requests are answered, once, with little more than they were long,
// and never a message that is an answer itself.
package stun

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/pion/stun/v3"
)

const (
	headerLen      = 20
	bindingRequest = 0x0001
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
	conns []*Conn
	wg    sync.WaitGroup
	once  sync.Once
	err   error

	answered, dropped atomic.Uint64
}

// Listen opens addr, on IPv4 and IPv6 where it names no host, and starts to
// answer. Close ends it.
func Listen(ctx context.Context, addr string, log *slog.Logger) (*Server, error) {
	conns, err := Open(ctx, addr, log)
	if err != nil {
		return nil, err
	}
	s := &Server{conns: conns}
	for _, c := range s.conns {
		s.wg.Go(func() { s.serve(c) })
	}
	return s, nil
}

// Addr returns the address of the first socket.
func (s *Server) Addr() netip.AddrPort { return s.conns[0].Addr() }

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

func (s *Server) serve(c *Conn) {
	buf := make([]byte, maxRequest+1)
	for {
		n, from, local, err := c.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error that an answer brought back
		}
		res := Respond(buf[:n], from)
		if res == nil || c.Write(res, from, local) != nil {
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

// plausible tells whether b may be a Binding request.
func plausible(b []byte) bool {
	return len(b) <= maxRequest && WellFormed(b) && binary.BigEndian.Uint16(b) == bindingRequest
}

// IsBinding tells whether b begins like a Binding request.
func IsBinding(b []byte) bool {
	return len(b) >= headerLen && binary.BigEndian.Uint16(b) == bindingRequest
}

// WellFormed tells whether b has the header of a STUN message and attributes that
// fill it exactly.
func WellFormed(b []byte) bool {
	if len(b) < headerLen || len(b)%4 != 0 || b[0] > 3 ||
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
