// SPDX-License-Identifier: Apache-2.0

// Package local is how the bauxite command talks to the running daemon: Connect
// RPC over a unix socket in the home directory. On the same socket a client may
// send the one line "connect:<peer>" and gets one line back.
//
// Who may connect: the socket has mode 0660, and the daemon asks the kernel for
// the caller's user and group, so that a socket that was made accessible by
// mistake still serves nobody but root, its owner and its group.
package local
