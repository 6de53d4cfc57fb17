// SPDX-License-Identifier: Apache-2.0

// Package uplink keeps one UDP port per interface and family open, on every
// interface that can carry the mesh, while interfaces, addresses and routes come
// and go.
//
// # Bound to the device, not to the address
//
// On Linux a socket is bound to its device (SO_BINDTODEVICE) and to no address.
// The device alone makes the kernel look the route up as if there were no other
// interface, so that two default routes are both used, and the kernel chooses the
// source address anew for each datagram: a changed address costs no new socket,
// no datagram that waits in it and no path. Bound to the address besides, the
// socket would be dead with the first lease that ends. Only where the system
// forbids SO_BINDTODEVICE is the address bound instead.
//
// One more socket per family is bound to nothing, the Fallback: it goes where the
// routing table says, which may be an interface that this package leaves out. On
// other systems than Linux it is the only one.
//
// All share one port number, which a foreign program cannot take on any of them.
package uplink
