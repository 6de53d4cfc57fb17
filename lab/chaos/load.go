// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
	"github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1/dispatchv1connect"
)

// Kinds of operations.
const (
	opJoin           = "join"
	opTokenCreate    = "token.create"
	opTokenRevoke    = "token.revoke"
	opNodeUpdate     = "node.update"
	opNodeRevoke     = "node.revoke"
	opNodeDelete     = "node.delete"
	opPolicyPropose  = "policy.propose"
	opPolicyActivate = "policy.activate"
	opRotate         = "psk.rotate"
)

const (
	joiners   = 4
	operators = 2
	// maxServed keeps each scope below the size from which on peers are not pushed
	// any more.
	maxServed = 300
	tokenUses = 12
	maxOpen   = 50
	// idle is the pause of whoever finds nothing to do.
	idle = 2 * time.Millisecond
)

// sites are the scopes that nodes are spread over; the first is the default one.
var sites = []string{"", "north", "south"}

// op is one operation, with what its caller knows of it and how to tell from the
// database whether it was done.
type op struct {
	kind string
	// subject is what it changes: nobody else changes that in the same round.
	subject string
	out     outcome
	err     error
	// check compares the database before and after the round. It returns a problem
	// where the operation is half there, or not as it was acknowledged.
	check func(o *op, before, after *state) (landed bool, problem string)
	// entry is the action and the target of its audit entry, once it has landed.
	entry func(before, after *state) string
	join  *machine // of a join, to send it again
}

// token is what operators remember of a join token.
type token struct {
	text, id, tag, site string
	left                int
	closed              bool // a revocation was tried
}

// machine is one that joins.
type machine struct {
	priv ed25519.PrivateKey
	req  *dispatchv1.ProvisionRequest
	tok  *token
	res  *dispatchv1.ProvisionResponse // of the newest answer
	sub  string
}

// key is how the database's states name the machine.
func (m *machine) key() string { return strings.TrimPrefix(m.sub, "node:") }

// load makes the operations.
type load struct {
	c    *clients
	seed uint64
	n    atomic.Uint64 // numbers tags, names and notes

	mu       sync.Mutex // guards the following
	tokens   []*token
	used     map[string]bool // subjects of this round
	pool     []string        // hex keys of nodes that may be changed
	served   map[string]int  // by site
	base     *state
	ops      []*op
	again    []*machine
	unserved map[string]bool
	machines map[string]*machine // by subject, with certificates that were handed out
	watchers map[string]bool     // subjects that nobody touches
	newest   uint64              // policy version, as the author knows it
	source   string
	psk      int64   // epoch of the mesh key, as the author knows it
	active   []int64 // versions of which one must be in force; nil is the one before
}

func newLoad(c *clients, seed uint64) *load {
	return &load{c: c, seed: seed, watchers: make(map[string]bool), unserved: make(map[string]bool), machines: make(map[string]*machine), served: make(map[string]int)}
}

// prepare makes the first tokens.
func (l *load) prepare() error {
	for range 2 * len(sites) {
		o := l.createToken()
		if o.err != nil {
			return fmt.Errorf("create token: %w", o.err)
		}
	}
	return nil
}

// newWatcher joins a node that is never changed by others.
func (l *load) newWatcher(i int) (*watcher, error) {
	k := l.tokens[i%len(sites)]
	m, err := l.machine(k)
	if err != nil {
		return nil, err
	}
	if o := l.join(m); o.err != nil {
		return nil, fmt.Errorf("join watcher: %w", o.err)
	}
	l.watchers[m.sub] = true
	cert := m.certificate()
	return watch(l.c, m.res.GetNodeId(), k.site, &cert), nil
}

