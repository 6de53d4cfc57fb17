// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"

	"github.com/bauxite-mesh/bauxite/conduit"
)

// Lane is a rule that puts what this node sends into a lane: a packet must match all
// that is set. The first rule that matches counts; conduit.LaneRule says what stands
// behind them.
type Lane struct {
	// Lane is critical, telemetry or bulk. Required.
	Lane string `toml:"lane"`
	// Proto is tcp, udp, icmp or a number of IANA's; empty means any.
	Proto string `toml:"proto,omitempty"`
	// Port is that of either side, SrcPort the sender's, DstPort the receiver's: a
	// number, or a text with a number or two with - between. Nil means any.
	Port    any `toml:"port,omitempty"`
	SrcPort any `toml:"src_port,omitempty"`
	DstPort any `toml:"dst_port,omitempty"`
	// DSCP is a code point of the packet or a list of them, each a number or a name as
	// conduit.ParseDSCP reads it. Nil means any.
	DSCP any `toml:"dscp,omitempty"`
	// Below takes packets of fewer bytes; 0 means any.
	Below int `toml:"below,omitempty"`
}

// rule returns l as the node takes it, or the key that is wrong.
func (l *Lane) rule() (r conduit.LaneRule, key string, err error) {
	r.Lane = l.Lane
	if l.Lane == "" {
		return r, "lane", errors.New("is missing: critical, telemetry or bulk")
	}
	if err := oneOf(l.Lane, []string{"critical", "telemetry", "bulk"}); err != nil {
		return r, "lane", err
	}
	r.Protocol = l.Proto
	if err := r.Check(); err != nil {
		return r, "proto", err
	}
	for _, p := range []struct {
		key string
		in  any
		out *conduit.PortRange
	}{{"port", l.Port, &r.Port}, {"src_port", l.SrcPort, &r.SrcPort}, {"dst_port", l.DstPort, &r.DstPort}} {
		if *p.out, err = portRange(p.in); err != nil {
			return r, p.key, err
		}
		if err := r.Check(); err != nil { // the protocol has no ports
			return r, p.key, err
		}
	}
	if r.DSCP, err = codePoints(l.DSCP); err != nil {
		return r, "dscp", err
	}
	if r.Below = l.Below; l.Below < 0 {
		return r, "below", fmt.Errorf("is %d, want a number of bytes", l.Below)
	}
	return r, "lane", r.Check()
}

func portRange(v any) (conduit.PortRange, error) {
	switch v := v.(type) {
	case nil:
		return conduit.PortRange{}, nil
	case int64:
		return conduit.ParsePortRange(strconv.FormatInt(v, 10))
	case string:
		return conduit.ParsePortRange(v)
	}
	return conduit.PortRange{}, errors.New(`want a port, such as 7400 or "7400-7499"`)
}

func codePoints(v any) ([]uint8, error) {
	list, isList := v.([]any)
	switch {
	case v == nil:
		return nil, nil
	case !isList:
		list = []any{v}
	case len(list) == 0:
		return nil, errors.New("is empty: leave it out for any")
	case len(list) > 64:
		return nil, fmt.Errorf("has %d code points, there are 64", len(list))
	}
	var out []uint8
	for _, e := range list {
		var text string
		switch e := e.(type) {
		case int64:
			text = strconv.FormatInt(e, 10)
		case string:
			text = e
		default:
			return nil, errors.New(`want a code point or a list of them, such as "ef" or ["cs5", 46]`)
		}
		d, err := conduit.ParseDSCP(text)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func (c *Config) checkLanes() error {
	if n := len(c.Lanes); n > conduit.MaxLaneRules {
		return &valueError{key: "lane", err: fmt.Errorf("has %d rules, at most %d", n, conduit.MaxLaneRules)}
	}
	var above []conduit.LaneRule // without their lanes
	for i := range c.Lanes {
		r, key, err := c.Lanes[i].rule()
		if err != nil {
			return &valueError{"lane." + key, i, err}
		}
		r.Lane = ""
		for n, a := range above {
			switch {
			case reflect.DeepEqual(a, conduit.LaneRule{}):
				return &valueError{"lane.lane", i, fmt.Errorf("rule %d takes every packet, so this one gets none", n+1)}
			case reflect.DeepEqual(a, r):
				return &valueError{"lane.lane", i, fmt.Errorf("rule %d takes the same packets, and the first one counts", n+1)}
			}
		}
		above = append(above, r)
	}
	return nil
}

// LaneRules returns the rules as the node takes them.
func (c *Config) LaneRules() []conduit.LaneRule {
	out := make([]conduit.LaneRule, 0, len(c.Lanes))
	for i := range c.Lanes {
		r, _, _ := c.Lanes[i].rule() // was checked
		out = append(out, r)
	}
	return out
}
