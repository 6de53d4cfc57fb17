// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
)

// TestHoldsNoSecrets walks every type that can be in the file: a private or
// symmetric key has no place in any of them.
func TestHoldsNoSecrets(t *testing.T) {
	bad := []reflect.Type{reflect.TypeFor[ed25519.PrivateKey](), reflect.TypeFor[ecdh.PrivateKey](), reflect.TypeFor[identity.Keys]()}
	names := []string{"private", "secret", "psk", "session", "seed", "password", "traffickey", "chain"}
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type, string)
	walk = func(typ reflect.Type, at string) {
		if slices.Contains(bad, typ) {
			t.Errorf("%s is a %v", at, typ)
		}
		if seen[typ] {
			return
		}
		seen[typ] = true
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			walk(typ.Elem(), at)
		case reflect.Interface, reflect.Func, reflect.Chan:
			if typ.PkgPath() == "" || strings.HasPrefix(typ.PkgPath(), "github.com/bauxite-mesh") {
				t.Errorf("%s can hold anything", at)
			}
		case reflect.Struct:
			if typ.PkgPath() == "time" || typ.PkgPath() == "net/netip" || typ.PkgPath() == "crypto/ecdh" {
				return
			}
			for f := range typ.Fields() {
				for _, n := range names {
					if strings.Contains(strings.ToLower(f.Name), n) {
						t.Errorf("%s.%s sounds like a secret", at, f.Name)
					}
				}
				walk(f.Type, at+"."+f.Name)
			}
		default:
		}
	}
	walk(reflect.TypeFor[Snapshot](), "Snapshot")
	walk(reflect.TypeFor[body](), "body")

	b := encoded(t, sample(3))
	for i := range 3 {
		k := keysOf(i)
		if bytes.Contains(b, k.Ed25519.Seed()) || bytes.Contains(b, k.X25519.Bytes()) {
			t.Errorf("private key of peer %d is in the file", i)
		}
		if !bytes.Contains(b, k.X25519.PublicKey().Bytes()) { // the search can find something
			t.Errorf("public key of peer %d is not in the file", i)
		}
	}
}
