// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
)

// TestDropsRates: a rate that makes no sense costs nothing else, neither when it is
// written nor when it is read.
func TestDropsRates(t *testing.T) {
	v4, v6, odd := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64"), netip.MustParsePrefix("2001::/24")
	for name, change := range map[string]func(*Rate){
		"None":     func(r *Rate) { r.Rate = 0 },
		"Network":  func(r *Rate) { r.Network = netip.Prefix{} },
		"Remote":   func(r *Rate) { r.Remote = netip.MustParsePrefix("192.0.0.0/16") },
		"Unmasked": func(r *Rate) { r.Remote = netip.MustParsePrefix("192.0.2.7/24") },
		"Family":   func(r *Rate) { r.Remote = v6 },
		"V6Bits":   func(r *Rate) { r.Network, r.Remote = odd, odd },
		"Name":     func(r *Rate) { r.Uplink = strings.Repeat("x", maxName+1) },
		"UTF8":     func(r *Rate) { r.Uplink = "\xff" },
	} {
		t.Run(name, func(t *testing.T) {
			s := sample(1)
			s.Rates = []Rate{{Network: v4, Remote: v4, Rate: 1}, {Network: v4, Remote: v4, Rate: 2}}
			change(&s.Rates[0])
			got, err := Decode(encoded(t, s), "m1", self)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(s.Rates[1:], got.Rates, same); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	for name, change := range map[string]func(*rate){
		"Peer":    func(r *rate) { r.Peer = r.Peer[:31] },
		"Name":    func(r *rate) { r.Uplink = strings.Repeat("x", maxName+1) },
		"Network": func(r *rate) { r.Network = append(r.Network, 1) },
		"Empty":   func(r *rate) { r.Remote = nil },
		"Family":  func(r *rate) { r.Remote = make([]byte, 11-len(r.Remote)) },
		"None":    func(r *rate) { r.Rate = 0 },
	} {
		t.Run("Read"+name, func(t *testing.T) {
			raw, err := sample(1).encodeBody()
			if err != nil {
				t.Fatal(err)
			}
			var b body
			if err := cbor.Unmarshal(raw, &b); err != nil {
				t.Fatal(err)
			}
			change(&b.Rates[0])
			got, err := Decode(wrap(t, b), "m1", self)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(sample(1).Rates[1:], got.Rates, same); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
