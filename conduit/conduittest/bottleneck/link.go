// SPDX-License-Identifier: Apache-2.0

package bottleneck

import "time"

// datagram is a packet on the wire, or on its way there.
type datagram struct {
	size   int    // on the wire
	source int    // whom it is counted for
	flow   *flow  // nil: Critical
	seq    int64  // in the flow, or number of the Critical packet
	robot  *robot // nil: foreign
	ce     bool   // the inner packet was marked

	// Of the tunnel.
	lane    uint8
	session uint32
	counter uint64
	sent    int64
}

// path is the rest of a way, behind the queue. It keeps the order.
type path struct {
	delay int64
	last  int64 // the latest arrival so far
}

// binWidth is the resolution at which the link counts what leaves it.
const binWidth = 100 * millisecond

// link is the bottleneck: a queue of bytes, a service, a delay.
type link struct {
	*loop
	Link
	queue  []*datagram
	bytes  int
	busy   bool
	left   float64 // bytes of the first packet that did not leave yet
	credit float64 // LTE: granted and not used; Policer: tokens
	filled int64   // when credit was last brought up to date
	tail   path    // of foreign packets

	jitter   [2]float64 // the points on both sides of now
	jitterAt [2]int64

	bins  [][]float64 // bytes that left, by source and time
	drops []int       // at the queue, by source
	lost  []int       // at random, by source
}

func newLink(l *loop, cfg Link, delay int64, sources int) *link {
	k := &link{
		loop: l, Link: cfg, tail: path{delay: delay},
		bins: make([][]float64, sources), drops: make([]int, sources), lost: make([]int, sources),
	}
	switch cfg.Service {
	case LTE:
		k.grant()
	case Policer:
		k.credit = float64(cfg.Queue)
	default:
	}
	return k
}

// rate is in bytes per second, at least 1 kbit/s so that nothing takes for ever.
func (k *link) rate() float64 { return max(125, k.RateAt(time.Duration(k.now))) }

// send puts d into the queue, or drops it.
func (k *link) send(d *datagram) {
	if k.Service == Policer {
		k.police(d)
		return
	}
	if k.bytes+d.size > k.Queue {
		k.drops[d.source]++
		return
	}
	k.queue = append(k.queue, d)
	k.bytes += d.size
	if k.busy {
		return
	}
	switch k.Service {
	case Steady:
		k.busy = true
		k.serve()
	case WiFi:
		k.busy = true
		k.contend()
	default:
	}
}

func (k *link) pop() *datagram {
	d := k.queue[0]
	k.queue[0] = nil
	k.queue = k.queue[1:]
	k.bytes -= d.size
	return d
}

// serve sends the first packet, which stays in the queue until its last bit left.
func (k *link) serve() {
	if len(k.queue) == 0 {
		k.busy = false
		return
	}
	k.left = float64(k.queue[0].size)
	k.serveOn(nil)
}

// serveOn goes on with the first packet. It looks at the rate every 10 ms, so that
// an outage does not outlive itself in a packet.
func (k *link) serveOn(*datagram) {
	if most := k.rate() * 0.010; k.left > most {
		k.left -= most
		k.carryAt(k.now+10*millisecond, k.serveOn, nil)
		return
	}
	k.carryAt(k.now+int64(k.left/k.rate()*1e9), k.served, nil)
}

func (k *link) served(*datagram) {
	k.out(k.pop())
	k.serve()
}

// grant lets what waits leave, as much as the cell gave since the last grant.
func (k *link) grant() {
	gap := int64(k.uniform(10e6, 20e6))
	k.after(gap, func() {
		k.credit += k.rate() * float64(gap) / 1e9
		for len(k.queue) > 0 && k.credit >= float64(k.queue[0].size) {
			d := k.pop()
			k.credit -= float64(d.size)
			k.out(d)
		}
		if len(k.queue) == 0 {
			k.credit = 0 // a grant is used or lost
		}
		k.grant()
	})
}

// contend waits for the air and sends one aggregate.
func (k *link) contend() {
	if len(k.queue) == 0 {
		k.busy = false
		return
	}
	wait := int64((0.3 + 0.8*k.rng.ExpFloat64()) * 1e6)
	if k.rng.Float64() < 0.02 {
		wait += int64(k.uniform(5e6, 15e6))
	}
	k.after(wait, func() {
		var aggregate []*datagram
		size, room := 0.0, k.rate()*0.004
		for len(k.queue) > 0 && len(aggregate) < 64 && (len(aggregate) == 0 || size+float64(k.queue[0].size) <= room) {
			d := k.pop()
			size += float64(d.size)
			aggregate = append(aggregate, d)
		}
		k.after(int64(size/k.rate()*1e9), func() {
			for _, d := range aggregate {
				k.out(d)
			}
			k.contend()
		})
	})
}

func (k *link) police(d *datagram) {
	k.credit = min(float64(k.Queue), k.credit+k.rate()*float64(k.now-k.filled)/1e9)
	k.filled = k.now
	if k.credit < float64(d.size) {
		k.drops[d.source]++
		return
	}
	k.credit -= float64(d.size)
	k.out(d)
}

// out counts d, which left the queue, and carries it over the rest of the path.
func (k *link) out(d *datagram) {
	i := int(k.now / binWidth)
	for len(k.bins[d.source]) <= i {
		k.bins[d.source] = append(k.bins[d.source], 0)
	}
	k.bins[d.source][i] += float64(d.size)
	if k.Loss > 0 && k.rng.Float64() < k.Loss {
		k.lost[d.source]++
		return
	}
	path := &k.tail
	if d.robot != nil {
		path = &d.robot.path
	}
	at := k.now + path.delay
	if k.Jitter > 0 {
		at += k.wander()
	}
	if k.Extra != nil {
		at += int64(k.Extra(time.Duration(k.now)))
	}
	path.last = max(path.last, at)
	k.carryAt(path.last, arrive, d)
}

// wander is the jitter at this moment: a line between points that are drawn each 10 ms
// or so. Drawn for each packet, the order would make of it a standing delay near the
// most.
func (k *link) wander() int64 {
	for k.now >= k.jitterAt[1] {
		k.jitterAt = [2]int64{k.jitterAt[1], k.jitterAt[1] + int64(k.uniform(5e6, 15e6))}
		k.jitter = [2]float64{k.jitter[1], k.uniform(0, float64(k.Jitter))}
	}
	share := float64(k.now-k.jitterAt[0]) / float64(k.jitterAt[1]-k.jitterAt[0])
	return int64(k.jitter[0] + share*(k.jitter[1]-k.jitter[0]))
}

// arrive hands d to the receiving robot, or the flow's far end.
func arrive(d *datagram) {
	switch {
	case d.robot != nil:
		d.robot.receive(d)
	default:
		d.flow.arrived(d)
	}
}
