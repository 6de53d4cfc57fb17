// SPDX-License-Identifier: Apache-2.0

// Package congestion decides how fast a path may be filled, so that what is
// urgent never waits behind what is big.
package congestion
