// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tun

import "github.com/songgao/water"

func openDefault(cfg Config) (Device, error) { return openWater(cfg) }

func waterConfig(Config) water.Config { return water.Config{DeviceType: water.TUN} }