// run runs the load until ctx ends.
func (l *load) run(ctx context.Context, round int, base *state) *sync.WaitGroup {
	l.mu.Lock()
	l.base, l.ops, l.used, l.active = base, nil, make(map[string]bool), nil
	for _, m := range l.again {
		l.used[m.sub] = true
	}
	l.pool = l.pool[:0]
	clear(l.served)
	for key, n := range base.nodes {
		if n.served {
			l.served[n.site]++
		}
		if !l.watchers["node:"+key] && n.state == "active" {
			l.pool = append(l.pool, key)
		}
	}
	slices.Sort(l.pool) // the order of a map is not that of the seed
	l.mu.Unlock()
	var wg sync.WaitGroup
	workers := 0
	worker := func(step func(*rand.Rand) bool) {
		workers++
		rng := rand.New(rand.NewPCG(l.seed, uint64(round)<<8|uint64(workers)))
		wg.Go(func() {
			for ctx.Err() == nil {
				if !step(rng) {
					wait(ctx, idle)
				}
			}
		})
	}
	for range joiners {
		worker(l.joiner)
	}
	for range operators {
		worker(l.operator)
	}
	wg.Go(func() { l.author(ctx) })
	return &wg
}

func (l *load) record(o *op, out outcome, err error) *op {
	o.out, o.err = out, err
	l.mu.Lock()
	defer l.mu.Unlock()
	if out == unsent {
		if o.join != nil {
			l.again = append(l.again, o.join)
		}
		return o
	}
	if out == unserved {
		l.unserved[o.kind] = true
	}
	l.ops = append(l.ops, o)
	return o
}

// take reserves a subject for this round.
func (l *load) take(subject string) bool {
	if l.used[subject] {
		return false
	}
	l.used[subject] = true
	return true
}

// call runs one call to its end, whatever becomes of the load: an operation that
// was sent is only lost when the hub is.
func (l *load) call(f func(context.Context) error) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	err := f(ctx)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("no answer within %v: %w", callTimeout, err)
	}
	return outcomeOf(err), err
}

