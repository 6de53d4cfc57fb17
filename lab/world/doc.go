// SPDX-License-Identifier: Apache-2.0

// Package world is where the measured scenarios take place: a router with a hub,
// and pairs of hosts with a tunnel between them, which is Bauxite, a rival or none.
package world
