// SPDX-License-Identifier: Apache-2.0

// Package probe makes the lab's test traffic: a UDP echo, request and response
// latency, waiting for the first answer, and a TCP transfer with a checksum.
// Every call ends after a stated number of packets or bytes, or with its
// context. The functions take sockets, so they work inside a namespace when
// the socket was opened there.
package probe
