// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/bauxite-mesh/bauxite/edge/internal/local"
)

// Columns are cut so that a table fits in 100.
const (
	nameWidth   = 16
	uplinkWidth = 9
	remoteWidth = 21 // an IPv4 address with its port
)

// writePeers writes a row for each peer, with the path that Critical uses, and below
// it one for each other path that can carry.
func (a *App) writePeers(b *strings.Builder, peers []local.Peer) {
	if len(peers) == 0 {
		b.WriteString("no peers yet: join another machine to this mesh\n")
		return
	}
	peers = slices.Clone(peers)
	sort.Slice(peers, func(i, j int) bool { return peers[i].Name < peers[j].Name })
	rows := [][]string{{"PEER", "VIRTUAL IP", "PATH", "VIA", "REMOTE", "RTT", "LOSS", "CIPHER", "STATE"}}
	for i := range peers {
		p := &peers[i]
		r := []string{clip(p.Name, nameWidth), p.VirtualIP, orElse(p.Path.Type, "none"), "-", "-", "-", "-", cipher(p.Cipher), state(p)}
		main := -1
		if p.Path.Type != "none" && p.Path.Type != "" {
			r[4], r[5] = remote(&local.Way{Kind: p.Path.Type, Remote: p.Path.Remote}, remoteWidth), rtt(p.Path.RTTMS)
			main = slices.IndexFunc(p.Paths, func(w local.Way) bool { return w.Kind == p.Path.Type && w.Remote == p.Path.Remote })
			if main >= 0 {
				r[3], r[6] = clip(orElse(p.Paths[main].Uplink, "-"), uplinkWidth), share(p.Paths[main].Loss)
			}
		}
		rows = append(rows, r)
		for j := range p.Paths {
			if w := &p.Paths[j]; j != main && w.Carries() {
				rows = append(rows, []string{
					"", "", w.Kind, clip(orElse(w.Uplink, "-"), uplinkWidth), remote(w, remoteWidth), rtt(w.RTTMS), share(w.Loss), "", onlySuspect(w),
				})
			}
		}
	}
	rows = without(without(rows, "VIA"), "LOSS")
	a.table(b, rows, func(_, col int, cell string) string {
		if col == 2 {
			return a.kind(cell)
		}
		return cell
	})
	for _, p := range peers {
		if p.Path.Reason != "" && (p.Path.Type == "none" || p.Path.Type == "") {
			fmt.Fprintf(b, "%s: no path: %s\n", p.Name, oneLine(p.Path.Reason))
		}
	}
}

// remote is where a path leads; the hub's stream has no address that says anything.
func remote(w *local.Way, width int) string {
	if w.Kind == "hub-relay" {
		return "-"
	}
	return clip(orElse(w.Remote, "-"), width)
}

func onlySuspect(w *local.Way) string {
	if w.State == "suspect" {
		return w.State
	}
	return ""
}

// kind colours the name of a kind of path, which may be padded.
func (a *App) kind(cell string) string {
	switch strings.TrimSpace(cell) {
	case "direct":
		return a.paint(a.Stdout, green, cell)
	case "turn", "peer-relay", "hub-relay":
		return a.paint(a.Stdout, yellow, cell)
	}
	return cell
}

// writePaths writes all paths to a peer.
func (a *App) writePaths(b *strings.Builder, p *local.Peer) {
	head := []string{a.paint(a.Stdout, bold, p.Name), p.VirtualIP, state(p)}
	if p.Cipher != "" {
		head = append(head, cipher(p.Cipher))
	}
	b.WriteString(strings.Join(append(head, keys(&p.Keys)), "  ") + "\n")
	if len(p.Paths) == 0 {
		fmt.Fprintf(b, "  no path: %s\n", orElse(oneLine(p.Path.Reason), "none was asked for yet; bauxite connect "+p.Name+" does"))
		return
	}
	rows := [][]string{{"  KIND", "VIA", "REMOTE", "STATE", "RTT", "LOSS", "MTU", "LANES", "SINCE"}}
	for i := range p.Paths {
		w := &p.Paths[i]
		mtu, since := "-", "-"
		if w.MTU > 0 {
			mtu = fmt.Sprint(w.MTU)
		}
		if !w.Since.IsZero() {
			since = span(max(time.Since(w.Since), 0))
		}
		rows = append(rows, []string{
			"  " + w.Kind, clip(orElse(w.Uplink, "-"), uplinkWidth), remote(w, 2*remoteWidth-12), w.State,
			rtt(w.RTTMS), share(w.Loss), mtu, lanes(w.Lanes), since,
		})
	}
	rows = without(rows, "VIA")
	states := slices.Index(rows[0], "STATE")
	a.table(b, rows, func(_, col int, cell string) string {
		switch {
		case col == 0:
			return a.kind(cell)
		case col == states && strings.HasPrefix(cell, "valid"):
			return a.paint(a.Stdout, green, cell)
		case col == states && strings.HasPrefix(cell, "suspect"):
			return a.paint(a.Stdout, yellow, cell)
		}
		return cell
	})
	for i := range p.Paths {
		if w := &p.Paths[i]; w.Pacing != nil && w.Carries() {
			fmt.Fprintf(b, "  %s: %s\n", via(w), paced(w.Pacing))
		}
	}
	carries := slices.ContainsFunc(p.Paths, func(w local.Way) bool { return w.Carries() })
	for i := range p.Paths {
		// Of what is in use there is nothing to explain, and while something carries
		// nobody asks after what does not.
		w := &p.Paths[i]
		if w.Reason == "" || len(w.Lanes) > 0 || carries && !w.Carries() {
			continue
		}
		name := via(w)
		if r := remote(w, 64); r != "-" {
			name += " to " + r
		}
		fmt.Fprintf(b, "  %s: %s\n", name, oneLine(w.Reason))
	}
}

// via names a path in a sentence.
func via(w *local.Way) string {
	if w.Uplink != "" {
		return w.Kind + " via " + w.Uplink
	}
	return w.Kind
}

// keys says how old the keys are and how often they were replaced.
func keys(k *local.Keys) string {
	if k.Since.IsZero() {
		return "no keys"
	}
	s := "keys " + span(max(time.Since(k.Since), 0)) + " old"
	if k.Rekeys > 0 {
		s += ", " + plural(k.Rekeys, "in-band rekey")
	}
	if k.Handshakes > 0 {
		s += ", " + plural(k.Handshakes, "handshake")
	}
	return s
}

// lanes shortens the names of lanes to their first letters.
func lanes(names []string) string {
	var s []byte
	for _, n := range []string{"critical", "telemetry", "bulk"} {
		if slices.Contains(names, n) {
			s = append(s, n[0]-'a'+'A')
		}
	}
	return orElse(string(s), "-")
}

// cipher shortens the name: in a table of 80 columns the tag's algorithm says
// nothing, since each cipher comes with one.
func cipher(name string) string {
	switch name {
	case "":
		return "-"
	case "chacha20poly1305":
		return "chacha20"
	case "aes256gcm":
		return "aes256"
	}
	return name
}

func state(p *local.Peer) string {
	switch {
	case p.State != "":
		return p.State
	case p.Online:
		return "online"
	}
	return "-"
}
