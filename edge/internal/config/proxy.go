// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"net/http"
	"net/url"
)

// noProxy is the value of hub.proxy that overrides the environment.
const noProxy = "none"

var errProxy = errors.New(`want http://[USER:PASSWORD@]HOST[:PORT], https:// likewise, or "none"`)

// ParseProxy reads the value of hub.proxy and returns how to pick the proxy for a
// request; nil means none. Its errors do not repeat the value, which may hold a
// password.
func ParseProxy(s string) (func(*http.Request) (*url.URL, error), error) {
	switch s {
	case "":
		return http.ProxyFromEnvironment, nil
	case noProxy:
		return nil, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errProxy
	}
	return http.ProxyURL(u), nil
}
