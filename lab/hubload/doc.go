// SPDX-License-Identifier: Apache-2.0

// Package hubload puts the built hub under the load of a large fleet and measures
// it: joins, connected nodes, fan-out of changes, recovery from a crash and
// signalling. The hub runs in a process of its own; all nodes are simulated in
// this one, over real TCP, TLS 1.3 with certificates and HTTP/2 on loopback.
//
// # A simulated node
//
// It does what the connector of a real node does: WatchTopology and
// ExchangeCandidates on one connection, the policy once per version, pings, and a
// resumption by the (epoch, rv) that it has stored. Its first retry after a lost
// connection is spread over 10 s. It keeps no peers, and all nodes of a process
// check the hub's certificate chain only once, since ten thousand machines that
// do so on the hub's own two cores would measure themselves.
//
// # Use
//
// [Open] starts a hub, [Lab.Join] enrols machines, [Lab.Fleet] connects them, and
// the other methods of Lab each make one measurement. The program lab/cmd/hubload
// is a command line around them.
package hubload
