// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

type userRow struct {
	Name    string     `json:"name"`
	Role    string     `json:"role"`
	Version uint64     `json:"version"`
	Created *time.Time `json:"created"`
	Keys    uint32     `json:"keys"`
}

type userList struct {
	Users []userRow `json:"users"`
}

type userOne struct {
	User userRow `json:"user"`
}

type whoAmI struct {
	Actor       string   `json:"actor"`
	Role        string   `json:"role"`
	Permissions []string `json:"permissions"`
}

type ownerLink struct {
	Link    string     `json:"link"`
	Expires *time.Time `json:"expires"`
}

func userRowOf(u *dispatchv1.User) userRow {
	return userRow{u.GetName(), u.GetRole(), u.GetVersion(), when(u.GetCreated()), u.GetKeys()}
}

func rolesText() string {
	var s []string
	for _, r := range authz.Roles() {
		s = append(s, string(r))
	}
	return strings.Join(s, ", ")
}

func userCommand() *cli.Command {
	version := &cli.Uint64Flag{Name: "version", Usage: "only where the user's version is still `N` (default: that of now)"}
	return &cli.Command{
		Name: "user", Usage: "the people and programs that may administer the hub",
		Description: "Roles: " + rolesText() + ". Nobody gives away more than he may do himself.",
		Subcommands: []*cli.Command{
			{
				Name: "claim", Usage: "become the first owner with the one-time link", ArgsUsage: "LINK|-", Args: true,
				Description: describe(`The hub prints the link at its first start; user link makes another one. With -
it is read from standard input, where neither the shell's history nor the list of
processes shows it. The key is written to --key-file, together with the URL of the
hub and the pin of its certificate, so that later commands need neither.`, userOne{},
					"user claim - --name alice < link.txt",
					"user claim 'https://hub.example.org:8441/#claim=…' --name alice"),
				Flags: hubFlags(
					&cli.StringFlag{Name: "name", Usage: "your `NAME` on the hub (default: that on this machine)"},
					&cli.StringFlag{Name: "link-file", Usage: "read the link from `FILE`"}, forceFlag()),
				Action: claimOwner,
			},
			{
				Name: "list", Usage: "list the users", Description: describe("", userList{}, "user list --data ./hub"),
				Flags: hubFlags(), Action: listUsers,
			},
			{
				Name: "create", Usage: "make a user", ArgsUsage: "NAME", Args: true,
				Description: describe("A user does nothing before he has a key: see key create.", userOne{},
					"user create --data ./hub bob --role operator"),
				Flags:  hubFlags(&cli.StringFlag{Name: "role", Usage: "`ROLE`: " + rolesText()}),
				Action: createUser,
			},
			{
				Name: "role", Usage: "change a user's role", ArgsUsage: "NAME ROLE", Args: true,
				Description: describe("It holds at once, for all keys of the user.", userOne{}, "user role --data ./hub bob admin"),
				Flags:       hubFlags(version), Action: setRole, BashComplete: completeWith(userNames),
			},
			{
				Name: "delete", Usage: "delete a user with all keys", ArgsUsage: "NAME", Args: true,
				Description: describe("", nil, "user delete --data ./hub bob"),
				Flags:       hubFlags(version), Action: deleteUser, BashComplete: completeWith(userNames),
			},
			{
				Name: "link", Usage: "make a one-time link that makes its bearer an owner",
				Description: describe("Only on the hub's machine. It is good for 24 hours; older links are void.", ownerLink{}, "user link --data ./hub"),
				Flags:       hubFlags(), Action: createLink,
			},
			{
				Name: "whoami", Usage: "show who the hub thinks that you are, and what you may do",
				Description: describe("", whoAmI{}, "user whoami --hub https://hub.example.org:8441"),
				Flags:       hubFlags(), Action: showMe,
			},
		},
	}
}

// claim is an owner link: where, what with, and how to know the hub.
type claim struct{ hub, secret, pin string }

// parseLink reads "https://HOST:PORT/#claim=<secret>[.<pin>]". The errors do not
// repeat it.
func parseLink(text string) (claim, error) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return claim{}, usagef("user claim: that is no owner link: it begins with https:// and holds #claim=")
	}
	rest, ok := strings.CutPrefix(u.Fragment, "claim=")
	secret, pin, _ := strings.Cut(rest, ".")
	if !ok || !authz.ValidSecret(secret) {
		return claim{}, usagef("user claim: the owner link is not complete: copy it to its last character")
	}
	return claim{"https://" + u.Host, secret, pin}, nil
}

