// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
	"net/netip"
	"testing"
	"time"

	pstun "github.com/pion/stun/v3"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// raw speaks TURN message by message.
type raw struct {
	t     *testing.T
	c     *net.UDPConn
	cred  Credentials
	nonce pstun.Nonce

	relayed pstun.XORMappedAddress
}

var udpTransport = pstun.RawAttribute{Type: pstun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}}

func newRaw(t *testing.T, s *Server, id identity.PeerID) *raw {
	t.Helper()
	return newRawAt(t, s, id, s.Addr())
}

// newRawAt speaks to one address of the server and hears that one only.
func newRawAt(t *testing.T, s *Server, id identity.PeerID, at netip.AddrPort) *raw {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &raw{t: t, c: c, cred: s.Credentials(id)}
}

// do sends a request and returns the error code of the answer, 0 for success and
// -1 where none comes.
func (w *raw) do(method pstun.Method, set ...pstun.Setter) int {
	w.t.Helper()
	for range 2 {
		all := append([]pstun.Setter{pstun.TransactionID, pstun.NewType(method, pstun.ClassRequest)}, set...)
		if w.nonce != nil {
			all = append(all, pstun.NewUsername(w.cred.Username), pstun.NewRealm(realm), w.nonce,
				pstun.NewLongTermIntegrity(w.cred.Username, realm, w.cred.Password))
		}
		m := w.roundTrip(pstun.MustBuild(all...))
		if m == nil {
			return -1
		}
		if m.Type.Class == pstun.ClassSuccessResponse {
			if method == pstun.MethodAllocate {
				if err := w.relayed.GetFromAs(m, pstun.AttrXORRelayedAddress); err != nil {
					w.t.Fatal(err)
				}
			}
			return 0
		}
		var code pstun.ErrorCodeAttribute
		_ = code.GetFrom(m)
		if code.Code != pstun.CodeUnauthorized || w.nonce != nil {
			return max(1, int(code.Code))
		}
		if err := w.nonce.GetFrom(m); err != nil {
			w.t.Fatal(err)
		}
	}
	return 1
}

func (w *raw) roundTrip(m *pstun.Message) *pstun.Message {
	w.t.Helper()
	if _, err := w.c.Write(m.Raw); err != nil {
		w.t.Fatal(err)
	}
	res := w.read()
	if res != nil && res.TransactionID != m.TransactionID {
		w.t.Fatalf("answer = %v", res)
	}
	return res
}

// read returns the next message, nil where none comes.
func (w *raw) read() *pstun.Message {
	w.t.Helper()
	_ = w.c.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 1600)
	n, err := w.c.Read(buf)
	if err != nil {
		return nil
	}
	m := &pstun.Message{Raw: buf[:n]}
	if err := m.Decode(); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// send sends data to a peer in an indication.
func (w *raw) send(peer, data string) {
	w.t.Helper()
	ind := pstun.MustBuild(pstun.TransactionID, pstun.NewType(pstun.MethodSend, pstun.ClassIndication),
		xorPeer(peer), pstun.RawAttribute{Type: pstun.AttrData, Value: []byte(data)})
	if _, err := w.c.Write(ind.Raw); err != nil {
		w.t.Fatal(err)
	}
}
