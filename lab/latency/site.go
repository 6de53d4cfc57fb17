// SPDX-License-Identifier: Apache-2.0

package latency

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/fleet"
	"github.com/bauxite-mesh/bauxite/lab/netns"
	"github.com/bauxite-mesh/bauxite/lab/probe"
	"github.com/bauxite-mesh/bauxite/lab/world"
)

// Where is the place of a bottleneck.
type Where string

// The places. Bulk leaves the first host of a pair, but for Download.
const (
	Own      Where = "own interface" // of the sender
	Router   Where = "router"        // in the middle, before the receiver
	Download Where = "download"      // in the middle, before the host that probes
)

// Bottleneck is a thin link.
type Bottleneck struct {
	Where Where
	Rate  int64         // bits per second, both ways; zero means no limit
	Queue int           // bytes; zero means 256 KiB
	RTT   time.Duration // of the path; zero means 40 ms, negative none
}

const (
	defaultRTT   = 40 * time.Millisecond
	defaultQueue = 256 << 10
	// oneFrame is a burst of the rate limit that lets a single frame through at a
	// time, as a serial line does.
	oneFrame = 1600
	// settle is how long a new path is left alone, until its MTU is known.
	settle = 2 * time.Second
)

// shape is one direction.
func (b Bottleneck) shape() netns.Shape {
	s := netns.Shape{Rate: b.Rate, Queue: b.Queue}
	if s.Queue == 0 {
		s.Queue = defaultQueue
	}
	if b.Rate > 0 {
		s.Burst = oneFrame
	}
	return s
}

func (b Bottleneck) thin() netns.Link {
	return netns.Link{Up: b.shape(), Down: b.shape(), PerPacket: true}
}

// far is the cable with the delay.
func (b Bottleneck) far() netns.Link {
	rtt := b.RTT
	if rtt == 0 {
		rtt = defaultRTT
	}
	if rtt < 0 {
		return netns.Link{PerPacket: true}
	}
	return world.Cable(rtt/2, 0)
}

// site is two hosts with a bottleneck between them.
type site struct {
	w    *world.World
	p    *world.Pair
	b    Bottleneck
	thin *netns.Iface // the cable of the bottleneck
	from int          // the end that Bulk leaves
}

// newSite builds it and waits until the tunnel is as it will be.
func newSite(ctx context.Context, lab *netns.Lab, sys world.System, b Bottleneck) (*site, error) {
	w, err := world.New(ctx, lab, sys.With(probeLane), world.Cable(5*time.Millisecond, 0))
	if err != nil {
		return nil, err
	}
	s := &site{w: w, b: b}
	first, second := b.thin(), b.far()
	if b.Where == Router {
		first, second = second, first
	}
	h1, h2 := w.WAN.Host("robot1", first), w.WAN.Host("robot2", second)
	s.thin = h1.Iface(0)
	if b.Where == Router {
		s.thin = h2.Iface(0)
	}
	if b.Where == Download {
		s.from = 1
	}
	if s.p, err = w.Connect(ctx, h1, h2); err != nil {
		return nil, err
	}
	return s, s.ready(ctx)
}

func (s *site) ready(ctx context.Context) error {
	if s.w.System.Built() {
		if _, err := s.p.PathTo(ctx, fleet.PathDirect); err != nil {
			return err
		}
	}
	return world.Pause(ctx, settle)
}

func (s *site) close() { s.p.Close() }

// note writes what the nodes say at the moment beside their logs, for those who
// keep them.
func (s *site) note(ctx context.Context, when string) {
	for _, n := range s.p.Nodes {
		if n == nil {
			continue
		}
		if st, err := n.Status(ctx); err == nil {
			_ = os.WriteFile(filepath.Join(s.w.Lab.LogDir(), fmt.Sprintf("status-%s-%s.json", n.Name, when)), st.Raw, 0o600)
		}
	}
}

// sent is what has left by the bottleneck in the direction of Bulk.
func (s *site) sent() (netns.Traffic, error) {
	up, down, err := s.thin.Traffic()
	if s.b.Where == Own {
		return up, err
	}
	return down, err
}

// setRate changes the bottleneck both ways.
func (s *site) setRate(bits int64) {
	s.b.Rate = bits
	s.thin.SetShape(s.b.shape(), s.b.shape())
}

// trips starts Critical requests from the first host, 100 a second.
func (s *site) trips() (*probe.Trips, error) { return trips(s.p, world.EchoPort, probeSize) }

func trips(p *world.Pair, port uint16, size int) (*probe.Trips, error) {
	c, err := p.UDP(0, 0)
	if err != nil {
		return nil, err
	}
	return probe.StartTrips(c, netip.AddrPortFrom(p.Virtual[1], port), probe.Requests{
		Count: 200_000, Interval: world.Interval, Size: size, Linger: 2 * time.Second,
	})
}

// idle measures round trips for so long, and what they put on the bottleneck, in
// bytes per second.
func (s *site) idle(ctx context.Context, d time.Duration) (probe.Latency, float64, error) {
	before, err := s.sent()
	if err != nil {
		return probe.Latency{}, 0, err
	}
	began := time.Now()
	t, err := s.trips()
	if err != nil {
		return probe.Latency{}, 0, err
	}
	err = world.Pause(ctx, d)
	a, stopErr := t.Stop(ctx)
	took := time.Since(began)
	after, sentErr := s.sent()
	return a.All(), float64(after.Bytes-before.Bytes) / took.Seconds(), errors.Join(err, stopErr, sentErr)
}

