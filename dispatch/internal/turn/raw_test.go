// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"net"
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
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.Addr()))
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
	_ = w.c.SetReadDeadline(time.Now().Add(time.Second))
	buf := make([]byte, 1600)
	n, err := w.c.Read(buf)
	if err != nil {
		return nil
	}
	res := &pstun.Message{Raw: buf[:n]}
	if err := res.Decode(); err != nil || res.TransactionID != m.TransactionID {
		w.t.Fatalf("answer = %v, %v", res, err)
	}
	return res
}
