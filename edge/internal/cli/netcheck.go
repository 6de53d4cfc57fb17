// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/hub"
	"github.com/bauxite-mesh/bauxite/edge/internal/config"
	"github.com/bauxite-mesh/bauxite/edge/internal/home"
	"github.com/bauxite-mesh/bauxite/edge/internal/local"
	"github.com/bauxite-mesh/bauxite/edge/internal/netcheck"
)

func (a *App) netcheckCommand() *cli.Command {
	return &cli.Command{
		Name: "netcheck", Usage: "find out what the network lets through", UsageText: "bauxite netcheck [--json]",
		Description: "Asks STUN servers from each interface, and bauxite run, where it runs, about the\n" +
			"hub, TURN and relays. Nothing is changed. The exit code is 42 where the hub cannot\n" +
			"be reached, no interface has an address, or UDP is blocked.\n\n" +
			"A NAT is endpoint-independent, which lets peers meet directly, or symmetric: two\n" +
			"such peers need a relay. It takes two STUN servers to tell them apart.\n\n" +
			"Example, for a monitor:\n  bauxite netcheck --json | jq -e '.ok and .udp == \"works\"'",
		Flags:  []cli.Flag{jsonFlag()},
		Action: a.netcheck,
	}
}

// netReport is what netcheck found. Its JSON form is stable.
type netReport struct {
	OK bool `json:"ok"`
	// Problems are what keeps the mesh from working, Warnings what makes it worse.
	Problems []string `json:"problems"`
	Warnings []string `json:"warnings"`
	// Daemon tells whether bauxite run was there to be asked.
	Daemon  bool        `json:"daemon"`
	Hub     netHub      `json:"hub"`
	Uplinks []netUplink `json:"uplinks"`
	// UDP is works, blocked or unknown, which it is without STUN servers. It works
	// where a server answers or packets reach a peer.
	UDP string `json:"udp"`
	// NAT is the worst of all interfaces.
	NAT string `json:"nat,omitempty"`
	// TURN and HubRelay are nil where nobody was there to be asked.
	TURN     *netTURN  `json:"turn"`
	HubRelay *netRelay `json:"hub_relay"`
	MTU      netMTU    `json:"mtu"`

	udpPaths int // to peers, that carry
}

type netHub struct {
	URL       string `json:"url"`
	Reachable bool   `json:"reachable"`
	Error     string `json:"error,omitempty"`
}

type netUplink struct {
	Name      string           `json:"name"`
	Addresses []string         `json:"addresses"`
	Metered   bool             `json:"metered"`
	Spent     bool             `json:"spent"`
	Checks    []netcheck.Check `json:"checks"`
}

type netTURN struct {
	Available bool     `json:"available"`
	Servers   []string `json:"servers"`
	Error     string   `json:"error,omitempty"`
}

type netRelay struct {
	Available bool `json:"available"`
}

type netMTU struct {
	Tun int `json:"tun"`
	// PathMin and PathMax are the largest datagrams that pass on the paths in use, in
	// bytes of UDP payload; 0 means that none is known.
	PathMin int `json:"path_min"`
	PathMax int `json:"path_max"`
}

func (a *App) netcheck(c *cli.Context) error {
	if err := nargs(c, 0, 0); err != nil {
		return err
	}
	dir, err := homeDir(c)
	if err != nil {
		return err
	}
	if !home.Joined(dir) {
		return fmt.Errorf("%w: no %s in %s", home.ErrNotJoined, home.ConfigFile, dir)
	}
	cfg, err := config.Load(filepath.Join(dir, home.ConfigFile))
	if err != nil {
		return err
	}
	r := &netReport{Problems: []string{}, Warnings: []string{}, Hub: netHub{URL: cfg.Hub.URL}, MTU: netMTU{Tun: cfg.TunMTU()}}
	if err := r.gather(c.Context, cfg, filepath.Join(dir, home.SocketFile)); err != nil {
		return err
	}
	if err := c.Err(); err != nil {
		return err // what was cut off says nothing
	}
	r.judge(cfg.STUN())
	if c.Bool("json") {
		raw, err := json.Marshal(r)
		if err != nil {
			return err
		}
		if err := a.printJSON(raw); err != nil {
			return err
		}
	} else {
		var b strings.Builder
		a.writeNetcheck(&b, r)
		if _, err := a.Stdout.Write([]byte(b.String())); err != nil {
			return err
		}
		for _, w := range r.Warnings {
			fmt.Fprintf(a.Stderr, "bauxite: %s %s\n", a.paint(a.Stderr, yellow, "warning:"), oneLine(w))
		}
	}
	if !r.OK {
		return fmt.Errorf("%w: %s", errNetwork, strings.Join(r.Problems, "; "))
	}
	return nil
}

