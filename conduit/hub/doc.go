// SPDX-License-Identifier: Apache-2.0

// Package hub links a node to its hub with Connect RPC over one HTTP/2
// connection and mutual TLS 1.3. It implements conduit.HubConnector, and it is
// the only package of the data plane that knows the hub's protocol.
//
// # Trust
//
// The hub is known by the mesh's own root and by the name that only the hub's
// certificate has, spiffe://<mesh id>/hub. The host name of the URL is not
// checked: the root signs for one mesh only, and a hub moves between addresses
// and NATs. No system root is ever trusted.
//
// # Failure
//
// Whatever fails, the Connector closes the connection and dials anew after a
// random delay that grows to 30 s, and continues the topology where it was.
//
// # Relay
//
// Where nothing else connects two nodes, their packets take the hub's relay stream,
// on the same connection, sealed from end to end. TCP has one queue, so what cannot
// be overtaken is kept short: 32 packets wait here, Critical first, a message holds
// 4 KiB, and 16 KiB stand unsent in the socket (Linux).
package hub
