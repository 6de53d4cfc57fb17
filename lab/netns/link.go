// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/bauxite-mesh/bauxite/lab/delaybox"
)

// Shape is what one direction of a cable does to packets. Zero is a perfect
// direction.
type Shape struct {
	Rate   int64         // bits per second, 0 = unlimited
	Queue  int           // bytes that wait for Rate, 0 = delaybox.DefaultQueue
	Burst  int           // bytes that may pass Rate at once, 0 = some; the kernel's only, and above a frame
	Delay  time.Duration // one way
	Jitter time.Duration // uniform ± around Delay
	Loss   float64       // chance of a drop per packet, 0 to 1
}

// Link is a cable. The zero value is a perfect one.
type Link struct {
	Up   Shape // from the host to the network
	Down Shape // from the network to the host

	// MTU of both ends. Zero means 1500.
	MTU int
	// PerPacket turns segmentation offload off, so that captures and shapes
	// see wire packets. A cable with a shape always works so.
	PerPacket bool
}

// Iface is one end of a cable, at a host.
type Iface struct {
	Host         *Host
	Name         string
	Addr4, Addr6 netip.Prefix

	link     Link
	network  *Host  // namespace at the other end
	port     string // interface there
	place    placement
	metric   int
	box      *delaybox.Box // nil: a plain veth pair
	tap      *os.File      // the host's end of box
	moves    int           // how often it got other addresses
	detached bool          // blackholed
	pulled   bool          // box only: unplugged
}

// Attach connects the host to a network with a cable of its own. The first
// attachment has the preferred default route, later ones the next metrics.
func (h *Host) Attach(n Network, link Link) *Iface {
	l, o := h.lab, n.owner()
	l.tb.Helper()
	if link.MTU == 0 {
		link.MTU = 1500
	}
	i := &Iface{
		Host: h, Name: fmt.Sprintf("eth%d", len(h.ifaces)), link: link, network: o,
		port: fmt.Sprintf("%.10s-%d", h.name, o.ports), place: n.place(), metric: 100 * (1 + len(h.ifaces)),
	}
	i.Addr4, i.Addr6 = i.place.v4, i.place.v6
	o.ports++
	h.ifaces = append(h.ifaces, i)
	l.check(i.connect(), "attach %s to %s", h.name, o.name)
	return i
}

// connect makes the cable and configures both ends.
func (i *Iface) connect() error {
	up, down := i.link.Up, i.link.Down
	var err error
	if needsBox(up, i.bridged()) || needsBox(down, i.bridged()) {
		err = i.makeBox()
	} else {
		err = i.makeVeth()
	}
	if err != nil {
		return err
	}
	if err := i.network.Do(i.configureNetwork); err != nil {
		return err
	}
	if err := i.Host.Do(i.configureHost); err != nil {
		return err
	}
	return i.settle()
}

// settleTime bounds settle; the kernel needs up to a second when many links
// change at once.
const settleTime = 3 * time.Second

// settle waits until the kernel has seen the carrier at both ends. Until then
// it drops what is sent there, and a lost ARP answer costs a second.
func (i *Iface) settle() error {
	if err := i.Host.Do(func() error { return awaitUp(i.Name, i.tap != nil) }); err != nil {
		return err
	}
	return i.network.Do(func() error {
		err := awaitUp(i.port, i.tap != nil)
		if err == nil && i.bridged() {
			err = awaitUp(i.place.bridge, false)
		}
		return err
	})
}

// bridged tells whether the network's end is a port of a bridge.
func (i *Iface) bridged() bool { return i.place.bridge != "" }

// awaitUp waits until an interface of the calling thread's namespace works. A
// TAP has its carrier from the start, of which the kernel may say nothing.
func awaitUp(name string, tap bool) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(settleTime); ; <-tick.C {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		switch state := link.Attrs().OperState; {
		case state == netlink.OperUp:
			return nil
		case state == netlink.OperUnknown && tap:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("bring up %s: still %v after %v", name, state, settleTime)
		}
	}
}

// needsBox tells whether a direction is beyond the kernel: it has no netem,
// and netfilter does not see what only crosses a bridge.
func needsBox(s Shape, bridged bool) bool {
	return s.Delay > 0 || s.Jitter > 0 || s.Loss > 0 && bridged
}

// makeBox joins two TAP devices by a delay box, which also does rate and loss.
func (i *Iface) makeBox() error {
	var a, b *os.File
	err := i.Host.Do(func() (err error) { a, err = delaybox.OpenTAP(i.Name); return err })
	if err != nil {
		return err
	}
	if err := i.network.Do(func() (err error) { b, err = delaybox.OpenTAP(i.port); return err }); err != nil {
		return errors.Join(err, a.Close())
	}
	box, err := delaybox.New(a, b, i.link.Up.params(), i.link.Down.params())
	if err != nil {
		return errors.Join(err, a.Close(), b.Close())
	}
	box.Start()
	if !i.Host.lab.onClose(box.Close) {
		return errors.Join(errors.New("lab is closed"), box.Close())
	}
	i.box, i.tap = box, a
	return nil
}