// gather asks the daemon, or what it can do itself, and the STUN servers.
func (r *netReport) gather(ctx context.Context, cfg *config.Config, socket string) error {
	cl := local.NewClient(socket)
	defer cl.Close()
	raw, err := cl.StatusJSON(ctx)
	switch {
	case err == nil:
		if err := r.askDaemon(ctx, cl, raw); err != nil {
			return err
		}
	case errors.Is(err, local.ErrNotRunning):
		r.askHub(ctx, cfg)
	default:
		return err
	}
	if len(r.Uplinks) == 0 {
		if err := r.listUplinks(cfg); err != nil {
			return err
		}
	}
	in := netcheck.Config{Servers: cfg.STUN()}
	for _, u := range r.Uplinks {
		n := netcheck.Uplink{Name: u.Name}
		for _, s := range u.Addresses {
			if addr, err := netip.ParseAddr(s); err == nil {
				n.Addresses = append(n.Addresses, addr)
			}
		}
		in.Uplinks = append(in.Uplinks, n)
	}
	for _, found := range netcheck.Run(ctx, in) {
		i := slices.IndexFunc(r.Uplinks, func(u netUplink) bool { return u.Name == found.Uplink })
		r.Uplinks[i].Checks = append(r.Uplinks[i].Checks, found)
	}
	return nil
}

func (r *netReport) askDaemon(ctx context.Context, cl *local.Client, raw []byte) error {
	var st local.Status
	if err := json.Unmarshal(raw, &st); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	o, err := cl.CheckHub(ctx)
	if err != nil {
		return err
	}
	r.Daemon = true
	r.Hub.Reachable, r.Hub.Error = o.Connected, o.Error
	r.TURN = &netTURN{Available: len(o.TurnServers) > 0, Servers: append([]string{}, o.TurnServers...), Error: o.TurnError}
	r.HubRelay = &netRelay{Available: o.RelayOpen}
	if st.Node.MTU > 0 {
		r.MTU.Tun = st.Node.MTU
	}
	for _, p := range st.Peers {
		for _, w := range p.Paths {
			if w.Carries() && w.Kind == "direct" {
				r.udpPaths++
			}
			if w.MTU > 0 && w.Carries() {
				if r.MTU.PathMin == 0 || w.MTU < r.MTU.PathMin {
					r.MTU.PathMin = w.MTU
				}
				r.MTU.PathMax = max(r.MTU.PathMax, w.MTU)
			}
		}
	}
	for _, u := range st.Node.Uplinks {
		r.Uplinks = append(r.Uplinks, netUplink{Name: u.Name, Addresses: append([]string{}, u.Addresses...), Metered: u.Metered, Spent: u.Spent, Checks: []netcheck.Check{}})
	}
	return nil
}

// askHub opens a connection to the hub, or to the proxy that leads to it. That is
// all that can be done without the node's key.
func (r *netReport) askHub(ctx context.Context, cfg *config.Config) {
	err := func() error {
		u, err := hub.ParseURL(cfg.Hub.URL)
		if err != nil {
			return err
		}
		proxyOf, err := config.ParseProxy(cfg.Hub.Proxy)
		if err != nil {
			return err
		}
		target := u
		if proxyOf != nil {
			switch p, err := proxyOf(&http.Request{URL: u}); {
			case err != nil:
				return fmt.Errorf("pick a proxy: %w", err)
			case p != nil:
				target = p
			}
		}
		port := target.Port()
		if port == "" {
			port = map[string]string{"http": "80"}[target.Scheme]
		}
		d := net.Dialer{Timeout: 5 * time.Second}
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(target.Hostname(), orElse(port, "443")))
		if err != nil {
			return err
		}
		return conn.Close()
	}()
	r.Hub.Reachable = err == nil
	if err != nil {
		r.Hub.Error = err.Error()
	}
}

// listUplinks looks at the interfaces itself, by the rules of config.toml.
func (r *netReport) listUplinks(cfg *config.Config) error {
	rule := func(name string) (config.Uplink, bool) {
		for _, u := range cfg.Uplinks {
			if ok, err := path.Match(u.Name, name); err == nil && ok {
				return u, true
			}
		}
		return config.Uplink{}, false
	}
	found, err := netcheck.System(func(name string) bool {
		u, _ := rule(name)
		return u.Ignore || name == cfg.TunName()
	})
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, f := range found {
		u, _ := rule(f.Name)
		n := netUplink{Name: f.Name, Addresses: []string{}, Metered: u.Metered, Checks: []netcheck.Check{}}
		for _, addr := range f.Addresses {
			n.Addresses = append(n.Addresses, addr.String())
		}
		r.Uplinks = append(r.Uplinks, n)
	}
	return nil
}

// natOrder is from the best to the worst.
var natOrder = []string{"", netcheck.None, netcheck.EndpointIndependent, netcheck.Unknown, netcheck.Symmetric}

