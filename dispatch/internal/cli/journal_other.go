// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cli

import "io"

// isJournal reports whether w goes to the journal, which only Linux has.
func isJournal(io.Writer) bool { return false }
