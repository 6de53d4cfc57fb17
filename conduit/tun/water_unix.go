// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !windows

package tun

import "github.com/songgao/water"

func waterConfig(Config) water.Config { return water.Config{DeviceType: water.TUN} }
