// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the built binaries against each other inside labs: every
// promise that Bauxite makes to its users, by the commands that they type.
package e2e
