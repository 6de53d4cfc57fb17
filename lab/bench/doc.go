// SPDX-License-Identifier: Apache-2.0

// Package bench runs the scenarios of the lab that are measured rather than
// tested: several times, interleaved, beside other tunnels, and writes the
// figures beside their goals.
package bench
