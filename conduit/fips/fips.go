// SPDX-License-Identifier: Apache-2.0

// Package fips is the one place that knows about FIPS 140-3: whether this
// program is a FIPS build, whether it may start, and where cryptography that is
// not approved is still used and why.
//
// A FIPS build is made with
//
//	GOFIPS140=v1.0.0 go build -tags bauxite_fips
//
// GOFIPS140 links the certified Go Cryptographic Module and switches it on; the
// tag makes the program insist on that, and makes AES-256-GCM with random nonces
// the only cipher of the data plane. The tag without the module gives a program
// that refuses to start.
package fips

import (
	"crypto/fips140"
	"errors"
	"fmt"
)

// Module is the version of the Go Cryptographic Module that a FIPS build must
// run on: the one that has a certificate (CMVP #5247).
const Module = "v1.0.0"

// ErrModule is returned by Check.
var ErrModule = errors.New("FIPS 140-3 module is not usable")

// enforced is read once, because inside WithoutEnforcement it would read false.
var enforced = fips140.Enforced()

// Only reports whether nothing but approved ciphers may carry data: in a FIPS
// build, and in every program that runs with GODEBUG=fips140=only.
func Only() bool { return Build || enforced }

// Enforced reports whether the process runs with GODEBUG=fips140=only, where Go
// refuses what is not approved with an error or a panic. It is how the tests of
// a FIPS build find a way that was forgotten; it is not meant for production.
func Enforced() bool { return enforced }

// Check says whether the program may start. It returns nil in a plain build, and
// in a FIPS build that runs on Module with FIPS mode on; else an error that wraps
// ErrModule. Enabled alone would not do: a plain build that is run with
// GODEBUG=fips140=on has it too.
func Check() error { return check(Build, fips140.Enabled(), fips140.Version()) }

func check(build, enabled bool, version string) error {
	switch {
	case !build:
		return nil
	case version != Module:
		return fmt.Errorf("%w: this is a FIPS build, but it is linked with module %q, want %q", ErrModule, version, Module)
	case !enabled:
		return fmt.Errorf("%w: this is a FIPS build, but FIPS mode is off (GODEBUG has fips140=off)", ErrModule)
	}
	return nil
}

// Unapproved runs f with the enforcement of GODEBUG=fips140=only off, for what is
// no security function of a FIPS build or only the second half of an approved
// one: X25519 beside ML-KEM-768 (SP 800-56C r2), and SHA-1 and MD5 in STUN and
// TURN, whose results nothing trusts. Goroutines that f starts inherit it for
// their whole life. Without enforcement it only calls f.
func Unapproved(f func()) { fips140.WithoutEnforcement(f) }
