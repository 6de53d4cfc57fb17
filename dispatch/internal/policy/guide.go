// SPDX-License-Identifier: Apache-2.0

package policy

// guide stands above a policy that nobody wrote, so that whoever edits it first
// sees the whole language.
const guide = `// What nodes may do with each other. What no rule allows is denied.
// This is JSON with comments and trailing commas; their order makes no difference.
//
// allow   rules, of which any that matches allows
// guards  rules, of which any that matches denies: nothing overrides them
// roles   names for nodes; with "publish" also a sandbox: members begin flows only
//         on the lanes that their roles name, within their budgets
// tests   what must hold before a version is stored or activated
//
// A rule says who may begin what with whom; answers pass by themselves:
//   {"id": "ssh", "src": ["role:ops"], "dst": ["tag:robot"], "proto": "tcp", "ports": ["22", "8000-8010"], "lanes": ["bulk"]}
// src, dst  "*", "name:NAME", "tag:TAG", "role:ROLE" or "node:NODEID"; any is enough
// proto     any (also if left out), icmp, tcp or udp; ports only with tcp and udp
// lanes     critical, telemetry, bulk; all if left out
//
// A role, and a budget with its burst, which may be left out:
//   {"name": "ops", "members": ["tag:ops"]}
//   {"name": "camera", "members": ["tag:camera"], "publish": ["bulk"], "budgets": {"bulk": {"bits_per_second": 20000000, "burst_bits": 4000000}}}
// A test, which must speak of two nodes at least; lane is critical if left out:
//   {"src": "tag:guest", "dst": "tag:robot", "proto": "tcp", "port": 22, "lane": "bulk", "want": "deny"}
`

// Commented returns a text for a document that has none.
func Commented(document []byte) string {
	text := guide + string(document)
	if nice, err := Format(text); err == nil {
		return nice
	}
	return text
}
