// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the draft's algorithm; STUN's own integrity is HMAC-SHA1 as well
	"encoding/base64"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// Credentials let one node use the server for a while
// (draft-uberti-behave-turn-rest-00). They are secret.
type Credentials struct {
	// URLs are TURN URIs (RFC 7065).
	URLs []string
	// Username is the Unix time of the expiry, a colon and the PeerID, in full: a
	// short form would have to be looked up, and two nodes could share it.
	Username string
	// Password is base64(HMAC-SHA1(key, Username)).
	Password string
	Expires  time.Time
}

// Credentials returns credentials for a node that the caller knows to be admitted.
func (s *Server) Credentials(id identity.PeerID) Credentials {
	exp := time.Now().Add(s.cfg.Lifetime).Truncate(time.Second)
	user := strconv.FormatInt(exp.Unix(), 10) + ":" + id.String()
	return Credentials{URLs: s.urls, Username: user, Password: password(s.cfg.Key, user), Expires: exp}
}

func password(key []byte, user string) (pw string) {
	fips.Unapproved(func() {
		m := hmac.New(sha1.New, key)
		m.Write([]byte(user))
		pw = base64.StdEncoding.EncodeToString(m.Sum(nil))
	})
	return pw
}

var errUsername = errors.New("username is none that this server made")

// parseUsername reads a username. That it was made here only the message's
// integrity proves.
func parseUsername(user string) (identity.PeerID, time.Time, error) {
	exp, peer, ok := strings.Cut(user, ":")
	sec, err := strconv.ParseInt(exp, 10, 64)
	if !ok || err != nil || len(exp) > 12 || exp != strconv.FormatInt(sec, 10) {
		return identity.PeerID{}, time.Time{}, errUsername
	}
	id, err := identity.ParsePeerID(peer)
	if err != nil || id.String() != peer {
		return identity.PeerID{}, time.Time{}, errUsername
	}
	return id, time.Unix(sec, 0), nil
}

// uri returns a TURN URI for host, which is a name or an address, and the port of
// the socket.
func uri(host string, port uint16) string {
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	return "turn:" + host + ":" + strconv.Itoa(int(port)) + "?transport=udp"
}
