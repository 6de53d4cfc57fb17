// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
)

// The limits of a Courier.
const (
	// cookieTurn is how often the secret of the cookies changes; a cookie counts for
	// one turn more. A sender uses one for cookieLife.
	cookieTurn = 120 * time.Second
	cookieLife = 100 * time.Second
	// helloLife is how long the answer to a HELLO may take.
	helloLife = 5 * time.Second
	// firstRound is the time to the first repetition, which doubles; after maxRounds
	// a message is given up: the handshake has repetitions of its own.
	firstRound = 250 * time.Millisecond
	maxRounds  = 4
	// maxAddrs bounds the addresses that one message tries, maxCopies those that get
	// it in one round.
	maxAddrs  = 32
	maxCopies = 2
	// maxOutgoing and maxPerPeer bound the messages under way, maxWays the addresses
	// of which a cookie is kept or awaited.
	maxOutgoing = 256
	maxPerPeer  = 8
	maxWays     = 512
	// maxAssemblies and maxPerHost bound unfinished messages; they live assemblyLife.
	maxAssemblies = 32
	maxPerHost    = 4
	assemblyLife  = 2 * time.Second
	// maxDelivered bounds the memory for copies of what came.
	maxDelivered = 128
	// Datagrams of one host and of all, before anything in them is looked at.
	hostGap, hostBurst = time.Second / 64, 64
	allGap, allBurst   = time.Second / 2000, 512
	hostBuckets        = 1024

	maxDatagram = 1232
	cookieLen   = 16
	helloLen    = wire.HeaderLen + cookieLen + cookieLen
	// courierHeader is what a message has before its body: the sender and a cookie for
	// the answer.
	courierHeader = 32 + cookieLen
	// MaxCourierBody is the longest body that Send takes.
	MaxCourierBody = wire.MaxSplit - courierHeader
)

// The kinds of a HANDSHAKE packet, which stand where others have the counter.
const (
	kindPiece = iota
	kindHello
	kindCookie
)

// Addr is one way to a peer: our socket and where to send.
type Addr struct {
	Bind   int
	Remote netip.AddrPort
}

// Datagram is one HANDSHAKE packet to send.
type Datagram struct {
	To Addr
	B  []byte
}

// CourierConfig describes our end. Both fields are required.
type CourierConfig struct {
	ID identity.PeerID
	// X25519 is our static public key, which strangers do not know.
	X25519 *ecdh.PublicKey

	random func([]byte) // for tests
}

// Hello reports whether the packet asks for a cookie: an answer will come from
// where it goes.
func (d *Datagram) Hello() bool {
	var h wire.Header
	return h.Parse(d.B) && h.Counter == kindHello
}

// ErrCourier is returned for a datagram that was dropped and for a message that
// cannot be sent.
var ErrCourier = errors.New("handshake by datagrams")

// Courier carries handshake messages between peers that know each other in
// HANDSHAKE packets, while the hub is away. One serves all peers of a node. It
// authenticates nobody: the handshake does. It answers only who knows our public
// key, with no more bytes than came, and keeps nothing for an address that has not
// proved that it receives.
//
// It has no sockets, clock or goroutines and is not safe for concurrent use.
type Courier struct {
	cfg     CourierConfig
	macKey  [32]byte
	secrets [2][32]byte // of cookies: this turn's and the last one's
	turned  time.Time
	out     []Datagram

	outgoing   []*outgoing
	ways       map[wayKey]*way
	assemblies map[netip.AddrPort]*assembly
	delivered  []delivery // newest last

	seed  maphash.Seed
	all   bucket
	hosts [hostBuckets]bucket
}

// outgoing is a message on its way.
type outgoing struct {
	peer   identity.PeerID
	macKey [32]byte
	id     uint32
	body   []byte
	to     []Addr
	sent   []Addr // in this round
	round  int
	born   time.Time
	next   time.Time
}

type wayKey struct {
	peer identity.PeerID
	addr Addr
}

// way is what we know of an address of a peer: the HELLO that is out, the cookie
// that came.
type way struct {
	token  [cookieLen]byte
	asked  time.Time
	cookie [cookieLen]byte
	got    time.Time
	used   time.Time
}

func (w *way) proved(now time.Time) bool { return !w.got.IsZero() && now.Sub(w.got) < cookieLife }

type assembly struct {
	pieces  wire.Reassembler
	started time.Time
}

type delivery struct {
	from netip.AddrPort
	id   uint32
}

// NewCourier returns the courier of a node.
func NewCourier(cfg CourierConfig) *Courier {
	if cfg.random == nil {
		cfg.random = func(b []byte) { _, _ = rand.Read(b) } // never fails since Go 1.24
	}
	return &Courier{
		cfg: cfg, macKey: courierKey(cfg.X25519), seed: maphash.MakeSeed(),
		ways: map[wayKey]*way{}, assemblies: map[netip.AddrPort]*assembly{},
	}
}

// courierKey is the key of the first MAC of what is sent to the owner of a static
// key.
func courierKey(k *ecdh.PublicKey) [32]byte { return hashAll([]byte("bx-mac1"), k.Bytes()) }

