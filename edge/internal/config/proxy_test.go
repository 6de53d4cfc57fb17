// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestParseProxy(t *testing.T) {
	req := &http.Request{URL: &url.URL{Scheme: "https", Host: "hub.example:8440"}}
	for _, tt := range []struct {
		in, want string // empty want: none
		ok       bool
	}{
		{"none", "", true},
		{"http://proxy.example:3128", "http://proxy.example:3128", true},
		{"http://bob:secret@[2001:db8::1]:3128/", "http://bob:secret@[2001:db8::1]:3128/", true},
		{"https://proxy.example", "https://proxy.example", true},
		{"proxy.example:3128", "", false},
		{"socks5://proxy.example", "", false},
		{"http://:3128", "", false},
		{"http://bob:secret@proxy/path", "", false},
		{"http://bob:secret@pro xy", "", false},
	} {
		f, err := ParseProxy(tt.in)
		if (err == nil) != tt.ok || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("ParseProxy(%q) = %v, want ok %v and no password", tt.in, err, tt.ok)
		}
		if err != nil {
			continue
		}
		got := ""
		if f != nil {
			u, err := f(req)
			if err != nil {
				t.Errorf("%q: %v", tt.in, err)
				continue
			}
			got = u.String()
		}
		if got != tt.want {
			t.Errorf("ParseProxy(%q) picks %q, want %q", tt.in, got, tt.want)
		}
	}
	if f, err := ParseProxy(""); err != nil || f == nil {
		t.Errorf("the environment is not asked: %v", err)
	}
}
