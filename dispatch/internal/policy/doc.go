// SPDX-License-Identifier: Apache-2.0

// Package policy is the hub's side of policies: the text that people write, and
// how a version comes into force by stages.
//
// # Text
//
// People write HuJSON, which is JSON with comments and trailing commas. The
// document of conduit/policy is JSON, so there is no second language to learn and
// nothing to translate: what is in force is the text without its comments. Places
// in the text stay what they are, so an error names the line and column of the
// person's own words. TOML would have given comments as well, at the price of a
// second spelling of lists of tables. The text is stored beside the document.
//
// # Stages
//
// Machine decides about a staged activation and knows no clock, store or nodes:
// see there.
package policy
