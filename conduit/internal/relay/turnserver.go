// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const defaultTURNPort = 3478

// ErrTurnURL is returned for a TURN URI that is not one, or not over UDP.
var ErrTurnURL = errors.New("no TURN server over UDP")

var errNoTurn = errors.New("there is no TURN server")

// TurnServer is a TURN server with credentials; conduit.TurnServer can be converted
// to it.
type TurnServer struct {
	URL, Username, Password string
	Expires                 time.Time
}

// try asks for servers and dials the first that answers.
func (t *Turns) try(ctx context.Context, u TurnUplink, lost func(error)) (turnBind, TurnServer, error) {
	servers, err := t.cfg.Servers(ctx)
	if err != nil {
		return nil, TurnServer{}, fmt.Errorf("ask for TURN servers: %w", err)
	}
	err = errNoTurn
	for i, server := range servers {
		// The last may use all of the time that is left.
		ctx, cancel := ctx, func() {}
		if i < len(servers)-1 {
			ctx, cancel = context.WithTimeout(ctx, allocateTime/3)
		}
		var b turnBind
		if b, err = t.tryOne(ctx, u, server, lost); err == nil {
			cancel()
			return b, server, nil
		}
		cancel()
	}
	return nil, TurnServer{}, err
}

func (t *Turns) tryOne(ctx context.Context, u TurnUplink, server TurnServer, lost func(error)) (turnBind, error) {
	host, port, err := ParseTurnURL(server.URL)
	if err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		addrs, lerr := t.cfg.Lookup(ctx, host)
		if lerr != nil {
			return nil, fmt.Errorf("resolve TURN server: %w", lerr)
		}
		for _, a := range addrs {
			if a = a.Unmap(); a.Is4() {
				addr = a
				break
			}
		}
	}
	if addr = addr.Unmap(); !addr.Is4() {
		return nil, fmt.Errorf("TURN server %s: no IPv4 address", host)
	}
	return t.cfg.dial(ctx, TurnConfig{
		Server: netip.AddrPortFrom(addr, port), Username: server.Username, Password: server.Password,
		Interface: u.Name, Local: u.Local, Lost: lost, Logger: t.log,
	})
}

// ParseTurnURL reads a TURN URI (RFC 7065). Only turn: over UDP is taken: over TLS
// and TCP it would be one more queue, and the hub's relay stream is that already.
func ParseTurnURL(s string) (host string, port uint16, err error) {
	rest, ok := strings.CutPrefix(s, "turn:")
	rest, query, asked := strings.Cut(rest, "?")
	if !ok || asked && query != "transport=udp" || len(s) > 512 {
		return "", 0, fmt.Errorf("%q: %w", s, ErrTurnURL)
	}
	if a, aerr := netip.ParseAddr(strings.Trim(rest, "[]")); aerr == nil {
		return a.String(), defaultTURNPort, nil
	}
	host, text, serr := net.SplitHostPort(rest)
	if serr != nil {
		host, text = rest, strconv.Itoa(defaultTURNPort)
	}
	n, perr := strconv.ParseUint(text, 10, 16)
	if _, aerr := netip.ParseAddr(host); perr != nil || n == 0 || host == "" || strings.ContainsAny(host, " /?#@[]") ||
		strings.Contains(host, ":") && aerr != nil {
		return "", 0, fmt.Errorf("%q: %w", s, ErrTurnURL)
	}
	return host, uint16(n), nil
}
