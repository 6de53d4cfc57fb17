// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/congestion"
	"github.com/bauxite-mesh/bauxite/conduit/internal/packet"
)

// Nothing is allocated per packet, in a full lane neither.
func TestAllocs(t *testing.T) {
	for _, l := range []packet.Lane{packet.Critical, packet.Telemetry, packet.Bulk} {
		s := New(Config{})
		p := s.AddUplink().AddPipe(congestion.NewNull(), 60)
		const n = 32
		bufs, pipes := make([]*packet.Buf, n), make([]*Pipe, n)
		for i := range bufs {
			bufs[i], pipes[i] = pkt(l, uint32(i), 100), p
		}
		if a := testing.AllocsPerRun(100, func() {
			s.Enqueue(bufs, pipes)
			for got := 0; got < n; {
				m, q, _ := s.Dequeue(bufs[got:])
				q.Sent(congestion.Sent{Packets: m, Bytes: m * 160})
				got += m
			}
		}); a != 0 {
			t.Errorf("%v: %v allocations", l, a)
		}
		s.Close()
		s = New(Config{Critical: 4, Telemetry: 4, Bulk: 4})
		p = s.AddUplink().AddPipe(nil, 60)
		for i := range pipes {
			pipes[i] = p
		}
		const runs = 20
		spare := make([]*packet.Buf, n*(runs+1)) // AllocsPerRun warms up once
		for i := range spare {
			spare[i] = pkt(l, uint32(i), 100)
			if i%n < 8 {
				spare[i].Datagram = uint64(i/8 + 1)
			}
		}
		if a := testing.AllocsPerRun(runs, func() {
			s.Enqueue(spare[:n], pipes)
			spare = spare[n:]
		}); a != 0 {
			t.Errorf("full %v: %v allocations", l, a)
		}
		s.Close()
	}
}

func BenchmarkEnqueueDequeue(b *testing.B) {
	const batch = 64
	for _, bb := range []struct {
		name         string
		lane         packet.Lane
		pipes, flows int
		st           func() congestion.Strategy
		frag         bool
	}{
		{"critical", packet.Critical, 1, 1, congestion.NewNull, false},
		{"telemetry", packet.Telemetry, 1, 1, congestion.NewNull, false},
		{"bulk", packet.Bulk, 1, 1, congestion.NewNull, false},
		{"bulk/flows=64", packet.Bulk, 1, 64, congestion.NewNull, false},
		{"bulk/pipes=64", packet.Bulk, 64, 64, congestion.NewNull, false},
		{"bulk/fixed", packet.Bulk, 1, 4, func() congestion.Strategy { return congestion.NewFixed(12e9) }, false},
		{"bulk/fragments", packet.Bulk, 1, 1, congestion.NewNull, true},
	} {
		b.Run(bb.name, func(b *testing.B) {
			cfg := Config{Flows: benchFlows{}}
			if bb.name == "bulk/fixed" { // a benchmark is quicker than any rate
				var clock int64
				cfg.Now = func() int64 { clock += 10_000; return clock }
			}
			s := New(cfg)
			defer s.Close()
			u := s.AddUplink()
			var all []*Pipe
			for range bb.pipes {
				all = append(all, u.AddPipe(bb.st(), 60))
			}
			bufs, pipes := make([]*packet.Buf, batch), make([]*Pipe, batch)
			for i := range bufs {
				bufs[i], pipes[i] = pkt(bb.lane, uint32(i%bb.flows)*7, 1350), all[i%bb.pipes]
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if bb.frag {
					for i, f := range bufs {
						f.Datagram, f.FirstFragment, f.LastFragment = uint64(n)+1, i == 0, i == batch-1
					}
				}
				s.Enqueue(bufs, pipes)
				for got := 0; got < batch; {
					m, p, _ := s.Dequeue(bufs[got:])
					if m == 0 {
						b.Fatal("nothing left")
					}
					p.Sent(congestion.Sent{Lane: uint8(bb.lane), Session: 1, First: uint64(n), Last: uint64(n + m - 1), Packets: m, Bytes: m * 1410})
					got += m
					n += m
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/packet")
		})
	}
}

type benchFlows struct{}

func (benchFlows) Left(uint32, packet.Lane) {}

// A node of many peers of which all wait on tokens.
func BenchmarkManyPipes(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var clock int64
			s := New(Config{Bulk: 1e6, Now: func() int64 { return clock }})
			defer s.Close()
			u := s.AddUplink()
			dst := make([]*packet.Buf, 64)
			one, pipe := make([]*packet.Buf, 1), make([]*Pipe, 1)
			put := func(p *Pipe) {
				one[0], pipe[0] = pkt(packet.Bulk, 1, 1350), p
				s.Enqueue(one, pipe)
			}
			for range n {
				p := u.AddPipe(congestion.NewFixed(1e6), 60)
				put(p)
				put(p)
			}
			b.ReportAllocs()
			sent := 0
			for b.Loop() {
				clock = s.NextAt()
				for {
					m, p, _ := s.Dequeue(dst)
					if m == 0 {
						break
					}
					p.Sent(congestion.Sent{Packets: m, Bytes: m * 1410})
					for _, f := range dst[:m] {
						f.Release()
						put(p)
					}
					sent += m
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(sent), "ns/packet")
		})
	}
}