func readLink(c *cli.Context) (claim, error) {
	var text string
	switch arg := c.Args().First(); {
	case c.NArg() > 1:
		return claim{}, usagef("user claim: unexpected argument %q", c.Args().Get(1))
	case c.String("link-file") != "" && arg == "":
		b, err := os.ReadFile(c.String("link-file"))
		if err != nil {
			return claim{}, fmt.Errorf("read owner link: %w", err)
		}
		text = string(b)
	case arg == "-":
		b, err := io.ReadAll(io.LimitReader(c.App.Reader, 4096))
		if err != nil {
			return claim{}, fmt.Errorf("read owner link: %w", err)
		}
		text = string(b)
	case arg != "":
		text = arg
	default:
		return claim{}, usagef("user claim: LINK is missing; - reads it from standard input")
	}
	return parseLink(text)
}

func claimOwner(c *cli.Context) error {
	link, err := readLink(c)
	if err != nil {
		return err
	}
	name := c.String("name")
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = strings.ToLower(u.Username)
		}
	}
	if !identity.ValidName(name) {
		return usagef("user claim: choose a name with --name: lower-case letters, digits and hyphens")
	}
	file, err := keyFileName(c)
	if err != nil {
		return err
	}
	// Before the link is used up.
	if err := mayWrite(c, file); err != nil {
		return err
	}
	kf := keyFile{hub: link.hub, pin: link.pin}
	var h *hub
	if c.String("hub") == "" && c.String("data") == "" {
		t := target{url: link.hub, ca: c.String("ca"), pin: c.String("pin")}
		if t.ca == "" && t.pin == "" {
			t.pin = link.pin
		}
		h, err = t.open()
	} else {
		if to := c.String("hub"); to != "" {
			kf.hub = strings.TrimRight(to, "/")
		}
		h, err = openHub(c, false)
	}
	if err != nil {
		return err
	}
	defer h.close()
	if p := c.String("pin"); p != "" {
		kf.pin = p
	}
	ctx, cancel := context.WithTimeout(c.Context, callTimeout)
	defer cancel()
	res, err := h.access().ClaimOwner(ctx, &dispatchv1.ClaimOwnerRequest{Secret: link.secret, Name: name})
	if err != nil {
		return fmt.Errorf("claim owner link: %w", h.explain(err))
	}
	kf.key = res.GetKey()
	if err := kf.write(file); err != nil {
		// The link is used up: the key must not be lost with it.
		note(c, "the key could not be written to a file; keep it now, it is shown only here:\n%s", kf.key)
		return err
	}
	note(c, "you are the owner %s; the API key is in %s, and this works now:\n  bauxite-dispatch node list", res.GetUser().GetName(), file)
	if c.Bool("json") {
		return printJSON(c.App.Writer, userOne{userRowOf(res.GetUser())})
	}
	return nil
}

func listUsers(c *cli.Context) error {
	res, err := call(c, "list users", func(ctx context.Context, h *hub) (*dispatchv1.ListUsersResponse, error) {
		return h.access().ListUsers(ctx, &dispatchv1.ListUsersRequest{})
	})
	if err != nil {
		return err
	}
	out := userList{Users: []userRow{}}
	var rows [][]string
	for _, u := range res.GetUsers() {
		out.Users = append(out.Users, userRowOf(u))
		rows = append(rows, []string{u.GetName(), u.GetRole(), number(u.GetKeys()), local(u.GetCreated()), number(u.GetVersion())})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	return table(c.App.Writer, []string{"NAME", "ROLE", "KEYS", "SINCE", "VERSION"}, rows)
}

func printUser(c *cli.Context, u *dispatchv1.User, what string) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, userOne{userRowOf(u)})
	}
	note(c, "user %s %s %s", u.GetName(), what, u.GetRole())
	return nil
}

func createUser(c *cli.Context) error {
	name, err := oneArg(c, "NAME")
	if err != nil {
		return err
	}
	if c.String("role") == "" {
		return usagef("user create: --role is missing: %s", rolesText())
	}
	res, err := call(c, "create user "+name, func(ctx context.Context, h *hub) (*dispatchv1.CreateUserResponse, error) {
		return h.access().CreateUser(ctx, &dispatchv1.CreateUserRequest{Name: name, Role: c.String("role")})
	})
	if err != nil {
		return err
	}
	return printUser(c, res.GetUser(), "is made, role")
}

