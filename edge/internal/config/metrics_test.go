// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"strings"
	"testing"
)

func TestMetrics(t *testing.T) {
	for listen, want := range map[string]string{"": "", "none": "", "127.0.0.1:9464": "127.0.0.1:9464", "[::1]:1": "[::1]:1", ":9464": ":9464"} {
		c := sample()
		c.Metrics.Listen = listen
		if err := c.Validate(); err != nil {
			t.Errorf("%q: %v", listen, err)
		}
		if got := c.Metrics.Address(); got != want {
			t.Errorf("%q: address %q, want %q", listen, got, want)
		}
	}
	for _, listen := range []string{"9464", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:0", "127.0.0.1:65536", "::1:9464"} {
		c := sample()
		c.Metrics.Listen = listen
		_, err := Parse([]byte(text(t, c)))
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "metrics.listen") || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%q: %v, want ErrConfig with the key and its line", listen, err)
		}
	}
}
