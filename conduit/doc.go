// SPDX-License-Identifier: Apache-2.0

// Package conduit is the data plane of Bauxite as a library: an encrypted
// peer-to-peer overlay that sends urgent packets first and keeps its peers through
// changes of the network.
//
// # A node
//
// A [Node] takes IP packets from a device, finds the peer of each by its
// destination address, and carries it there sealed; what peers send comes out of
// the device. It is made of keys and a certificate (package identity), a device
// (package tun: the kernel's interface, or a pipe in memory that needs no root)
// and a [HubConnector], which tells it who its peers are and carries the messages
// by which two nodes meet. Package hub has the connector to a real hub; package
// conduittest has a hub in memory, and whole meshes in one process. [New] checks a
// [Config] and does no I/O, Start opens the sockets, Close waits for everything.
// The example of [Node] does all of it.
//
// The first packet for a peer sets up a session; [Node.Connect] does so too, and
// says why where it fails. Keys are replaced every two minutes between the two
// nodes, and by a full handshake every hour.
//
// # Paths
//
// A peer may be reached over several paths at once: from each of our interfaces to
// each of its addresses, over another node that is willing ([Config.Relay]), and,
// where the connector is a [PacketRelay], over TURN and the hub's stream. A relay
// serves at once, a direct path takes over when it answers. How the lanes use
// several paths says [Config.Bonding], what interfaces cost says [Config.Uplinks].
// No Critical packet is lost when paths change, as long as one of them carries it
// within a second. [Node.Status] shows all of them.
//
// # Lanes and policy
//
// Each packet travels in one of three lanes, Critical before Telemetry before
// Bulk. Nothing passes that the policy does not allow (package policy): the sender
// asks it, and the receiver again. Until a connector delivers one, all is denied.
//
// # Without the hub
//
// A running node keeps its sessions. With [Config.StateFile] it also starts
// without the hub, from what it knew, and meets known peers at their last
// addresses. The file holds no secret key.
package conduit
