// SPDX-License-Identifier: Apache-2.0

// Package forge is the over-the-air update engine of Bauxite. This version reserves the
// module path and exports nothing yet.
package forge
