// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"strconv"
)

// Metrics says where Prometheus may read the node's metrics.
type Metrics struct {
	// Listen is the TCP address of plain HTTP, such as "127.0.0.1:9464"; empty or
	// "none" means nowhere.
	Listen string `toml:"listen,omitempty"`
}

// Address returns the address in force; empty where there is to be none.
func (m Metrics) Address() string {
	if m.Listen == "none" {
		return ""
	}
	return m.Listen
}

func (c *Config) checkMetrics() error {
	addr := c.Metrics.Address()
	if addr == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
		return &valueError{key: "metrics.listen", err: fmt.Errorf("%.64q is not host:port, such as \"127.0.0.1:9464\"", addr)}
	}
	return nil
}
