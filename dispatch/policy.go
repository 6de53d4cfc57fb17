// SPDX-License-Identifier: Apache-2.0

package dispatch

import "github.com/bauxite-mesh/bauxite/conduit/policy"

// initialPolicy is the policy of a new mesh: default deny, with one rule that lets
// all enrolled nodes ping and talk to each other.
func initialPolicy() []byte { return policy.Default().Marshal() }
