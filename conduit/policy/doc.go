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
// Replies are those of TCP, UDP and ICMP echo. An ICMP error about a TCP or UDP
// flow belongs to no flow here: it needs a rule that allows icmp. Later fragments
// have no ports: only rules without ports allow them, any guard of their protocol
// denies them.
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
// receiver for what arrives there. Outbound and Inbound do not look at budgets:
// the caller asks SpendOutbound and SpendInbound once a packet is allowed.
//
// # Large meshes
//
// Nodes that no selector tells apart are worked out once, so the cost of a policy
// grows with the kinds of nodes rather than with their number, and a join
// compiles nothing.
//
// The hub evaluates with the same code as the nodes.
package policy