func (l *load) machine(k *token) (*machine, error) {
	pub, key, err := ed25519.GenerateKey(crand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	x, err := ecdh.X25519().GenerateKey(crand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(crand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("create certificate request: %w", err)
	}
	n := l.n.Add(1)
	name := fmt.Sprintf("robot-%d", n)
	if n%4 == 0 {
		name = "robot" // the hub has to find a free one
	}
	return &machine{priv: key, tok: k, sub: "node:" + hex.EncodeToString(pub), req: &dispatchv1.ProvisionRequest{
		Token: k.text, Csr: csr, X25519PublicKey: x.PublicKey().Bytes(), Name: name,
		Facts: &dispatchv1.NodeFacts{Hostname: name, Os: "linux", Arch: "arm64", Version: "chaos"},
	}}, nil
}

// certificate is the machine's newest, for TLS.
func (m *machine) certificate() tls.Certificate {
	c := tls.Certificate{PrivateKey: m.priv}
	for rest := m.res.GetNodeCrt(); ; {
		var p *pem.Block
		if p, rest = pem.Decode(rest); p == nil {
			return c
		}
		c.Certificate = append(c.Certificate, p.Bytes)
	}
}

func (m *machine) serial() string {
	c := m.certificate()
	if len(c.Certificate) == 0 {
		return "none"
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return err.Error()
	}
	return hex.EncodeToString(leaf.SerialNumber.Bytes())
}

// join sends the machine's request over a connection of its own.
func (l *load) join(m *machine) *op {
	hc, closeConn := l.c.node(nil)
	defer closeConn()
	client := dispatchv1connect.NewProvisioningServiceClient(hc, l.c.url())
	m.res = nil
	out, err := l.call(func(ctx context.Context) (err error) {
		m.res, err = client.Provision(ctx, m.req)
		return err
	})
	o := &op{kind: opJoin, subject: m.sub, join: m, check: checkJoin, entry: func(before, after *state) string {
		key := m.key()
		action := "node.join "
		if before.nodes[key] != nil {
			action = "node.rejoin "
		}
		return action + after.nodes[key].id
	}}
	if out == acked {
		l.mu.Lock()
		l.machines[m.sub] = m
		l.mu.Unlock()
	}
	return l.record(o, out, err)
}

// joiner lets one machine join; those come first whose last attempt had no answer.
// Like operator it returns false where there is nothing to do or nobody to do it.
func (l *load) joiner(rng *rand.Rand) bool {
	l.mu.Lock()
	var m *machine
	if n := len(l.again); n > 0 {
		m, l.again = l.again[n-1], l.again[:n-1]
		l.mu.Unlock()
		return l.join(m).out != unsent
	}
	var open []*token
	for _, k := range l.tokens {
		if k.left > 0 && !k.closed && l.served[k.site] < maxServed {
			open = append(open, k)
		}
	}
	if len(open) == 0 {
		l.mu.Unlock()
		return l.operator(rng)
	}
	k := open[rng.IntN(len(open))]
	k.left--
	l.served[k.site]++
	l.mu.Unlock()
	m, err := l.machine(k)
	if err != nil {
		return false
	}
	return l.join(m).out != unsent
}

func (l *load) createToken() *op {
	n := l.n.Add(1)
	k := &token{tag: fmt.Sprintf("t-%06d", n), site: sites[int(n)%len(sites)], left: tokenUses}
	if n%5 == 0 {
		k.left = 1
	}
	uses := uint32(k.left)
	o := &op{kind: opTokenCreate, subject: "token:" + k.tag}
	out, err := l.call(func(ctx context.Context) error {
		res, err := l.c.fleet.CreateToken(ctx, &dispatchv1.CreateTokenRequest{
			Uses: uses, Tags: []string{k.tag}, Site: k.site, Note: "chaos",
		})
		if err == nil {
			k.text, k.id = res.GetToken(), res.GetId()
		}
		return err
	})
	o.entry = func(_, after *state) string { return "token.create " + after.byTag[k.tag].id }
	o.check = func(o *op, _, after *state) (bool, string) {
		row := after.byTag[k.tag]
		switch {
		case row == nil:
			return false, ""
		case row.max != int64(uses), o.out == acked && row.id != k.id:
			return true, fmt.Sprintf("token %s is not as it was made", k.id)
		}
		return true, ""
	}
	l.record(o, out, err)
	if out == acked {
		l.mu.Lock()
		l.tokens = append(l.tokens, k)
		l.mu.Unlock()
	}
	return o
}

// operator does one thing to a token or a node. Revocations and deletions hold
// against the joins, so that the fleet keeps its size.
func (l *load) operator(rng *rand.Rand) bool {
	l.mu.Lock()
	open := 0
	for _, k := range l.tokens {
		if k.left > 0 && !k.closed {
			open++
		}
	}
	l.mu.Unlock()
	switch p := rng.IntN(10); {
	case p < 3 && open < maxOpen:
		return l.createToken().out != unsent
	case p < 4:
		return l.revokeToken(rng)
	case p < 6:
		return l.onNode(rng, opNodeUpdate, l.updateNode)
	case p < 7:
		return l.onNode(rng, opNodeRevoke, l.revokeNode)
	default:
		return l.onNode(rng, opNodeDelete, l.deleteNode)
	}
}

func (l *load) revokeToken(rng *rand.Rand) bool {
	l.mu.Lock()
	var k *token
	if n := len(l.tokens); n > 2*len(sites) && !l.unserved[opTokenRevoke] {
		k = l.tokens[rng.IntN(n)]
		// A token that was made in this round may still be lost with its answer.
		if k.closed || l.base.tokens[k.id] == nil || !l.take("token:"+k.tag) {
			k = nil
		} else {
			k.closed = true
		}
	}
	l.mu.Unlock()
	if k == nil {
		return false
	}
	out, err := l.call(func(ctx context.Context) error {
		_, err := l.c.fleet.RevokeToken(ctx, &dispatchv1.RevokeTokenRequest{Id: k.id})
		return err
	})
	entry := func(_, _ *state) string { return "token.revoke " + k.id }
	return l.record(&op{kind: opTokenRevoke, subject: "token:" + k.tag, entry: entry, check: func(_ *op, before, after *state) (bool, string) {
		row := after.tokens[k.id]
		switch {
		case row == nil:
			return false, "token " + k.id + " is gone"
		case !row.revoked && row.text != before.tokens[k.id].text:
			return false, "token " + k.id + " is not revoked, but changed"
		}
		return row.revoked, ""
	}}, out, err).out != unsent
}

// AllOps are the operations that the load is made of.
var AllOps = []string{
	opJoin, opTokenCreate, opTokenRevoke, opNodeUpdate, opNodeRevoke, opNodeDelete, opPolicyPropose, opPolicyActivate,
	opRotate,
}
