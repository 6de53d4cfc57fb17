// SPDX-License-Identifier: Apache-2.0

package tun

import "github.com/songgao/water"

func waterConfig(cfg Config) water.Config {
	c := water.Config{DeviceType: water.TUN}
	c.Name = cfg.Name
	return c
}
