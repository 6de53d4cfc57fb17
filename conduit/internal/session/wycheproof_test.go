// SPDX-License-Identifier: Apache-2.0

package session

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"math/big"
	"slices"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/fips"
	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wire"
	"github.com/bauxite-mesh/bauxite/conduit/internal/wycheproof"
)

// The AEADs of all suites, as NewAEAD makes them. Keys of other sizes than ours
// are refused; nonces of other sizes cannot be expressed.
func TestWycheproofAEAD(t *testing.T) {
	for _, tc := range []struct {
		suite          wire.Suite
		file           string
		valid, invalid int
	}{
		{wire.SuiteChaCha, "chacha20_poly1305", 256, 60},
		{wire.SuiteAES, "aes_gcm", 39, 27},
		{wire.SuiteFIPS, "aes_gcm", 39, 27},
	} {
		t.Run(tc.suite.String(), func(t *testing.T) {
			if fips.Only() && tc.suite != wire.SuiteFIPS {
				if _, err := NewAEAD(tc.suite, make([]byte, 32)); err == nil {
					t.Error("a FIPS build has this cipher")
				}
				return
			}
			var n wycheproof.Count
			for _, g := range wycheproof.Load(t, tc.file) {
				for _, v := range g.Tests {
					a, err := NewAEAD(tc.suite, v.Key)
					if g.KeySize != 256 {
						if err == nil {
							t.Errorf("%d: a key of %d bits was taken", v.ID, g.KeySize)
						}
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					if g.IVSize != 96 {
						continue
					}
					n.Add(&v)
					nonce, sealed := []byte(v.IV), slices.Concat(v.CT, v.Tag)
					if a.NonceSize() == 0 {
						nonce, sealed = nil, slices.Concat(v.IV, sealed)
					}
					got, err := a.Open(nil, nonce, sealed, v.AAD)
					if (err == nil) != (v.Result == "valid") || err == nil && !bytes.Equal(got, v.Msg) {
						t.Errorf("%d (%s): open: %v, want %s", v.ID, v.Comment, err, v.Result)
					}
					if nonce != nil && v.Result == "valid" && !bytes.Equal(a.Seal(nil, nonce, v.Msg, v.AAD), sealed) {
						t.Errorf("%d (%s): seal gives other bytes", v.ID, v.Comment)
					}
				}
			}
			n.Want(t, tc.valid, tc.invalid, 0)
		})
	}
}

// Extract and expand of the schedule. Enforcement refuses keys below 112 bits,
// which the schedule never has.
func TestWycheproofHKDF(t *testing.T) {
	var n wycheproof.Count
	for _, g := range wycheproof.Load(t, "hkdf_sha256") {
		for _, v := range g.Tests {
			n.Add(&v)
			if fips.Enforced() && min(len(v.IKM), len(v.Salt)) < 14 {
				continue
			}
			got, err := hkdfExpand(extract(v.IKM, v.Salt), string(v.Info), v.Size)
			if (err == nil) != (v.Result == "valid") || !bytes.Equal(got, v.OKM) {
				t.Errorf("%d (%s): %x, %v; want %s", v.ID, v.Comment, got, err, v.Result)
			}
		}
	}
	n.Want(t, 83, 3, 0)
}

// The private keys go through the file in which a node keeps its own. A shared
// secret of zeros ends an attempt, though the project finds it acceptable.
func TestWycheproofX25519(t *testing.T) {
	var n wycheproof.Count
	zeros := 0
	for _, g := range wycheproof.Load(t, "x25519") {
		for _, v := range g.Tests {
			n.Add(&v)
			priv, err := fips.NewX25519PrivateKey(v.Private)
			if err != nil {
				t.Fatal(err)
			}
			priv = stored(t, priv)
			pub, err := fips.NewX25519PublicKey(v.Public)
			if err != nil {
				t.Fatal(err)
			}
			got, err := priv.ECDH(pub)
			if bytes.Equal(v.Shared, make([]byte, 32)) {
				zeros++
				if err == nil {
					t.Errorf("%d (%s): a shared secret of zeros was taken", v.ID, v.Comment)
				}
			} else if err != nil || !bytes.Equal(got, v.Shared) {
				t.Errorf("%d (%s): %x, %v", v.ID, v.Comment, got, err)
			}
		}
	}
	n.Want(t, 264, 0, 254)
	if zeros < 10 {
		t.Errorf("only %d shared secrets of zeros", zeros)
	}
}

// stored writes a key as a node keeps it and reads it back.
func stored(t *testing.T, k *ecdh.PrivateKey) *ecdh.PrivateKey {
	t.Helper()
	ed, x, err := (&identity.Keys{Ed25519: ed25519.NewKeyFromSeed(make([]byte, 32)), X25519: k}).MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := identity.ParseKeysPEM(ed, x)
	if err != nil {
		t.Fatal(err)
	}
	return keys.X25519
}

// verify frames what it is given, so the vectors go to what it calls. That it
// refuses what they are about is what TestVerifyMalleable shows.
func TestWycheproofEd25519(t *testing.T) {
	var n wycheproof.Count
	for _, g := range wycheproof.Load(t, "ed25519") {
		for _, v := range g.Tests {
			n.Add(&v)
			if verifyMessage(ed25519.PublicKey(g.PublicKey.PK), v.Msg, v.Sig) != (v.Result == "valid") {
				t.Errorf("%d (%s): want %s", v.ID, v.Comment, v.Result)
			}
		}
	}
	n.Want(t, 88, 62, 0)
}

// A signature has one form, and no length but its own.
func TestVerifyMalleable(t *testing.T) {
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := [32]byte{1, 2, 3}
	sig := sign(priv, "invite", h)
	if !verify(pub, "invite", h, sig[:]) {
		t.Fatal("the genuine signature is refused")
	}
	// S + L, where L is the order of the base point, is the same scalar.
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	le := slices.Clone(sig[32:])
	slices.Reverse(le)
	s := new(big.Int).Add(new(big.Int).SetBytes(le), order).FillBytes(make([]byte, 32))
	slices.Reverse(s)
	for name, bad := range map[string][]byte{
		"S + L": slices.Concat(sig[:32], s), "short": sig[:63], "long": append(slices.Clone(sig[:]), 0), "none": nil,
	} {
		if verify(pub, "invite", h, bad) {
			t.Errorf("%s: taken", name)
		}
	}
	if verify(pub, "offer", h, sig[:]) || verify(pub, "invite", [32]byte{}, sig[:]) {
		t.Error("a signature passes for another's")
	}
}

// Decapsulation, and the check of encapsulation keys that a handshake makes on
// what it receives.
func TestWycheproofMLKEM(t *testing.T) {
	var n wycheproof.Count
	for _, file := range []string{"mlkem_768", "mlkem_768_keygen_seed"} {
		for _, g := range wycheproof.Load(t, file) {
			for _, v := range g.Tests {
				n.Add(&v)
				dk, err := mlkem.NewDecapsulationKey768(v.Seed)
				if err == nil && v.Result == "valid" && !bytes.Equal(dk.EncapsulationKey().Bytes(), v.EK) {
					t.Errorf("%s %d: another encapsulation key", file, v.ID)
				}
				var ss []byte
				if err == nil && file == "mlkem_768" {
					ss, err = dk.Decapsulate(v.C)
				}
				if (err == nil) != (v.Result == "valid") || err == nil && !bytes.Equal(ss, v.KEMSS) {
					t.Errorf("%s %d (%s): %v, want %s", file, v.ID, v.Comment, err, v.Result)
				}
			}
		}
	}
	n.Want(t, 253, 40, 0)

	n = wycheproof.Count{}
	for _, g := range wycheproof.Load(t, "mlkem_768_encaps") {
		for _, v := range g.Tests {
			n.Add(&v)
			ek, err := mlkem.NewEncapsulationKey768(v.EK)
			if (err == nil) != (v.Result == "valid") {
				t.Errorf("encaps %d (%s): %v, want %s", v.ID, v.Comment, err, v.Result)
			}
			if err != nil || fips.Enforced() { // which refuses chosen randomness
				continue
			}
			ss, ct, err := mlkemtest.Encapsulate768(ek, v.M)
			if err != nil || !bytes.Equal(ss, v.KEMSS) || !bytes.Equal(ct, v.C) {
				t.Errorf("encaps %d (%s): other secret or ciphertext, %v", v.ID, v.Comment, err)
			}
		}
	}
	n.Want(t, 133, 132, 0)
}
