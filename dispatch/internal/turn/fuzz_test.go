// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	pstun "github.com/pion/stun/v3"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// attributes are those that a TURN server reads.
var attributes = []pstun.AttrType{
	pstun.AttrLifetime, pstun.AttrXORPeerAddress, pstun.AttrChannelNumber, pstun.AttrRequestedTransport,
	pstun.AttrEvenPort, pstun.AttrReservationToken, pstun.AttrRequestedAddressFamily, pstun.AttrDontFragment, pstun.AttrData,
}

var methods = []pstun.MessageType{
	pstun.NewType(pstun.MethodAllocate, pstun.ClassRequest), pstun.NewType(pstun.MethodRefresh, pstun.ClassRequest),
	pstun.NewType(pstun.MethodCreatePermission, pstun.ClassRequest), pstun.NewType(pstun.MethodChannelBind, pstun.ClassRequest),
	pstun.NewType(pstun.MethodSend, pstun.ClassIndication),
}

// FuzzServer is a node that speaks nonsense, with valid credentials and an
// allocation. in is a method and then attributes: kind, length, value. The server
// must go on, let nothing out and stay within its bounds.
func FuzzServer(f *testing.F) {
	s, err := Listen(context.Background(), Config{
		Listen: "127.0.0.1:0", Host: "127.0.0.1", RelayAddrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		MinPort: 53000, MaxPort: 53999, MaxPerNode: 1, Own: func() []netip.Prefix { return nil },
		Admit: func(context.Context, identity.PeerID) error { return nil },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	s.sources.off.Store(true)
	f.Add([]byte{0, 3, 4, 17, 0, 0, 0})
	f.Add([]byte{0, 3, 4, 17, 0, 0, 0, 4, 1, 0x80})
	f.Add([]byte{0, 3, 4, 17, 0, 0, 0, 5, 8, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{1, 0, 4, 0, 0, 0, 0})
	f.Add([]byte{2, 1, 8, 0, 1, 0x21, 0x12, 0xe1, 0x12, 0xa4, 0x43})
	f.Add([]byte{3, 2, 4, 0x40, 0, 0, 0, 1, 8, 0, 1, 0x21, 0x12, 0xe1, 0x12, 0xa4, 0x43})
	f.Add([]byte{4, 1, 8, 0, 1, 0x21, 0x12, 0xe1, 0x12, 0xa4, 0x43, 8, 2, 1, 2})
	f.Add([]byte{2, 1, 20, 0, 2})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		w := newRaw(t, s, identity.PeerID{1})
		allocated := w.do(pstun.MethodAllocate, udpTransport) == 0
		m := pstun.New()
		m.Type = methods[int(in[0])%len(methods)]
		if err := m.NewTransactionID(); err != nil {
			t.Fatal(err)
		}
		m.WriteHeader()
		for in = in[1:]; len(in) >= 2; {
			n := min(int(in[1]), len(in)-2)
			m.Add(attributes[int(in[0])%len(attributes)], in[2:2+n])
			in = in[2+n:]
		}
		for _, a := range []pstun.Setter{
			pstun.NewUsername(w.cred.Username), pstun.NewRealm(realm), w.nonce,
			pstun.NewLongTermIntegrity(w.cred.Username, realm, w.cred.Password),
		} {
			if err := a.AddTo(m); err != nil {
				return // too long
			}
		}
		if _, err := w.c.Write(m.Raw); err != nil {
			t.Fatal(err)
		}
		// The answer to this comes after whatever came of that.
		ping := pstun.MustBuild(pstun.TransactionID, pstun.BindingRequest)
		if _, err := w.c.Write(ping.Raw); err != nil {
			t.Fatal(err)
		}
		_ = w.c.SetReadDeadline(time.Now().Add(5 * time.Second))
		for buf := make([]byte, 1600); ; {
			n, err := w.c.Read(buf)
			if err != nil {
				t.Fatalf("the server is silent: %v", err)
			}
			res := &pstun.Message{Raw: buf[:n]}
			if res.Decode() == nil && res.TransactionID == ping.TransactionID {
				break
			}
		}
		if st := s.Stats(); st.Allocations > 1 || st.UpPackets > 0 {
			t.Fatalf("allocated %v, stats = %+v", allocated, st)
		}
		s.Revoke(identity.PeerID{1})
		for end := time.Now().Add(5 * time.Second); s.Stats().Allocations > 0; {
			if time.Now().After(end) {
				t.Fatal("the allocation stays")
			}
		}
	})
}

var _ net.PacketConn = (*socket)(nil)
