// SPDX-License-Identifier: Apache-2.0

package dispatch

// initialPolicy is the policy of a new mesh: default deny, with one rule that lets
// all enrolled nodes ping and talk to each other.
func initialPolicy() []byte {
	return []byte(`{"rules":[{"allow":{"from":["*"],"to":["*"]}}]}`)
}
