// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/store"
)

// gate applies authorize to every kind of call, tells the store who acts, and
// knows the live streams, so that it can end them.
type gate struct {
	// admit returns what the hub knows of a node, or why it may not call.
	admit func(ctx context.Context, id identity.PeerID, serial []byte) (store.Standing, error)
	// recheck brings a user's role and key up to date.
	recheck func(ctx context.Context, c *caller) error
	// entered, where it is set, is asked last about each call that is let in. Tests
	// see with it what the gate does, without what the services do.
	entered func() error
	// openers bounds how often nodes open streams.
	openers *openers

	mu   sync.Mutex // guards live
	live map[subject]map[*context.CancelCauseFunc]struct{}
}

// subject is what streams can be cut by. One field is set.
type subject struct {
	node      identity.PeerID
	user, key string
}

// Why a stream was cut.
var (
	errRevoked = errors.New("revoked")
	errMoved   = errors.New("moved to another site")
	errKeyEnd  = errors.New("key, role or user changed")
)

func (c *caller) subjects() []subject {
	switch c.class {
	case node:
		return []subject{{node: c.id}}
	case user:
		return []subject{{user: c.user}, {key: c.key}}
	case anonymous, visitor, socket:
	}
	return nil
}

// watch returns a context that cut ends, and a function to call in the end. It fails
// where the caller has too many streams.
func (g *gate) watch(ctx context.Context, c *caller) (context.Context, func(), error) {
	subjects := c.subjects()
	g.mu.Lock()
	defer g.mu.Unlock()
	most := maxNodeStreams
	if c.class == user {
		most = maxUserStreams
	}
	if len(subjects) > 0 && len(g.live[subjects[0]]) >= most {
		return ctx, nil, tooManyStreams(most)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	endTimer := func() {}
	if c.class == user {
		ctx, endTimer = context.WithDeadlineCause(ctx, c.expires, errKeyEnd)
	}
	for _, s := range subjects {
		if g.live[s] == nil {
			g.live[s] = make(map[*context.CancelCauseFunc]struct{})
		}
		g.live[s][&cancel] = struct{}{}
	}
	return ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, s := range subjects {
			if delete(g.live[s], &cancel); len(g.live[s]) == 0 {
				delete(g.live, s)
			}
		}
		endTimer()
		cancel(nil)
	}, nil
}

// cut ends all streams of a node.
func (g *gate) cut(id identity.PeerID) { g.end(subject{node: id}, errRevoked) }

// cutUser ends all streams of a user.
func (g *gate) cutUser(name string) { g.end(subject{user: name}, errKeyEnd) }

// cutKey ends all streams of an API key.
func (g *gate) cutKey(id string) { g.end(subject{key: id}, errKeyEnd) }

func (g *gate) end(s subject, why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for cancel := range g.live[s] {
		(*cancel)(why)
	}
}

// offStack runs f on another goroutine and waits for it. What is called from there,
// SQLite above all, makes a stack grow to some 16 KB: on that of a stream it would
// stay so for as long as the stream lives, once per node.
func offStack(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// enter lets the caller of ctx in, or says why not. The context that it returns
// knows the node's standing and the actor.
func (g *gate) enter(ctx context.Context, procedure string, fresh bool) (context.Context, error) {
	known := *callerOf(ctx)
	c := &known
	var err error
	switch {
	case c.class == node:
		// The handshake may lie far back: connections live for weeks.
		if c.standing, err = g.admit(ctx, c.id, c.serial); err != nil {
			return ctx, err
		}
	case c.class == user && fresh:
		if err = g.recheck(ctx, c); err != nil {
			return ctx, err
		}
	}
	if err := authorize(c, procedure); err != nil {
		return ctx, err
	}
	if g.entered != nil {
		return ctx, g.entered()
	}
	if a := c.actor(); a != "" {
		ctx = store.WithActor(ctx, a)
	}
	return withCaller(ctx, c), nil
}

func (g *gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if c := callerOf(ctx); c.whole != nil {
			c.whole()
		}
		ctx, err := g.enter(ctx, req.Spec().Procedure, false)
		if err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

func (g *gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (g *gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		c := callerOf(ctx)
		if c.class == node {
			if wait := g.openers.allow(c.id, time.Now()); wait > 0 {
				return tooOften(wait)
			}
		}
		ctx, done, err := g.watch(ctx, c)
		if err != nil {
			return err
		}
		defer done()
		if c.whole != nil {
			conn = wholeConn{conn, c.whole}
		}
		if c.cut != nil {
			k := &cutter{cut: c.cut}
			// Before done ends the context.
			defer k.end()
			stop := context.AfterFunc(ctx, k.start)
			defer stop()
		}
		// After watch, so that a revocation falls into neither gap.
		offStack(func() { ctx, err = g.enter(ctx, conn.Spec().Procedure, true) })
		if err != nil {
			return err
		}
		err = next(ctx, conn)
		if errors.Is(context.Cause(ctx), errKeyEnd) {
			return keyRefused("the key has expired, is revoked, or can do something else now", "call again; if that is refused, ask for a new key")
		}
		return err
	}
}