// userVersion is --version, or the version of now.
func userVersion(ctx context.Context, c *cli.Context, h *hub, name string) (uint64, error) {
	if c.IsSet("version") {
		return c.Uint64("version"), nil
	}
	res, err := h.access().ListUsers(ctx, &dispatchv1.ListUsersRequest{})
	if err != nil {
		return 0, err
	}
	for _, u := range res.GetUsers() {
		if u.GetName() == name {
			return u.GetVersion(), nil
		}
	}
	return 0, nil // the hub says that there is none
}

func setRole(c *cli.Context) error {
	args, err := nArgs(c, "NAME", "ROLE")
	if err != nil {
		return err
	}
	res, err := call(c, "change role of "+args[0], func(ctx context.Context, h *hub) (*dispatchv1.SetUserRoleResponse, error) {
		v, err := userVersion(ctx, c, h, args[0])
		if err != nil {
			return nil, err
		}
		return h.access().SetUserRole(ctx, &dispatchv1.SetUserRoleRequest{Name: args[0], Role: args[1], Version: v})
	})
	if err != nil {
		return err
	}
	return printUser(c, res.GetUser(), "now has the role")
}

func deleteUser(c *cli.Context) error {
	name, err := oneArg(c, "NAME")
	if err != nil {
		return err
	}
	_, err = call(c, "delete user "+name, func(ctx context.Context, h *hub) (*dispatchv1.DeleteUserResponse, error) {
		v, err := userVersion(ctx, c, h, name)
		if err != nil {
			return nil, err
		}
		return h.access().DeleteUser(ctx, &dispatchv1.DeleteUserRequest{Name: name, Version: v})
	})
	if err == nil {
		note(c, "user %s is deleted", name)
	}
	return err
}

func createLink(c *cli.Context) error {
	res, err := call(c, "create owner link", func(ctx context.Context, h *hub) (*dispatchv1.CreateOwnerLinkResponse, error) {
		return h.access().CreateOwnerLink(ctx, &dispatchv1.CreateOwnerLinkRequest{})
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, ownerLink{res.GetLink(), when(res.GetExpires())})
	}
	if _, err := fmt.Fprintln(c.App.Writer, res.GetLink()); err != nil {
		return err
	}
	note(c, "good once, until %s; who has it becomes an owner:\n  bauxite-dispatch user claim -", local(res.GetExpires()))
	return nil
}

func showMe(c *cli.Context) error {
	res, err := call(c, "ask who I am", func(ctx context.Context, h *hub) (*dispatchv1.WhoAmIResponse, error) {
		return h.access().WhoAmI(ctx, &dispatchv1.WhoAmIRequest{})
	})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, whoAmI{res.GetActor(), res.GetRole(), nonNil(res.GetPermissions())})
	}
	return list(c.App.Writer, "actor", res.GetActor(), "role", res.GetRole(), "may", strings.Join(res.GetPermissions(), " "))
}

type keyRow struct {
	ID       string     `json:"id"`
	User     string     `json:"user"`
	Scopes   []string   `json:"scopes"`
	Created  *time.Time `json:"created"`
	Expires  *time.Time `json:"expires"`
	LastUsed *time.Time `json:"last_used"`
	Revoked  bool       `json:"revoked"`
	Note     string     `json:"note"`
}

type keyList struct {
	Keys []keyRow `json:"keys"`
}

type keyCreated struct {
	Key  string `json:"key,omitempty"` // left out with --out
	Info keyRow `json:"info"`
}

func keyRowOf(k *dispatchv1.APIKey) keyRow {
	return keyRow{
		k.GetId(), k.GetUser(), nonNil(k.GetScopes()), when(k.GetCreated()), when(k.GetExpires()), when(k.GetLastUsed()),
		k.GetRevoked(), k.GetNote(),
	}
}

