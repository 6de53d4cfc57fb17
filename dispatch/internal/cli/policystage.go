// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// pollStage is how often activate --wait asks.
const pollStage = time.Second

func activatePolicy(c *cli.Context) error {
	arg, err := oneArg(c, "VERSION")
	if err != nil {
		return err
	}
	req := &dispatchv1.ActivatePolicyRequest{Canary: c.StringSlice("canary"), ExpectedActive: c.Uint64("if-active")}
	if req.Version, err = versionArg(c, arg); err != nil {
		return err
	}
	for _, f := range []string{"hold", "min-applied", "min-online", "max-denied"} {
		if c.IsSet(f) && len(req.Canary) == 0 {
			return usagef("policy activate: --%s needs --canary", f)
		}
	}
	if len(req.Canary) > 0 {
		if c.Uint("min-applied") > 100 || c.Uint("min-online") > 100 {
			return usagef("policy activate: a percentage is at most 100")
		}
		req.Expect = &dispatchv1.Expectations{
			MinAppliedPercent: uint32(c.Uint("min-applied")), MinOnlinePercent: uint32(c.Uint("min-online")), MaxDeniedPerMinute: c.Uint64("max-denied"),
		}
	}
	if c.IsSet("hold") {
		d, err := parseDuration("hold", c.String("hold"))
		if err != nil {
			return err
		}
		req.Hold = durationpb.New(d)
	}
	res, err := call(c, "activate policy", func(ctx context.Context, h *hub) (*dispatchv1.ActivatePolicyResponse, error) {
		return h.policy().ActivatePolicy(ctx, req)
	})
	if err != nil {
		return err
	}
	a := res.GetActivation()
	if c.Bool("wait") {
		return waitForStage(c, a, req.Version)
	}
	return printActivation(c, a)
}

// waitForStage follows a stage to its end.
func waitForStage(c *cli.Context, a *dispatchv1.Activation, version uint64) error {
	t := time.NewTicker(pollStage)
	defer t.Stop()
	said := ""
	for a.GetState() == "canary" && a.GetCandidate() == version {
		if now := stageText(a); now != said && !c.Bool("json") {
			said = now
			note(c, "%s", now)
		}
		select {
		case <-c.Done():
			return context.Canceled
		case <-t.C:
		}
		next, err := getActivation(c)
		if err != nil {
			return err
		}
		a = next
	}
	if err := printActivation(c, a); err != nil {
		return err
	}
	if a.GetState() == "rolled-back" || a.GetBase() != version {
		return failf(nil, "", "version %d is not in force: %s", version, oneLine(a.GetReason()))
	}
	return nil
}

func getActivation(c *cli.Context) (*dispatchv1.Activation, error) {
	res, err := call(c, "read activation", func(ctx context.Context, h *hub) (*dispatchv1.GetActivationResponse, error) {
		return h.policy().GetActivation(ctx, &dispatchv1.GetActivationRequest{})
	})
	return res.GetActivation(), err
}

func policyStatus(c *cli.Context) error {
	a, err := getActivation(c)
	if err != nil {
		return err
	}
	return printActivation(c, a)
}

func rollbackPolicy(c *cli.Context) error {
	res, err := call(c, "roll back policy", func(ctx context.Context, h *hub) (*dispatchv1.RollbackPolicyResponse, error) {
		return h.policy().RollbackPolicy(ctx, &dispatchv1.RollbackPolicyRequest{Reason: c.String("reason")})
	})
	if err != nil {
		return err
	}
	return printActivation(c, res.GetActivation())
}

func stageText(a *dispatchv1.Activation) string {
	return fmt.Sprintf("version %d: %d of %d canary nodes have applied it", a.GetCandidate(), a.GetCanaryApplied(), a.GetCanaryNodes())
}

func printActivation(c *cli.Context, a *dispatchv1.Activation) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, policyActivation{
			a.GetState(), a.GetGeneration(), a.GetBase(), a.GetCandidate(), nonNil(a.GetCanary()), a.GetCanaryNodes(), a.GetCanaryApplied(),
			when(a.GetHoldUntil()), a.GetReason(),
		})
	}
	pairs := []string{"state", a.GetState(), "version in force", number(a.GetBase()), "generation", number(a.GetGeneration())}
	if a.GetCandidate() != 0 {
		pairs = append(pairs, "candidate", stageText(a), "canary", strings.Join(a.GetCanary(), ", "), "hold until", local(a.GetHoldUntil()))
	}
	return list(c.App.Writer, append(pairs, "reason", a.GetReason())...)
}
