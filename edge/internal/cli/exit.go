// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/tun"
	"github.com/bauxite-mesh/bauxite/edge/internal/config"
	"github.com/bauxite-mesh/bauxite/edge/internal/daemon"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	"github.com/bauxite-mesh/bauxite/edge/internal/join"
	"github.com/bauxite-mesh/bauxite/edge/internal/local"
)

var (
	errUsage   = errors.New("usage")
	errNoPath  = errors.New("no path")
	errNetwork = errors.New("the network does not let the mesh work")
	errDecline = errors.New("nothing was changed")
)

// exit is one way to end. The codes are promised to scripts: they never change
// their meaning.
type exit struct {
	code int
	errs []error
	mean string
	hint string
}

const fipsHint = "take fips140 out of GODEBUG; if it is not there, the program was built wrongly: GOFIPS140=" + fips.Module + " go build -tags bauxite_fips"

// exits is searched in order; the first whose error matches wins.
var exits = []exit{
	{2, []error{errUsage}, "the command line is wrong", ""},
	{10, []error{identity.ErrToken}, "join: the token is malformed", "copy the whole token, from bxt1. to its last character"},
	{11, []error{join.ErrTokenUnknown}, "join: the hub does not know the token", "check that token and hub belong together, or ask for a new token: bauxite-dispatch token create"},
	{12, []error{join.ErrTokenExpired}, "join: the token has expired", "ask for a new token: bauxite-dispatch token create"},
	{13, []error{join.ErrTokenUsedUp}, "join: the token is used up", "ask for a new token: bauxite-dispatch token create"},
	{14, []error{join.ErrTokenRevoked}, "join: the token was revoked", "ask the hub's operator why, and for a new token"},
	{15, []error{join.ErrTokenForeign}, "join: the token belongs to another mesh", "use the hub URL that came with the token"},
	{16, []error{join.ErrPin}, "join: the server is not the hub that the token names (wrong pin)", "check the hub URL; if it is right, something between here and the hub intercepts TLS: do not join through it"},
	{17, []error{join.ErrUnreachable}, "join: the hub is unreachable", "check the hub URL and that TCP to its port is open from here"},
	{18, []error{home.ErrExists}, "join: an identity exists already", "to replace it for good run the same command with --force"},
	{19, []error{home.ErrUnwritable}, "join: the home directory is not writable", "run as a user who may write there, or choose another place with --home"},
	{20, []error{join.ErrAnswer}, "join: the hub's answer is not valid", "update bauxite and bauxite-dispatch to the same version; if that does not help, do not trust this hub"},
	{21, []error{join.ErrInterrupted}, "join: the hub did not answer; the same command continues", "run the same command again: it continues with the same keys and does not use the token twice"},
	{22, []error{join.ErrNoPSK}, "join: the pre-shared key must come from a file", "get the file from the operator and run the same command with --psk-file FILE"},
	{23, []error{join.ErrName}, "join: the node name cannot be had", "choose another one with --name"},
	{24, []error{join.ErrRefused}, "join: the hub refused for another reason", "ask the hub's operator, who finds the reason in the hub's log"},
	{25, []error{join.ErrPending}, "join: the node waits for approval; the same command goes on", "let an administrator approve it on the hub with: bauxite-dispatch node approve NAME; then run the same command again"},
	{26, []error{join.ErrCSRRequired}, "join: the token wants nodes that make their own key", "run the same command without --hub-key"},
	{30, []error{home.ErrNotJoined}, "this machine has not joined", "run: bauxite join TOKEN HUB_URL"},
	{31, []error{home.ErrInUse}, "the home directory is in use by another process", "stop the running bauxite first, or choose another place with --home"},
	{32, []error{config.ErrConfig}, "config.toml is wrong", "mend config.toml at the place that is named"},
	{33, []error{home.ErrIdentity, home.ErrPSK, identity.ErrExposed, home.ErrExpired}, "the identity is unusable: keys, certificates, permissions", "mend what is named, or join again with --force"},
	{34, []error{tun.ErrBusy}, "run: the network interface cannot be made", "another program has that interface: choose another name with --tun NAME"},
	{34, []error{daemon.ErrTun}, "run: the network interface cannot be made", "run as root or with CAP_NET_ADMIN, or without an interface: bauxite run --tun none"},
	{35, []error{local.ErrNotRunning}, "bauxite run is not running", "start it: bauxite run"},
	{36, []error{local.ErrDenied}, "the socket of bauxite run refuses this user", "run as the user who started bauxite, or as root"},
	{37, []error{hub.ErrRevoked}, "run: the hub has revoked this node", "ask the hub's operator; with a new token the machine can join again: bauxite join --force TOKEN HUB_URL"},
	{38, []error{hub.ErrRecoveryExhausted}, "run: the certificate has expired, and the hub recovers this node no more", "ask the hub's operator to allow it: bauxite-dispatch node approve NAME"},
	{39, []error{hub.ErrCloneSuspected}, "run: the hub has locked this node, because its identity seems to have been copied", "make sure that no other machine uses this identity, then let the hub's operator unlock it: bauxite-dispatch node approve NAME"},
	{33, []error{hub.ErrRecoveryRefused}, "the identity is unusable: keys, certificates, permissions", "ask the hub's operator whether the node was deleted, or join again with --force"},
	{40, []error{errNoPath, local.ErrNoPath}, "connect, ping: no path to the peer", "bauxite status shows the reason for each peer"},
	{41, []error{local.ErrNoPeer, local.ErrAmbiguous}, "connect, paths, ping, policy: no such peer, or more than one", "list them: bauxite peers"},
	{42, []error{errNetwork}, "netcheck: hub not reachable, no interface, or UDP blocked", "bauxite netcheck shows each interface; open UDP to the STUN servers and TCP to the hub"},
	{43, []error{errPolicy}, "policy why: the flow is denied", ""},
	{50, []error{fips.ErrModule}, "this FIPS build does not run on the certified module in FIPS mode", fipsHint},
	{2, []error{hub.ErrURL}, "the command line is wrong", "the hub URL looks like https://hub.example:8440"},
	{2, []error{join.ErrProxy}, "the command line is wrong", "the proxy looks like http://proxy.example:3128; a password belongs into HTTPS_PROXY or config.toml"},
	{2, []error{local.ErrRequest}, "the command line is wrong", "bauxite help"},
	{130, []error{context.Canceled}, "interrupted", ""},
}

// usagef returns an error of the command line.
func usagef(format string, a ...any) error {
	return &usageError{fmt.Sprintf(format, a...)}
}

type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }
func (e *usageError) Unwrap() error { return errUsage }

// verdict returns the exit code of err and a hint, which may be empty.
func verdict(err error) (code int, hint string) {
	for _, e := range exits {
		for _, target := range e.errs {
			if errors.Is(err, target) {
				return e.code, e.hint
			}
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return 1, "run as the user who owns the home directory, or as root"
	}
	return 1, ""
}

// exitTable is the help text about exit codes.
func exitTable() string {
	var b strings.Builder
	b.WriteString("  0  success\n  1  any other error\n")
	seen := make(map[int]bool)
	for _, e := range exits {
		if !seen[e.code] {
			fmt.Fprintf(&b, "%3d  %s\n", e.code, e.mean)
		}
		seen[e.code] = true
	}
	return b.String()
}
