// SPDX-License-Identifier: Apache-2.0

// Package ice finds and punches a direct path to a peer over sockets that
// somebody else owns. It wraps pion/ice v3: pion gathers pairs, checks them and
// nominates one (RFC 8445); everything after that, liveness, selection and
// bonding, is the caller's, who sends data straight from its own socket to the
// address that a [Path] names.
//
// # The way of a STUN message
//
// Inbound: the reader of a socket gives what transport.Demux calls STUN to
// [Mux.Handle]. A strict parser looks at it first, because this is the one
// parser that strangers reach: lengths, attributes, FINGERPRINT, and then
// MESSAGE-INTEGRITY with the password of the agent that USERNAME names, or the
// transaction that a response must belong to. Only what passed is queued for
// pion; the rest is counted and dropped in silence.
//
// Outbound: pion writes to a connection of the mux, which remembers the
// transaction and calls [Socket.SendSTUN]. That must not block.
//
// # Candidates
//
// pion knows one host candidate per socket, its base, labelled with the
// socket's bound address. The candidates that the peer gets are made here: the
// interface addresses behind each socket and the server-reflexive addresses that
// the mux learned by asking STUN servers from the same socket. Checks leave from
// the base anyway (RFC 8445 section 6.1.2.4 prunes such pairs to it), so pion
// needs no more, and a slow STUN server cannot hold up anything.
package ice
