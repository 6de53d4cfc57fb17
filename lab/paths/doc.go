// SPDX-License-Identifier: Apache-2.0

// Package paths has the scenarios in which Bauxite must keep its peers: behind
// every kind of NAT, through changes of path, uplink and address, without the
// hub, without UDP, under attack and over narrow paths; some of them with other
// tunnels beside it.
//
// A scenario is a function of a lab that returns what was measured. The tests of
// lab/e2e run them in short and look at the results themselves; lab/cmd/paths
// runs all of them, several times and interleaved, and prints the figures
// beside their goals.
//
// The network is as good as one machine can make it: both robots, the hub, the
// routers, the delay boxes and the traffic share its cores. Times are those of
// one clock, at the sockets of the applications.
package paths
