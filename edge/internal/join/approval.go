// SPDX-License-Identifier: Apache-2.0

package join

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Gaps while an approval is waited for.
const (
	askAgain  = 5 * time.Second // where the hub names no other
	tellAgain = time.Minute
)

const goesOn = "no longer waiting; the same command goes on, with the same keys"

// pending is ErrPending with what the hub said.
type pending struct {
	text  string
	after time.Duration
}

func (e *pending) Error() string { return fmt.Sprintf("%v: %.200s", ErrPending, e.text) }
func (e *pending) Unwrap() error { return ErrPending }

// approved redeems the token, and where an administrator has to approve the node it
// asks again for as long as c.Wait. A hub that is away meanwhile ends nothing.
func (c *Config) approved(ctx context.Context, cl *client, req *dispatchv1.ProvisionRequest) (*dispatchv1.ProvisionResponse, error) {
	return wait(ctx, c.Wait, c.tell, func() (*dispatchv1.ProvisionResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, Timeout)
		defer cancel()
		return cl.provision(ctx, req)
	})
}

func wait[T any](ctx context.Context, limit time.Duration, tell func(string), try func() (T, error)) (T, error) {
	start, told := time.Now(), time.Time{}
	var last *pending
	for {
		ans, err := try()
		p, isPending := errors.AsType[*pending](err)
		if isPending {
			last = p
		}
		away := errors.Is(err, ErrUnreachable) || errors.Is(err, ErrInterrupted)
		switch {
		case err == nil, last == nil, !isPending && !away:
			return ans, err
		case ctx.Err() != nil:
			tell(goesOn)
			return ans, ctx.Err()
		}
		gap := last.after
		if gap == 0 {
			gap = askAgain
		}
		gap += rand.N(gap/5 + 1)
		left := limit - time.Since(start)
		if left < gap {
			return ans, last
		}
		if time.Since(told) >= tellAgain {
			told = time.Now()
			tell(fmt.Sprintf("%.200s; waiting for up to %v more", last.text, left.Round(time.Second)))
		}
		select {
		case <-time.After(gap):
		case <-ctx.Done():
			tell(goesOn)
			return ans, ctx.Err()
		}
	}
}