func shortMAC(key []byte, parts ...[]byte) (out [cookieLen]byte) {
	m := hmac.New(sha256.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	var full [32]byte
	copy(out[:], m.Sum(full[:0]))
	return out
}

// Ready returns the datagrams to send, in order, and forgets them.
func (c *Courier) Ready() []Datagram {
	out := c.out
	c.out = nil
	return out
}

// Send carries a handshake message to a peer whose static key is known, by way of
// those of its addresses that answer. It repeats what is lost a few times; that
// nothing came of it is for the handshake to find out.
func (c *Courier) Send(peer identity.PeerID, key *ecdh.PublicKey, body []byte, to []Addr, now time.Time) error {
	if len(body) == 0 || len(body) > MaxCourierBody || len(to) == 0 {
		return ErrCourier
	}
	o := &outgoing{
		peer: peer, macKey: courierKey(key), body: slices.Clone(body),
		to: slices.Clone(to[:min(len(to), maxAddrs)]), born: now,
	}
	var id [4]byte
	c.cfg.random(id[:])
	o.id = binary.BigEndian.Uint32(id[:])
	same := 0
	for _, x := range c.outgoing {
		if x.peer == peer {
			same++
		}
	}
	if same >= maxPerPeer { // the oldest of this peer makes room
		i := slices.IndexFunc(c.outgoing, func(x *outgoing) bool { return x.peer == peer })
		c.outgoing = slices.Delete(c.outgoing, i, i+1)
	}
	if len(c.outgoing) >= maxOutgoing {
		c.outgoing = slices.Delete(c.outgoing, 0, 1)
	}
	c.outgoing = append(c.outgoing, o)
	c.round(o, now)
	return nil
}

// Forget ends all messages to a peer.
func (c *Courier) Forget(peer identity.PeerID) {
	c.outgoing = slices.DeleteFunc(c.outgoing, func(o *outgoing) bool { return o.peer == peer })
	for k := range c.ways {
		if k.peer == peer {
			delete(c.ways, k)
		}
	}
}

// NextTick returns when Tick is due; zero means not before the next Send.
func (c *Courier) NextTick() time.Time {
	var t time.Time
	for _, o := range c.outgoing {
		if t.IsZero() || o.next.Before(t) {
			t = o.next
		}
	}
	return t
}

// Tick repeats what was not answered.
func (c *Courier) Tick(now time.Time) {
	c.outgoing = slices.DeleteFunc(c.outgoing, func(o *outgoing) bool {
		return o.round >= maxRounds && !now.Before(o.next)
	})
	for _, o := range c.outgoing {
		if !now.Before(o.next) {
			c.round(o, now)
		}
	}
}

// round sends a message to addresses that have proved themselves, and a HELLO to
// the others.
func (c *Courier) round(o *outgoing, now time.Time) {
	c.turn(now)
	again := o.round > 0
	o.next = now.Add(firstRound << o.round)
	o.round++
	o.sent = o.sent[:0]
	for _, a := range o.to {
		w := c.way(wayKey{o.peer, a}, now)
		// What is not answered may have been refused: the peer forgets its cookies in a
		// restart.
		if w.proved(now) && (!again || !w.got.Before(o.born)) {
			c.pieces(o, a, w)
			continue
		}
		if w.asked.IsZero() || now.Sub(w.asked) >= helloLife {
			c.cfg.random(w.token[:])
		}
		w.asked = now
		b := handshakeHeader(kindHello)
		b = append(b, w.token[:]...)
		mac1 := shortMAC(o.macKey[:], b)
		c.send(a, append(b, mac1[:]...))
	}
}

// way returns what is known of an address; of too many the one that was not used
// for longest goes.
func (c *Courier) way(k wayKey, now time.Time) *way {
	w := c.ways[k]
	if w == nil {
		if len(c.ways) >= maxWays {
			var oldest wayKey
			at := now
			for k, w := range c.ways {
				if !w.used.After(at) {
					oldest, at = k, w.used
				}
			}
			delete(c.ways, oldest)
		}
		w = &way{}
		c.ways[k] = w
	}
	w.used = now
	return w
}

// pieces sends a message to an address of which there is a cookie, unless this
// round has copies enough.
func (c *Courier) pieces(o *outgoing, a Addr, w *way) {
	if len(o.sent) >= maxCopies || slices.Contains(o.sent, a) {
		return
	}
	o.sent = append(o.sent, a)
	own := c.cookie(a.Remote, 0)
	msg := slices.Concat(c.cfg.ID[:], own[:], o.body)
	for _, body := range wire.Split(o.id, msg) {
		b := append(handshakeHeader(kindPiece), body...)
		mac1 := shortMAC(o.macKey[:], b)
		b = append(b, mac1[:]...)
		mac2 := shortMAC(w.cookie[:], b)
		c.send(a, append(b, mac2[:]...))
	}
}

func (c *Courier) send(to Addr, b []byte) { c.out = append(c.out, Datagram{To: to, B: b}) }

func handshakeHeader(kind uint64) []byte {
	b := make([]byte, wire.HeaderLen, maxDatagram)
	(&wire.Header{Type: wire.TypeHandshake, Counter: kind}).Put(b)
	return b
}

// turn changes the secret of the cookies when it is time.
func (c *Courier) turn(now time.Time) {
	switch age := now.Sub(c.turned); {
	case c.turned.IsZero() || age >= 2*cookieTurn:
		c.cfg.random(c.secrets[1][:])
	case age >= cookieTurn:
		c.secrets[1] = c.secrets[0]
	default:
		return
	}
	c.cfg.random(c.secrets[0][:])
	c.turned = now
}

// cookie is what an address can only know if it receives what is sent to it.
func (c *Courier) cookie(remote netip.AddrPort, turn int) [cookieLen]byte {
	ip := remote.Addr().Unmap().As16()
	return shortMAC(c.secrets[turn][:], ip[:], binary.BigEndian.AppendUint16(nil, remote.Port()))
}
