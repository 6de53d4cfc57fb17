// SPDX-License-Identifier: Apache-2.0

package flood

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
)

// The kinds of HANDSHAKE datagrams (docs/wire.md §2.9).
const (
	kindPiece  = 0
	kindHello  = 1
	kindCookie = 2
)

const macLen = 16

// Member is what every member of the mesh knows of another: its certificates.
type Member struct {
	ID     [32]byte
	X25519 [32]byte
	Chain  [][]byte // DER, leaf first
}

// x25519OID is the certificate extension with the X25519 key.
var x25519OID = asn1.ObjectIdentifier{1, 3, 9999, 6610, 1}

// ParseMember reads a PEM file of certificates, leaf first.
func ParseMember(text []byte) (Member, error) {
	var m Member
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		m.Chain = append(m.Chain, b.Bytes)
	}
	if len(m.Chain) == 0 {
		return m, errors.New("read certificate: none")
	}
	c, err := x509.ParseCertificate(m.Chain[0])
	if err != nil {
		return m, fmt.Errorf("read certificate: %w", err)
	}
	ed, ok := c.PublicKey.(ed25519.PublicKey)
	if !ok {
		return m, errors.New("read certificate: not an Ed25519 key")
	}
	for _, e := range c.Extensions {
		var key []byte
		if e.Id.Equal(x25519OID) {
			if _, err := asn1.Unmarshal(e.Value, &key); err != nil || len(key) != 32 {
				return m, errors.New("read certificate: malformed X25519 key")
			}
			m.X25519 = [32]byte(key)
		}
	}
	if m.X25519 == [32]byte{} {
		return m, errors.New("read certificate: no X25519 key")
	}
	m.ID = sha256.Sum256(append(append([]byte("bx-id-v1"), ed...), m.X25519[:]...))
	return m, nil
}

// Insider forges INVITEs in the name of one member to another, all bytes as they
// should be but for the signature. It first gets itself a cookie from the victim
// at to, for the address of conn; that takes one answer of the victim. It asks ten
// times, 300 ms apart: the victim answers only so many a second.
func Insider(ctx context.Context, conn *net.UDPConn, to netip.AddrPort, claimed, victim Member) (Maker, error) {
	key := sha256.Sum256(append([]byte("bx-mac1"), victim.X25519[:]...))
	hello := make([]byte, headerLen, headerLen+2*macLen)
	handshakeHeader(hello, kindHello)
	token := make([]byte, macLen)
	_, _ = rand.Read(token) // never fails
	hello = append(hello, token...)
	hello = append(hello, mac(key[:], hello)...)
	_ = conn.SetReadDeadline(time.Unix(1, 0)) // nothing has been asked yet
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	buf := make([]byte, maxPacket)
	for tries := 0; ; {
		n, _, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && tries < 10 && ctx.Err() == nil {
			tries++
			if _, err := conn.WriteToUDPAddrPort(hello, to); err != nil {
				return nil, fmt.Errorf("send hello: %w", err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("wait for a cookie: %w", err)
		}
		h, ok := ParseHeader(buf[:n])
		if ok && h.Type == TypeHandshake && h.Counter == kindCookie && n == headerLen+2*macLen && bytes.Equal(buf[headerLen:headerLen+macLen], token) {
			return pieces(key[:], bytes.Clone(buf[headerLen+macLen:n]), claimed, victim), nil
		}
	}
}

func handshakeHeader(b []byte, kind uint64) {
	Header{Type: TypeHandshake, Counter: kind}.put(b)
	b[2], b[3] = 0, 0
}

func mac(key, b []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(b)
	return m.Sum(nil)[:macLen]
}

// pieces cuts a new INVITE each time the one before is used up.
func pieces(key, cookie []byte, claimed, victim Member) Maker {
	const most = 1100
	var message []byte
	var id [4]byte
	index, count := 0, 0
	return func(b []byte) int {
		if index == count {
			message = append(append(append([]byte{}, claimed.ID[:]...), make([]byte, macLen)...), invite(claimed, victim)...)
			_, _ = rand.Read(id[:])
			index, count = 0, (len(message)+most-1)/most
		}
		data := message[index*most : min((index+1)*most, len(message))]
		p := b[:headerLen]
		handshakeHeader(p, kindPiece)
		p = append(p, id[:]...)
		p = append(p, byte(index), byte(count), 0, 0)
		p = append(p, data...)
		p = append(p, mac(key, p)...)
		p = append(p, mac(cookie, p)...)
		index++
		return len(p)
	}
}

// invite is one in whose layout nothing is wrong (docs/wire.md §4.1), with noise
// for keys and signature.
func invite(claimed, victim Member) []byte {
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return b
	}
	m := []byte{1, 1}
	m = append(m, random(16)...) // sid
	m = append(m, random(4)...)  // index
	m = append(m, 1, 1)          // one suite
	m = append(m, 0, 0, 0, 0)    // capabilities
	m = append(m, 1)             // PSK epoch
	m = append(m, make([]byte, 40)...)
	m = append(m, claimed.ID[:]...)
	m = append(m, victim.ID[:]...)
	m = append(m, random(32)...)
	// Coefficients of an ML-KEM key must be below 3329; zeros are.
	m = append(m, make([]byte, 1152)...)
	m = append(m, random(32)...)
	m = append(m, 0, 0) // no statement
	m = append(m, byte(len(claimed.Chain)))
	for _, c := range claimed.Chain {
		m = binary.BigEndian.AppendUint16(m, uint16(len(c)))
		m = append(m, c...)
	}
	return append(m, random(64)...)
}
