// SPDX-License-Identifier: Apache-2.0

// Package policy decides which nodes may talk: rules are written for names, tags,
// roles and peer ids, never for addresses, and compiled for one node into a table
// that the packet path reads without a lock.
//
// # Decision
//
// A guard that matches denies. Otherwise the source's roles deny where none of
// them may publish on the lane. Otherwise any allow rule that matches allows.
// Otherwise it is denied. Order does not matter.
//
// A rule speaks of who initiates: replies of an allowed flow pass by themselves,
// on the lanes that its rule allows, even where a guard forbids the other side to
// begin. Both ends enforce, the sender to give a quick answer, the receiver
// because it counts.
//
// Replies are those of TCP, UDP and ICMP echo. An ICMP error passes without a rule
// where it quotes a packet that its receiver sent in a flow that is known and still
// allowed, on whatever lane: kernels know of none. Redirects are no such errors.
//
// Later fragments have no ports. Those of UDP and ICMP are judged as their first
// one was, for five seconds after it. Where it was not seen, and with TCP, only
// rules without ports allow them, any guard of their protocol denies them.
//
// A sender may demote what it sends to Bulk, so a receiver takes on Bulk what is
// allowed on any lane.
//
// # Roles
//
// A role is a name for nodes, which rules and tests may use. With "publish" it is
// also a sandbox: its members may begin flows only on lanes that one of their
// sandboxes names. So among roles rights add up, as people expect of roles, while
// towards the rules they only take away: no role ever allows what no rule allows.
// A node that is in no sandbox is bound by the rules alone; a role with the member
// "*" leaves none outside. Replies need no right of their own, since whoever began
// the flow had it.
//
// A role may give its lanes a budget. A node's budget on a lane is the most
// generous of those of its roles that name the lane, for packets and for bits by
// itself, and none if one of them sets none. It holds for all that the node sends
// on the lane, replies too: at the sender over all its peers together, at a
// receiver for what arrives there. What is over it is demoted by the sender, never
// dropped, counted under "budget:ROLE", and an alarm is raised. A receiver cannot
// demote what has arrived. It bears a second's worth at once, since queues on the
// way gather packets; it counts and alarms above the budget, and denies above twice
// as much, which no node sends that keeps the policy. On Bulk, where demoted
// packets arrive, it denies nothing.
//
// # Large meshes
//
// Rules are worked out as tables from port to decision, for each protocol and lane:
// a packet costs nine comparisons at most, under ten rules or ten thousand.
//
// Nodes that no selector tells apart are worked out once, so the cost of a policy
// grows with the kinds of nodes rather than with their number, and a join
// compiles nothing.
//
// The hub evaluates with the same code as the nodes.
package policy
