// SPDX-License-Identifier: Apache-2.0

// Package tools holds the tests of the tree as a whole. The programs behind
// the Makefile are in cmd/bx and release; go.mod pins the tools they run.
package tools