func (s Shape) params() delaybox.Params {
	return delaybox.Params{Delay: s.Delay, Jitter: s.Jitter, Loss: s.Loss, Rate: s.Rate, Queue: s.Queue}
}

// makeVeth joins the two namespaces by a veth pair, with TBF for the rate at
// the sending end and netfilter at the router for loss.
func (i *Iface) makeVeth() error {
	for _, s := range []Shape{i.link.Up, i.link.Down} {
		if err := s.params().Validate(); err != nil {
			return err
		}
	}
	err := i.Host.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = i.Name
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: i.port, PeerNamespace: netlink.NsFd(int(i.network.ns)),
		})
	})
	if err != nil {
		return fmt.Errorf("make veth: %w", err)
	}
	perPacket := i.link.PerPacket || i.link.Up != Shape{} || i.link.Down != Shape{}
	if err := i.Host.Do(func() error { return shapeVeth(i.Name, i.link.Up, perPacket) }); err != nil {
		return err
	}
	return i.network.Do(func() error {
		if err := shapeVeth(i.port, i.link.Down, perPacket); err != nil {
			return err
		}
		return addLoss(i.port, i.link.Up.Loss, i.link.Down.Loss)
	})
}

// shapeVeth applies rate and segmentation at a sending end.
func shapeVeth(name string, s Shape, perPacket bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if perPacket {
		// One segment per packet: the kernel cuts in software before sending.
		if err := netlink.LinkSetGSOMaxSegs(link, 1); err != nil {
			return fmt.Errorf("turn off segmentation offload of %s: %w", name, err)
		}
	}
	if s.Rate == 0 {
		return nil
	}
	if err := netlink.QdiscReplace(s.tbf(link)); err != nil {
		return fmt.Errorf("add rate limit to %s: %w", name, err)
	}
	return nil
}

// tbf is the rate limit as the kernel knows it.
func (s Shape) tbf(link netlink.Link) *netlink.Tbf {
	queue, burst := s.Queue, int64(s.Burst)
	if queue == 0 {
		queue = delaybox.DefaultQueue
	}
	if burst == 0 {
		// The bucket holds what leaves within one tick of a 250 Hz kernel, and
		// never less than two full packets.
		burst = max(s.Rate/8/250, 2*1514)
	}
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0),
		},
		Rate:   uint64(s.Rate / 8),
		Limit:  uint32(queue),
		Buffer: netlink.Xmittime(uint64(s.Rate/8), uint32(burst)),
	}
}

// configureNetwork sets up the network's end; it runs in that namespace.
func (i *Iface) configureNetwork() error {
	link, err := netlink.LinkByName(i.port)
	if err != nil {
		return fmt.Errorf("find %s: %w", i.port, err)
	}
	if err := netlink.LinkSetMTU(link, i.link.MTU); err != nil {
		return fmt.Errorf("set MTU of %s: %w", i.port, err)
	}
	if i.bridged() {
		if err := i.join(); err != nil {
			return err
		}
		return linkUp(i.port)
	}
	if err := linkUp(i.port); err != nil {
		return err
	}
	return addAddrs(i.port, i.place.own4, i.place.own6)
}

// join puts the network's end into its bridge.
func (i *Iface) join() error {
	link, err := netlink.LinkByName(i.port)
	if err != nil {
		return fmt.Errorf("find %s: %w", i.port, err)
	}
	br, err := netlink.LinkByName(i.place.bridge)
	if err == nil {
		err = netlink.LinkSetMaster(link, br)
	}
	if err != nil {
		return fmt.Errorf("join %s to %s: %w", i.port, i.place.bridge, err)
	}
	return nil
}

// configureHost sets up the host's end; it runs in that namespace.
func (i *Iface) configureHost() error {
	link, err := netlink.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", i.Name, err)
	}
	if err := netlink.LinkSetMTU(link, i.link.MTU); err != nil {
		return fmt.Errorf("set MTU of %s: %w", i.Name, err)
	}
	if err := linkUp(i.Name); err != nil {
		return err
	}
	if err := addAddrs(i.Name, i.Addr4, i.Addr6); err != nil {
		return err
	}
	return i.addDefaults()
}

func (i *Iface) addDefaults() error {
	if i.place.gw4.IsValid() {
		if err := addRoute(i.Name, default4, i.place.gw4, i.metric); err != nil {
			return err
		}
	}
	if i.place.gw6.IsValid() {
		return addRoute(i.Name, default6, i.place.gw6, i.metric)
	}
	return nil
}

// Down takes the interface down at the host, as `ip link set down` does.
func (i *Iface) Down() {
	i.Host.lab.tb.Helper()
	i.Host.lab.check(i.Host.Do(func() error { return setLink(i.Name, false) }), "take down %s", i)
}

