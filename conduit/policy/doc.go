// SPDX-License-Identifier: Apache-2.0

// Package policy decides which nodes may talk: rules are written for names, tags
// and peer ids, never for addresses, and compiled for one node into a table that
// the packet path reads without a lock.
//
// The decision is: a guard that matches denies; otherwise any allow rule that
// matches allows; otherwise it is denied. Order does not matter. A rule speaks of
// who initiates: replies of an allowed flow pass by themselves. Both ends
// enforce, the sender to give a quick answer, the receiver because it counts.
//
// The hub evaluates with the same code as the nodes.
package policy
