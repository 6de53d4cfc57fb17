// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/internal/session"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wycheproof"
)

// Vectors whose additional data is as long as our header are opened as packets
// are, with a counter that the IV takes out again. Others are in package session.
func TestWycheproof(t *testing.T) {
	for suite, want := range map[wire.Suite][2]int{wire.SuiteChaCha: {25, 0}, wire.SuiteAES: {1, 0}, wire.SuiteFIPS: {1, 0}} {
		t.Run(suite.String(), func(t *testing.T) {
			if fips.Only() && suite != wire.SuiteFIPS {
				t.Skip("not approved in FIPS mode")
			}
			file := "aes_gcm"
			if suite == wire.SuiteChaCha {
				file = "chacha20_poly1305"
			}
			var n wycheproof.Count
			for _, g := range wycheproof.Load(t, file) {
				for _, v := range g.Tests {
					if g.KeySize != 256 || g.IVSize != 96 || len(v.AAD) != wire.HeaderLen {
						continue
					}
					n.Add(&v)
					const counter = 0x1234567
					b := slices.Concat(v.AAD, v.CT, v.Tag)
					var k session.LaneKey
					copy(k.Key[:], v.Key)
					copy(k.IV[:], v.IV)
					low := k.IV[4:]
					binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^counter)
					if suite == wire.SuiteFIPS {
						b = slices.Concat(v.AAD, v.IV, v.CT, v.Tag)
					}
					var r Receiver
					if err := r.Init(suite, &k); err != nil {
						t.Fatal(err)
					}
					got, err := r.Open(b, counter, new(Nonce))
					if v.Result == "valid" && (err != nil || !bytes.Equal(got, v.Msg)) || v.Result != "valid" && !errors.Is(err, ErrForged) {
						t.Errorf("%d (%s): %v, want %s", v.ID, v.Comment, err, v.Result)
					}
				}
			}
			n.Want(t, want[0], want[1], 0)
		})
	}
}
