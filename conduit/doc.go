// SPDX-License-Identifier: Apache-2.0

// Package conduit is the data plane of Bauxite as a library: an encrypted
// peer-to-peer overlay that sends urgent packets first.
package conduit
