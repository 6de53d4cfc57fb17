// SPDX-License-Identifier: Apache-2.0

// Package authz says what each role may do, and what an API key looks like. It is
// pure: one table, asked by one function.
//
// A permission is a resource and a verb, "nodes:write". "read" shows, "write"
// changes; where a role has the second it has the first. A key may carry scopes,
// which are permissions: it then can do what is both in its user's role and in its
// scopes, so that scopes never widen anything, and a role that is lowered lowers
// its user's keys.
package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Role is what a user is.
type Role string

// The roles, from the one that may do all.
const (
	Owner    Role = "owner"
	Admin    Role = "admin"    // all but backups, which hold every secret, and owners
	Operator Role = "operator" // the fleet's daily work: nodes and join tokens
	Auditor  Role = "auditor"  // reads everything, changes nothing
	Viewer   Role = "viewer"   // reads what a wall screen shows
)

// Permission is a resource and a verb, as "nodes:write".
type Permission string

// The permissions. Those of keys are about the caller's own keys; the keys of
// others go with users.
const (
	NodesRead    Permission = "nodes:read"
	NodesWrite   Permission = "nodes:write"
	TokensRead   Permission = "tokens:read"
	TokensWrite  Permission = "tokens:write"
	PolicyRead   Permission = "policy:read"
	PolicyWrite  Permission = "policy:write"
	MetricsRead  Permission = "metrics:read"
	AuditRead    Permission = "audit:read"
	UsersRead    Permission = "users:read"
	UsersWrite   Permission = "users:write"
	KeysRead     Permission = "keys:read"
	KeysWrite    Permission = "keys:write"
	HubRead      Permission = "hub:read"
	HubWrite     Permission = "hub:write"     // rotates the intermediate and the mesh key
	BackupsWrite Permission = "backups:write" // a backup holds the authority's keys
)

// Errors that callers branch on.
var (
	ErrRole  = errors.New("no such role")
	ErrScope = errors.New("no such scope")
	// ErrExceeds means that somebody would give away more than he has.
	ErrExceeds = errors.New("this is more than the caller may do himself")
)

const (
	o = 1 << iota // owner
	a             // admin
	p             // operator
	u             // auditor
	v             // viewer
)

var bits = map[Role]uint8{Owner: o, Admin: a, Operator: p, Auditor: u, Viewer: v}

// table is the whole of it: which roles have a permission.
var table = map[Permission]uint8{
	NodesRead:    o | a | p | u | v,
	NodesWrite:   o | a | p,
	TokensRead:   o | a | p | u,
	TokensWrite:  o | a | p,
	PolicyRead:   o | a | p | u | v,
	PolicyWrite:  o | a,
	MetricsRead:  o | a | p | u | v,
	AuditRead:    o | a | u,
	UsersRead:    o | a | u,
	UsersWrite:   o | a,
	KeysRead:     o | a | p | u | v,
	KeysWrite:    o | a | p | u | v,
	HubRead:      o | a | p | u | v,
	HubWrite:     o | a,
	BackupsWrite: o,
}

// Allowed reports whether a user of role, with a key of scopes, has the
// permission. No scopes means all of the role. What is not in the table is denied.
func Allowed(role Role, scopes []Permission, want Permission) bool {
	if table[want]&bits[role] == 0 {
		return false
	}
	return len(scopes) == 0 || slices.Contains(scopes, want)
}

// Roles returns the roles, from the one that may do most.
func Roles() []Role { return []Role{Owner, Admin, Operator, Auditor, Viewer} }

// All returns every permission in alphabetical order.
func All() []Permission {
	out := make([]Permission, 0, len(table))
	for k := range table {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Permissions returns what Allowed allows, in alphabetical order.
func Permissions(role Role, scopes []Permission) []Permission {
	return slices.DeleteFunc(All(), func(w Permission) bool { return !Allowed(role, scopes, w) })
}

// Exceeds reports whether (role, scopes) has a permission that (than, thanScopes)
// has not. Who grants must not be exceeded by what he grants.
func Exceeds(role Role, scopes []Permission, than Role, thanScopes []Permission) bool {
	for w := range table {
		if Allowed(role, scopes, w) && !Allowed(than, thanScopes, w) {
			return true
		}
	}
	return false
}

// ParseRole reads a role. Errors: ErrRole.
func ParseRole(s string) (Role, error) {
	if r := Role(s); bits[r] != 0 {
		return r, nil
	}
	return "", fmt.Errorf("%w: %q is none of owner, admin, operator, auditor, viewer", ErrRole, s)
}

// ParseScopes reads scopes and returns them in order, each once. Errors: ErrScope.
func ParseScopes(list []string) ([]Permission, error) {
	out := make([]Permission, 0, len(list))
	for _, s := range list {
		w := Permission(s)
		if table[w] == 0 {
			return nil, fmt.Errorf("%w: %q is none of %s", ErrScope, s, JoinScopes(All(), ", "))
		}
		out = append(out, w)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// JoinScopes writes scopes with sep between them.
func JoinScopes(list []Permission, sep string) string {
	s := make([]string, len(list))
	for i, w := range list {
		s[i] = string(w)
	}
	return strings.Join(s, sep)
}
