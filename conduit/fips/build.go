// SPDX-License-Identifier: Apache-2.0

//go:build bauxite_fips

package fips

// Build reports whether this is a FIPS build.
const Build = true