// Up undoes Down and puts the default routes back.
func (i *Iface) Up() {
	i.Host.lab.tb.Helper()
	err := i.Host.Do(func() error { return setLink(i.Name, true) })
	if err == nil {
		err = i.settle()
	}
	if err == nil {
		err = i.Host.Do(i.addDefaults)
	}
	i.Host.lab.check(err, "bring up %s", i)
}

// Unplug pulls the cable: the host's interface loses its carrier.
func (i *Iface) Unplug() { i.carrier(false) }

// Plug undoes Unplug.
func (i *Iface) Plug() { i.carrier(true) }

func (i *Iface) carrier(on bool) {
	i.Host.lab.tb.Helper()
	var err error
	if i.tap != nil {
		// The kernel stops a TAP without carrier only after a while, so the
		// box stops at once.
		i.pulled = !on
		err = errors.Join(i.setBox(), delaybox.SetCarrier(i.tap, on))
	} else {
		err = i.network.Do(func() error { return setLink(i.port, on) })
	}
	i.Host.lab.check(err, "set carrier of %s", i)
}

// Blackhole drops everything that crosses the cable, silently: the host's
// interface stays up. Blackhole(false) lets it through again.
func (i *Iface) Blackhole(on bool) {
	i.Host.lab.tb.Helper()
	if on == i.detached {
		return
	}
	i.detached = on
	i.Host.lab.check(i.network.Do(func() error {
		if !i.bridged() {
			return setBlackhole(i.port, on)
		}
		if !on {
			return i.join()
		}
		link, err := netlink.LinkByName(i.port)
		if err == nil {
			err = netlink.LinkSetNoMaster(link)
		}
		return err
	}), "blackhole %s", i)
}

// SetShape changes a cable that was made with a delay. Of others it changes the
// loss, and the rate of a direction that has one; what waits there stays.
func (i *Iface) SetShape(up, down Shape) {
	i.Host.lab.tb.Helper()
	old := i.link
	i.link.Up, i.link.Down = up, down
	if i.box != nil {
		i.Host.lab.check(i.setBox(), "set shape of %s", i)
		return
	}
	for _, d := range [][2]Shape{{old.Up, up}, {old.Down, down}} {
		if d[1].Delay != d[0].Delay || d[1].Jitter != d[0].Jitter || (d[1].Rate == 0) != (d[0].Rate == 0) || i.bridged() {
			i.Host.lab.tb.Fatalf("lab: set shape of %s: a cable made without a delay can only change loss and rate", i)
		}
	}
	err := i.Host.Do(func() error { return shapeVeth(i.Name, up, true) })
	if err == nil {
		err = i.network.Do(func() error {
			if err := shapeVeth(i.port, down, true); err != nil {
				return err
			}
			if up.Loss == old.Up.Loss && down.Loss == old.Down.Loss {
				return nil
			}
			return setLoss(i.port, up.Loss, down.Loss)
		})
	}
	i.Host.lab.check(err, "set shape of %s", i)
}

// Traffic is what has left by an end of a cable.
type Traffic struct {
	Bytes   uint64 // of Ethernet frames, as the rate limit counts them
	Packets uint64
	Dropped uint64 // by the rate limit, as its queue was full
}

// Traffic counts what has left the host by this interface, and what the network
// has sent to it.
func (i *Iface) Traffic() (up, down Traffic, err error) {
	if err := i.Host.Do(func() (err error) { up, err = traffic(i.Name); return err }); err != nil {
		return up, down, err
	}
	err = i.network.Do(func() (err error) { down, err = traffic(i.port); return err })
	return up, down, err
}

func traffic(name string) (t Traffic, err error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return t, fmt.Errorf("find %s: %w", name, err)
	}
	if s := link.Attrs().Statistics; s != nil {
		t.Bytes, t.Packets = s.TxBytes, s.TxPackets
	}
	qdiscs, err := netlink.QdiscList(link)
	if err != nil {
		return t, fmt.Errorf("read queue of %s: %w", name, err)
	}
	for _, q := range qdiscs {
		if s := q.Attrs().Statistics; s != nil && s.Queue != nil && q.Attrs().Parent == netlink.HANDLE_ROOT {
			t.Dropped += uint64(s.Queue.Drops)
		}
	}
	return t, nil
}

// setBox tells the box what the cable is like now.
func (i *Iface) setBox() error {
	up, down := i.link.Up.params(), i.link.Down.params()
	if i.pulled {
		up, down = delaybox.Params{Loss: 1}, delaybox.Params{Loss: 1}
	}
	return errors.Join(i.box.Set(delaybox.AToB, up), i.box.Set(delaybox.BToA, down))
}

// String is "host/interface".
func (i *Iface) String() string { return i.Host.name + "/" + i.Name }

// setLink takes an interface of the calling thread's namespace up or down.
func setLink(name string, up bool) error {
	if up {
		return linkUp(name)
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err != nil {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	return nil
}
