// SPDX-License-Identifier: Apache-2.0

package hubload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// SignalConfig is how Signal measures.
type SignalConfig struct {
	// Rate is how many messages all nodes together send per second; 0 means 1000.
	Rate int
	// Duration of the sending; 0 means 20 s.
	Duration time.Duration
	// Senders is how many nodes send, each no more than the hub lets it; 0 means
	// 200.
	Senders int
	// Size of a body in bytes, at least 16; 0 means 1200.
	Size int
	// Absent is one in how many messages goes to a node that is not connected and
	// must come back; 0 means 100, negative none.
	Absent int
}

// SignalResult is how long messages take from node to node.
type SignalResult struct {
	Nodes   int     `json:"nodes"`
	Senders int     `json:"senders"`
	Size    int     `json:"bytes"`
	Rate    float64 `json:"per_second"` // reached
	Sent    int     `json:"sent"`
	// Absent is how many of Sent went to nodes that are not there; Refused is how
	// many the hub sent back, Lost what neither arrived nor came back.
	Absent  int     `json:"absent"`
	Refused int     `json:"refused"`
	Lost    int     `json:"lost"`
	Latency Latency `json:"latency"`
	HubCPU  float64 `json:"hub_cpu_us_per_message"`
}

// Signal sends messages between random nodes of f.
func (l *Lab) Signal(ctx context.Context, f *Fleet, cfg SignalConfig) (SignalResult, error) {
	cfg.Rate, cfg.Duration = or(cfg.Rate, 1000), or(cfg.Duration, 20*time.Second)
	cfg.Senders, cfg.Size, cfg.Absent = or(cfg.Senders, 200), max(16, or(cfg.Size, 1200)), or(cfg.Absent, 100)
	cfg.Senders = min(cfg.Senders, len(f.Nodes))
	res := SignalResult{Nodes: len(f.Nodes), Senders: cfg.Senders, Size: cfg.Size}
	if len(f.Nodes) < 2 {
		return res, errors.New("signalling needs two nodes")
	}
	var nobody *Node
	if cfg.Absent > 0 {
		out, err := l.outsiders(ctx, 1)
		if err != nil {
			return res, err
		}
		nobody = &Node{Identity: *out[0]}
		if err := f.quiet(ctx); err != nil {
			return res, err
		}
	}
	total := int(cfg.Duration.Seconds() * float64(cfg.Rate))
	var mu sync.Mutex
	took := make([]time.Duration, 0, total)
	f.listen(func(_ *Node, body []byte) {
		at := now()
		if len(body) == cfg.Size {
			d := time.Duration(at - int64(binary.BigEndian.Uint64(body)))
			mu.Lock()
			took = append(took, d)
			mu.Unlock()
		}
	})
	defer f.listen(nil)
	delivered := func() int { mu.Lock(); defer mu.Unlock(); return len(took) }

	nacks := f.nacks.Load()
	before, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, err
	}
	start := time.Now()
	body := make([]byte, cfg.Size)
	err = pace(ctx, total, cfg.Rate, func(i int) error {
		from := f.Nodes[i%cfg.Senders]
		to := f.Nodes[rand.N(len(f.Nodes))]
		if to == from {
			to = f.Nodes[(i+1)%cfg.Senders]
		}
		if cfg.Absent > 0 && i%cfg.Absent == cfg.Absent-1 {
			to = nobody
			res.Absent++
		}
		binary.BigEndian.PutUint64(body, uint64(now()))
		return from.Send(to, uint64(i), body)
	})
	if err != nil {
		return res, fmt.Errorf("%w%s", err, f.Errors())
	}
	res.Sent = total
	res.Rate = float64(total) / time.Since(start).Seconds()
	wctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_ = waitFor(wctx, func() bool { return delivered()+int(f.nacks.Load()-nacks) >= total })
	after, err := l.Hub.Usage(ctx)
	if err != nil {
		return res, err
	}
	res.HubCPU = float64((after.CPU - before.CPU).Microseconds()) / float64(total)
	res.Refused = int(f.nacks.Load() - nacks)
	mu.Lock()
	defer mu.Unlock()
	res.Lost = total - len(took) - res.Refused
	res.Latency = Summarize(took)
	return res, nil
}

// listen sets who gets the signals of all nodes; the body is valid during the call
// only.
func (f *Fleet) listen(g func(*Node, []byte)) {
	if g == nil {
		f.onSignal.Store(nil)
		return
	}
	f.onSignal.Store(&g)
}

// pace calls do for 0 to total-1, rate times per second, spread evenly as far as
// a timer of a millisecond can.
func pace(ctx context.Context, total, rate int, do func(int) error) error {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	start := time.Now()
	for i := 0; i < total; {
		for due := min(total, int(time.Since(start).Seconds()*float64(rate))); i < due; i++ {
			if err := do(i); err != nil {
				return err
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
