// SPDX-License-Identifier: Apache-2.0

// Package identity says who a node is: its two long-lived keys, the PeerID that
// is a hash of both, the certificate by which the hub vouches for them, and the
// token with which a machine asks for one.
//
// A PeerID certifies itself: whoever knows a PeerID can check the keys that
// claim it, so a hub can invent peers but cannot exchange the keys of a known
// one. The certificate adds what only the hub can say: the name and the virtual
// addresses.
//
// Nothing here does network I/O. All values are safe for concurrent use once
// made.
package identity