// load is what competes with Critical.
type load struct {
	bulk  *probe.Bulk
	blast *probe.Blast
}

func (l *load) close() {
	if l.bulk != nil {
		l.bulk.Close()
	}
	if l.blast != nil {
		l.blast.Close()
	}
}

// bytes is what has arrived of it.
func (l *load) bytes() int64 {
	var n int64
	if l.bulk != nil {
		n += l.bulk.Bytes()
	}
	if l.blast != nil {
		_, b := l.blast.Got()
		n += b
	}
	return n
}

const (
	blastPort = 7100
	blastSize = 1200
)

// bulk prepares TCP flows and a UDP flood of so many bits per second, if any;
// start starts them.
func (s *site) bulk(ctx context.Context, flows int, flood int64) (start func() *load, err error) {
	var ends [2][]net.Conn
	for range flows {
		a, b, err := s.p.TCP(ctx)
		if err != nil {
			return nil, err
		}
		ends[0], ends[1] = append(ends[0], a), append(ends[1], b)
	}
	var out, at *net.UDPConn
	if flood > 0 {
		if at, err = s.p.UDP(1-s.from, blastPort); err == nil {
			out, err = s.p.UDP(s.from, 0)
		}
		if err != nil {
			return nil, err
		}
	}
	return func() *load {
		l := &load{}
		if flows > 0 {
			l.bulk = probe.StartBulk(ends[s.from], ends[1-s.from])
		}
		if flood > 0 {
			l.blast = probe.StartBlast(out, at, netip.AddrPortFrom(s.p.Virtual[1-s.from], blastPort), blastSize, 8, flood)
		}
		s.p.OnClose(l.close)
		return l
	}, nil
}

// meter reads the counters of the bottleneck all the time.
type meter struct {
	stop func()

	mu    sync.Mutex
	at    []time.Time
	bytes []uint64
	err   error
}

const meterEvery = 50 * time.Millisecond

func (s *site) meter() *meter {
	done, ended := make(chan struct{}), make(chan struct{})
	m := &meter{stop: sync.OnceFunc(func() { close(done); <-ended })}
	read := func() {
		t, err := s.sent()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.at, m.bytes = append(m.at, time.Now()), append(m.bytes, t.Bytes)
		m.err = errors.Join(m.err, err)
	}
	go func() {
		defer close(ended)
		tick := time.NewTicker(meterEvery)
		defer tick.Stop()
		read()
		for {
			select {
			case <-tick.C:
				read()
			case <-done:
				read()
				return
			}
		}
	}()
	s.p.OnClose(m.stop)
	return m
}

// end stops it.
func (m *meter) end() error {
	m.stop()
	if m.err != nil {
		return fmt.Errorf("read counters: %w", m.err)
	}
	return nil
}

// rate is bytes per second between two times.
func (m *meter) rate(t0, t1 time.Time) float64 {
	first, last := -1, -1
	for i, at := range m.at {
		if first < 0 && !at.Before(t0) {
			first = i
		}
		if !at.After(t1) {
			last = i
		}
	}
	if first < 0 || last <= first {
		return 0
	}
	return float64(m.bytes[last]-m.bytes[first]) / m.at[last].Sub(m.at[first]).Seconds()
}

// reached is how long after t0 it took until at least that many bytes per second
// had left for 200 ms; Never where that was not before t1.
func (m *meter) reached(t0, t1 time.Time, rate float64) time.Duration {
	const window = 4
	for i := window; i < len(m.at); i++ {
		if m.at[i-window].Before(t0) {
			continue
		}
		if m.at[i].After(t1) {
			break
		}
		if float64(m.bytes[i]-m.bytes[i-window])/m.at[i].Sub(m.at[i-window]).Seconds() >= rate {
			return m.at[i].Sub(t0)
		}
	}
	return world.Never
}

// trace writes what the bottleneck carried and how long requests took, over time,
// beside the logs: lines of seconds since t0, Mbit/s and milliseconds, of which one
// is empty; a request without an answer is "lost".
func (s *site) trace(when string, t0 time.Time, m *meter, a probe.Answers) {
	var b strings.Builder
	b.WriteString("s,mbit,rtt_ms\n")
	for i := 1; i < len(m.at); i++ {
		took := m.at[i].Sub(m.at[i-1]).Seconds()
		fmt.Fprintf(&b, "%.3f,%.2f,\n", m.at[i].Sub(t0).Seconds(), float64(m.bytes[i]-m.bytes[i-1])*8/took/mbit)
	}
	a.Each(t0, func(sent, rtt time.Duration) {
		if rtt == 0 {
			fmt.Fprintf(&b, "%.3f,,lost\n", sent.Seconds())
			return
		}
		fmt.Fprintf(&b, "%.3f,,%.2f\n", sent.Seconds(), rtt.Seconds()*1e3)
	})
	_ = os.WriteFile(filepath.Join(s.w.Lab.LogDir(), "trace-"+when+".csv"), []byte(b.String()), 0o600)
}