// judge sums up.
func (r *netReport) judge(servers []string) {
	problem := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	warn := func(format string, args ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...)) }
	if !r.Hub.Reachable {
		problem("the hub is not reachable: %s", orElse(r.Hub.Error, "no connection yet"))
	}
	answered := 0
	for _, u := range r.Uplinks {
		for i := range u.Checks {
			c := &u.Checks[i]
			if c.Answered() {
				answered++
			} else if c.Error == "" && len(c.Answers) > 0 {
				warn("%s: no STUN server answers %s", u.Name, c.Local)
			}
			if slices.Index(natOrder, c.NAT) > slices.Index(natOrder, r.NAT) {
				r.NAT = c.NAT
			}
		}
	}
	switch {
	case len(r.Uplinks) == 0:
		r.UDP = "unknown"
		problem("no interface with an address leads anywhere")
	case len(servers) == 0:
		r.UDP = "unknown"
		warn("config.toml names no STUN servers, so nothing can be said about UDP and NAT")
	case answered > 0:
		r.UDP = "works"
	case r.udpPaths > 0:
		r.UDP = "works"
		warn("peers are reached by UDP, but no STUN server answers: they are away")
	default:
		r.UDP = "blocked"
		problem("UDP is blocked, or no STUN server is reachable")
	}
	if r.NAT == netcheck.Symmetric {
		warn("a symmetric NAT: peers behind another one are reached over a relay")
	}
	if r.UDP == "blocked" && r.HubRelay != nil && r.HubRelay.Available {
		warn("the hub carries all traffic meanwhile")
	}
	r.OK = len(r.Problems) == 0
}

func (a *App) writeNetcheck(b *strings.Builder, r *netReport) {
	row := func(key, value string) {
		fmt.Fprintf(b, "%s %s\n", a.paint(a.Stdout, grey, fmt.Sprintf("%-6s", key)), value)
	}
	good := func(ok bool, yes, no string) string {
		if ok {
			return a.paint(a.Stdout, green, yes)
		}
		return a.paint(a.Stdout, red, no)
	}
	row("hub", good(r.Hub.Reachable, "reachable", "not reachable")+"  "+r.Hub.URL)
	udp := good(r.UDP == "works", r.UDP, r.UDP)
	if r.NAT != "" {
		udp += "  NAT " + r.NAT
	}
	row("udp", udp)
	switch {
	case r.TURN == nil:
		row("turn", "not known while bauxite run is not running")
	case r.TURN.Available:
		row("turn", strings.Join(r.TURN.Servers, "  "))
	default:
		row("turn", orElse(oneLine(r.TURN.Error), "the hub offers none"))
	}
	if r.HubRelay == nil {
		row("relay", "not known while bauxite run is not running")
	} else {
		row("relay", good(r.HubRelay.Available, "the hub carries packets", "the hub carries no packets now"))
	}
	mtu := fmt.Sprintf("%d inside", r.MTU.Tun)
	switch {
	case r.MTU.PathMax == 0:
	case r.MTU.PathMin == r.MTU.PathMax:
		mtu += fmt.Sprintf(", paths carry datagrams of %d", r.MTU.PathMax)
	default:
		mtu += fmt.Sprintf(", paths carry datagrams of %d to %d", r.MTU.PathMin, r.MTU.PathMax)
	}
	row("mtu", mtu)
	for _, u := range r.Uplinks {
		b.WriteByte('\n')
		marks := ""
		if u.Metered {
			marks += "  " + a.paint(a.Stdout, yellow, "metered")
		}
		if u.Spent {
			marks += "  " + a.paint(a.Stdout, red, "budget spent")
		}
		fmt.Fprintf(b, "%s%s\n", a.paint(a.Stdout, bold, u.Name), marks)
		for i := range u.Checks {
			a.writeCheck(b, &u.Checks[i])
		}
	}
}

func (a *App) writeCheck(b *strings.Builder, c *netcheck.Check) {
	nat := "no answer"
	switch c.NAT {
	case "":
		if len(c.Answers) == 0 {
			nat = "no STUN server for this family"
		}
	case netcheck.None:
		nat = "no NAT"
	case netcheck.Unknown:
		nat = "NAT of unknown kind"
	default:
		nat = "NAT " + c.NAT
	}
	if c.Error != "" {
		nat = oneLine(c.Error)
	}
	fmt.Fprintf(b, "  %s  %s\n", c.Local, nat)
	rows := [][]string{{"    SERVER", "SEEN AS", "RTT"}}
	for _, ans := range c.Answers {
		rows = append(rows, []string{"    " + clip(ans.Server, 36), orElse(ans.Mapped, oneLine(ans.Error)), rtt(ans.RTT)})
	}
	if len(rows) > 1 {
		a.table(b, rows, nil)
	}
}
