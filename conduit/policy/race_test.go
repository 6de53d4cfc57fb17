// SPDX-License-Identifier: Apache-2.0

//go:build race

package policy

// slow is set where each packet costs thirty times as much.
const slow = true
