// SPDX-License-Identifier: Apache-2.0

// Package policy decides which nodes may talk: rules are written for names, tags
// and peer ids, never for addresses, and compiled for one node into a table that
// the packet path reads without a lock.
//
// The decision is: a guard that matches denies; otherwise any allow rule that
// matches allows; otherwise it is denied. Order does not matter. A rule speaks of
// who initiates: replies of an allowed flow pass by themselves, on the lanes that
// its rule allows, even where a guard forbids the other side to begin. Both ends
// enforce, the sender to give a quick answer, the receiver because it counts.
//
// Replies are those of TCP, UDP and ICMP echo. An ICMP error about a TCP or UDP
// flow belongs to no flow here: it needs a rule that allows icmp. Later fragments
// have no ports: only rules without ports allow them, any guard of their protocol
// denies them.
//
// The hub evaluates with the same code as the nodes.
package policy
