// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package engine

import "time"

func sinceBoot() time.Duration { return 0 }
