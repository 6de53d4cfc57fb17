// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin

package cli

import "io"

func lines(io.Writer) int { return 0 }
