// SPDX-License-Identifier: Apache-2.0

// Package tun gives and takes the inner IP packets: a kernel TUN interface on
// Linux, the portable water driver elsewhere, and a pipe in memory for tests and
// for programs that want a mesh without root.
package tun

// DefaultName and DefaultMTU are the interface's name and MTU where the
// configuration names none.
const (
	DefaultName = "bauxite0"
	DefaultMTU  = 1350
)

// DefaultTxQueueLen is how many packets the kernel holds until they are read. What it
// has no room for it drops, whatever it is: a piece of a datagram whose other pieces
// then travel in vain, or an emergency stop. An image of 1 MB in UDP datagrams is 800
// fragments, which arrive within a millisecond; and on a machine whose cores are all
// busy, a TCP flow sends hundreds of packets while the reader waits for its turn. With
// both at once 500 lost up to 8 % of Critical, 1000 up to 1 %, and 2000 none. The
// queue is no place where packets wait for the network, since the reader only moves
// them into their lanes: that it is long costs delay only where the reader
// gets too little of a core. A flood that outruns it fills a queue of any length. When
// it is full it takes 5 MB.
const DefaultTxQueueLen = 2000

// Device is a source and sink of whole IP packets, without link header. All
// methods are safe for concurrent use; Read is called by one goroutine per queue.
type Device interface {
	// Name returns the interface's name.
	Name() string
	// MTU returns the largest packet that Read returns and Write takes, in bytes.
	MTU() int
	// Queues returns how many queues can be read independently: 1, or one per
	// lane where the kernel steers lanes into queues of their own.
	Queues() int
	// BatchSize returns the most packets that one Read returns; at least 1.
	BatchSize() int
	// Read blocks until queue has a packet, then takes what is there without
	// waiting for more: packet i lies at bufs[i][offset:offset+sizes[i]]. len(bufs)
	// and len(sizes) are equal. After Close it returns an error that Is
	// net.ErrClosed.
	Read(queue int, bufs [][]byte, sizes []int, offset int) (n int, err error)
	// Write delivers packets, each bufs[i][offset:], by way of queue, and returns
	// how many were taken. It keeps no reference. The bytes before offset may be
	// overwritten. A packet that the kernel refuses is dropped and reported in
	// err after the others were tried.
	Write(queue int, bufs [][]byte, offset int) (n int, err error)
	// Close ends pending reads, removes the interface and is idempotent.
	Close() error
}

// DropCounter is what a Device can be besides.
type DropCounter interface {
	// Dropped returns how many packets the system has dropped since Open because its
	// queue was full: Read came too late. Safe for concurrent use; an error that Is
	// net.ErrClosed after Close.
	Dropped() (uint64, error)
}
