// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"

	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// author changes the policy: he alone does, so his changes are in order.
func (l *load) author(ctx context.Context) {
	l.mu.Lock()
	off := l.unserved[opPolicyPropose] || l.unserved[opPolicyActivate]
	l.newest = 0
	l.psk = l.base.psk
	for v := range l.base.policies {
		l.newest = max(l.newest, uint64(v))
	}
	l.mu.Unlock()
	if off || !l.readSource(ctx) {
		return
	}
	active := []int64{l.base.active} // what may be in force: the last answered, and later ones
	for ctx.Err() == nil {
		source := fmt.Sprintf("%s\n// chaos %d\n", l.source, l.n.Add(1))
		version, ok := l.propose(source)
		if !ok {
			break
		}
		if active, ok = l.activate(version, active); !ok {
			break
		}
		if version%3 == 0 && !l.rotate() {
			break
		}
	}
}

// rotate replaces the mesh key. The hub does not start again where an epoch is
// committed whose key is not on disk.
func (l *load) rotate() bool {
	l.psk++
	epoch := l.psk
	out, err := l.call(func(ctx context.Context) error {
		res, err := l.c.hubs.RotateMeshKey(ctx, &dispatchv1.RotateMeshKeyRequest{})
		if err == nil && int64(res.GetPskEpoch()) != epoch {
			return fmt.Errorf("mesh key has epoch %d, want %d", res.GetPskEpoch(), epoch)
		}
		return err
	})
	entry := func(_, _ *state) string { return "psk.rotate " }
	l.record(&op{kind: opRotate, entry: entry, check: func(_ *op, _, after *state) (bool, string) {
		if after.psk > epoch && out != acked {
			return true, fmt.Sprintf("mesh key has epoch %d, the newest that was asked for is %d", after.psk, epoch)
		}
		if after.psk >= epoch && len(after.changed["psk"]) == 0 {
			return true, fmt.Sprintf("mesh key %d is in force, but no watcher will hear of it", after.psk)
		}
		return after.psk >= epoch, ""
	}}, out, err)
	return out == acked
}

// readSource reads the policy that the mesh began with.
func (l *load) readSource(ctx context.Context) bool {
	if l.source != "" {
		return true
	}
	res, err := l.c.policy.ReadPolicy(ctx, &dispatchv1.ReadPolicyRequest{})
	if err != nil {
		if outcomeOf(err) == unserved {
			l.record(&op{kind: opPolicyPropose, check: undone}, unserved, err)
		}
		return false
	}
	l.source = res.GetSource()
	return l.source != ""
}

func undone(*op, *state, *state) (bool, string) { return false, "" }

func (l *load) propose(source string) (version uint64, ok bool) {
	base := l.newest
	out, err := l.call(func(ctx context.Context) error {
		res, err := l.c.policy.ProposePolicy(ctx, &dispatchv1.ProposePolicyRequest{Source: source, BaseVersion: base, Note: "chaos"})
		version = res.GetVersion()
		return err
	})
	entry := func(_, after *state) string {
		for v, s := range after.sources {
			if s == source {
				return fmt.Sprintf("policy.propose %d", v)
			}
		}
		return ""
	}
	o := &op{kind: opPolicyPropose, entry: entry, check: func(o *op, _, after *state) (bool, string) {
		for v, s := range after.sources {
			if s == source {
				if o.out == acked && uint64(v) != version {
					return true, fmt.Sprintf("policy version %d was acknowledged as %d", v, version)
				}
				return true, ""
			}
		}
		return false, ""
	}}
	l.record(o, out, err)
	if out == acked {
		l.newest = version
	}
	return version, out == acked
}

// activate puts version into force; may are the versions of which one is in force
// before it, where no answer has told which.
func (l *load) activate(version uint64, may []int64) ([]int64, bool) {
	out, err := l.call(func(ctx context.Context) error {
		_, err := l.c.policy.ActivatePolicy(ctx, &dispatchv1.ActivatePolicyRequest{Version: version})
		return err
	})
	if out == acked {
		may = nil
	}
	if out == acked || out == lost {
		may = append(may, int64(version))
	}
	allowed := append([]int64(nil), may...)
	l.mu.Lock()
	l.active = allowed
	l.mu.Unlock()
	entry := func(_, _ *state) string { return fmt.Sprintf("policy.activate %d", version) }
	l.record(&op{kind: opPolicyActivate, entry: entry, check: func(o *op, before, after *state) (bool, string) {
		if after.active == before.active && o.out != acked {
			return false, ""
		}
		if after.generation <= before.generation || len(after.changed["policy"]) == 0 {
			return true, fmt.Sprintf("policy %d is in force, but no watcher will hear of it", after.active)
		}
		return o.out == acked || after.active == int64(version), ""
	}}, out, err)
	return may, out == acked
}