func keyCommand() *cli.Command {
	return &cli.Command{
		Name: "key", Usage: "API keys",
		Description: "A key does what its user may do, or only its scopes of that: " + authz.JoinScopes(authz.All(), ", ") + ".",
		Subcommands: []*cli.Command{
			{
				Name: "create", Usage: "make an API key",
				Description: describe("The key is printed once; the hub keeps only a hash of its secret.", keyCreated{},
					"key create --data ./hub --user alice --out ~/.config/bauxite-dispatch/key",
					"key create --user ci --scope tokens:write --scope nodes:read --ttl 30d --note 'image builder'"),
				Flags: hubFlags(
					&cli.StringFlag{Name: "user", Usage: "the key is for `NAME` (default: yourself)"},
					&cli.StringSliceFlag{Name: "scope", Usage: "it may do `P` only; repeatable (default: all that the user may)"},
					&cli.StringFlag{Name: "ttl", Value: "90d", Usage: "how long it is good for, `D` as 12h or 30d, at most a year"},
					&cli.StringFlag{Name: "note", Usage: "`TEXT` that says what it is for"},
					&cli.StringFlag{Name: "out", Usage: "write the key to `FILE`, of mode 0600, rather than to standard output"}, forceFlag()),
				Action: createKey,
			},
			{
				Name: "list", Usage: "list API keys, the newest first",
				Description: describe("Who may not see those of others sees his own.", keyList{}, "key list --data ./hub", "key list --user alice --json"),
				Flags:       hubFlags(&cli.StringFlag{Name: "user", Usage: "only those of `NAME`"}),
				Action:      listKeys,
			},
			{
				Name: "revoke", Usage: "make an API key useless at once", ArgsUsage: "ID", Args: true,
				Description: describe("Streams that are open with it end.", nil, "key revoke --data ./hub abcdefgh234567ab"),
				Flags:       hubFlags(), Action: revokeKey, BashComplete: completeWith(keyIDs),
			},
		},
	}
}

func createKey(c *cli.Context) error {
	ttl, err := parseDuration("ttl", c.String("ttl"))
	if err != nil {
		return err
	}
	out := c.String("out")
	if out != "" {
		if err := mayWrite(c, out); err != nil {
			return err
		}
	}
	var kf keyFile
	res, err := call(c, "create key", func(ctx context.Context, h *hub) (*dispatchv1.CreateKeyResponse, error) {
		if h.remote {
			kf.hub, kf.pin = h.base, h.pin
		}
		return h.access().CreateKey(ctx, &dispatchv1.CreateKeyRequest{
			User: c.String("user"), Scopes: c.StringSlice("scope"), Ttl: durationpb.New(ttl), Note: c.String("note"),
		})
	})
	if err != nil {
		return err
	}
	created := keyCreated{res.GetKey(), keyRowOf(res.GetInfo())}
	if out != "" {
		kf.key = res.GetKey()
		if err := kf.write(out); err != nil {
			return fmt.Errorf("%w (revoke the key %s, which is lost)", err, res.GetInfo().GetId())
		}
		created.Key = ""
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, created)
	}
	if out == "" {
		if _, err := fmt.Fprintln(c.App.Writer, res.GetKey()); err != nil {
			return err
		}
	}
	note(c, "key %s of %s is good until %s", res.GetInfo().GetId(), res.GetInfo().GetUser(), local(res.GetInfo().GetExpires()))
	return nil
}

func listKeys(c *cli.Context) error {
	res, err := call(c, "list keys", func(ctx context.Context, h *hub) (*dispatchv1.ListKeysResponse, error) {
		return h.access().ListKeys(ctx, &dispatchv1.ListKeysRequest{User: c.String("user")})
	})
	if err != nil {
		return err
	}
	out := keyList{Keys: []keyRow{}}
	var rows [][]string
	for _, k := range res.GetKeys() {
		out.Keys = append(out.Keys, keyRowOf(k))
		until := local(k.GetExpires())
		if k.GetRevoked() {
			until = "revoked"
		}
		scopes := strings.Join(k.GetScopes(), ",")
		if scopes == "" {
			scopes = "all of the role"
		}
		rows = append(rows, []string{k.GetId(), k.GetUser(), until, local(k.GetLastUsed()), scopes, k.GetNote()})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, out)
	}
	return table(c.App.Writer, []string{"ID", "USER", "GOOD UNTIL", "LAST USED", "SCOPES", "NOTE"}, rows)
}

func revokeKey(c *cli.Context) error {
	id, err := oneArg(c, "ID")
	if err != nil {
		return err
	}
	_, err = call(c, "revoke key "+id, func(ctx context.Context, h *hub) (*dispatchv1.RevokeKeyResponse, error) {
		return h.access().RevokeKey(ctx, &dispatchv1.RevokeKeyRequest{Id: id})
	})
	if err == nil {
		note(c, "key %s is revoked", id)
	}
	return err
}
