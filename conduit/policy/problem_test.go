// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"strings"
	"testing"
)

func TestProblemPointer(t *testing.T) {
	for text, want := range map[string]string{
		`{"version":2}`:        "/version",
		rule(`"id":"a b"`):     "/allow/0/id",
		rule(`"proto":"sctp"`): "/allow/0/proto",
		rule(`"ports":["1"]`):  "/allow/0/ports",
		test(`"want":"x"`):     "/tests/0/want",
		test(`"lane":"bulk"`):  "/tests/0/want",
		role(`,"publish":["bulk"],"budgets":{"bulk":{}}`):                                                          "/roles/0/budgets/bulk",
		role(`,"budgets":{"bulk":{"bits_per_second":1}}`):                                                          "/roles/0/budgets/bulk",
		`{"version":1,"roles":[{"name":"a","members":["*","x"]}]}`:                                                 "/roles/0/members/1",
		`{"version":1,"roles":[{"name":"a","members":["*"]},{"name":"a","members":["*"]}]}`:                        "/roles/1/name",
		`{"version":1,"allow":[{"src":["*"],"dst":["*"]},{"src":["*","role:x"],"dst":["*"]}]}`:                     "/allow/1/src/1",
		`{"version":1,"guards":[{"src":["*"],"dst":[]}]}`:                                                          "/guards/0/dst",
		`{"version":1,"guards":[{"src":["*"],"dst":["*"],"proto":"tcp","ports":["1","x"]}]}`:                       "/guards/0/ports/1",
		`{"version":1,"allow":[{"id":"a","src":["*"],"dst":["*"]}],"guards":[{"id":"a","src":["*"],"dst":["*"]}]}`: "/guards/0/id",
		`{"version":1,"tests":[{"src":"*","dst":"y","want":"deny"}]}`:                                              "/tests/0/dst",
		`{"version":1,"tests":[{"src":"*","dst":"*","proto":"tcp","want":"deny"}]}`:                                "/tests/0/port",
	} {
		_, err := Parse([]byte(text))
		var p *Problem
		if !errors.As(err, &p) || p.Pointer != want || !errors.Is(err, ErrDocument) {
			t.Errorf("%s: %v, want a problem at %s", text, err, want)
		} else if strings.Contains(err.Error(), "/") {
			t.Errorf("%s: the pointer is in the words: %v", text, err)
		}
	}
}
