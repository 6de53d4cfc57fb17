// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tun

func openDefault(cfg Config) (Device, error) { return openWater(cfg) }
