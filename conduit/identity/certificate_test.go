// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseCertificate(t *testing.T) {
	ca, keys := newAuthority(t), newKeys(t)
	leaf := ca.issue(t, keys, nil)
	chain := [][]byte{leaf.Raw, ca.inter.Raw}
	c, err := ParseCertificate(chain)
	if err != nil {
		t.Fatal(err)
	}
	want := wanted(keys)
	want.Chain = chain
	same := cmp.Options{
		cmpopts.IgnoreUnexported(Certificate{}),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	}
	if c.X25519 == nil || !c.X25519.Equal(want.X25519) || c.Serial.Cmp(want.Serial) != 0 {
		t.Errorf("X25519 or serial differ")
	}
	want.X25519, want.Serial = c.X25519, c.Serial
	if !cmp.Equal(c, want, same, cmpopts.IgnoreFields(Certificate{}, "X25519", "Serial")) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	alone, err := FromX509(leaf)
	if err != nil || len(alone.Chain) != 1 || alone.ID != c.ID {
		t.Errorf("FromX509 = %+v, %v", alone, err)
	}
}

func TestParseCertificateRefuses(t *testing.T) {
	ca, keys := newAuthority(t), newKeys(t)
	otherID := newKeys(t).ID()
	v4, v6 := net.ParseIP("10.66.0.1").To4(), net.ParseIP("fd00::1")
	for name, spoil := range map[string]func(*x509.Certificate){
		"no X25519":        func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"X25519 not DER":   func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{4} },
		"X25519 trailing":  func(c *x509.Certificate) { c.ExtraExtensions[0].Value = append(c.ExtraExtensions[0].Value, 0) },
		"X25519 short":     func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{4, 2, 1, 2} },
		"other peer's URI": func(c *x509.Certificate) { c.URIs = []*url.URL{SPIFFE("farm", otherID)} },
		"no URI":           func(c *x509.Certificate) { c.URIs = nil },
		"two URIs":         func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"https URI":        func(c *x509.Certificate) { c.URIs[0].Scheme = "https" },
		"URI with query":   func(c *x509.Certificate) { c.URIs[0].RawQuery = "a=b" },
		"URI with user":    func(c *x509.Certificate) { c.URIs[0].User = url.User("root") },
		"URI without mesh": func(c *x509.Certificate) { c.URIs[0].Host = "" },
		"DNS name":         func(c *x509.Certificate) { c.DNSNames = []string{"hub.example"} },
		"mail address":     func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.org"} },
		"no address":       func(c *x509.Certificate) { c.IPAddresses = nil },
		"IPv6 only":        func(c *x509.Certificate) { c.IPAddresses = []net.IP{v6} },
		"two IPv4":         func(c *x509.Certificate) { c.IPAddresses = []net.IP{v4, v4} },
		"two IPv6":         func(c *x509.Certificate) { c.IPAddresses = []net.IP{v4, v6, v6} },
		"a CA":             func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			leaf := ca.issue(t, keys, spoil)
			if c, err := ParseCertificate([][]byte{leaf.Raw}); !errors.Is(err, ErrCertificate) || c != nil {
				t.Errorf("ParseCertificate = %+v, %v, want ErrCertificate", c, err)
			}
		})
	}
	t.Run("ECDSA key", func(t *testing.T) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tmpl, _ := wanted(keys).Template()
		der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.inter, k.Public(), ca.key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseCertificate([][]byte{der}); !errors.Is(err, ErrCertificate) {
			t.Errorf("ParseCertificate = %v, want ErrCertificate", err)
		}
	})
	leaf := ca.issue(t, keys, nil).Raw
	for name, chain := range map[string][][]byte{
		"empty":       nil,
		"too long":    {leaf, leaf, leaf, leaf},
		"not DER":     {[]byte("leaf")},
		"trailing":    {append(bytes.Clone(leaf), 0)},
		"big leaf":    {make([]byte, MaxCertificate+1)},
		"big issuer":  {leaf, make([]byte, MaxCertificate+1)},
		"issuer only": {ca.inter.Raw},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseCertificate(chain); !errors.Is(err, ErrCertificate) {
				t.Errorf("ParseCertificate = %v, want ErrCertificate", err)
			}
		})
	}
}

func TestTemplateRefuses(t *testing.T) {
	keys := newKeys(t)
	for name, spoil := range map[string]func(*Certificate){
		"no Ed25519":    func(c *Certificate) { c.Ed25519 = nil },
		"short Ed25519": func(c *Certificate) { c.Ed25519 = c.Ed25519[1:] },
		"no X25519":     func(c *Certificate) { c.X25519 = nil },
		"no address":    func(c *Certificate) { c.Virtual4 = netip.Addr{} },
		"IPv6 for IPv4": func(c *Certificate) { c.Virtual4 = c.Virtual6 },
		"IPv4 for IPv6": func(c *Certificate) { c.Virtual6 = c.Virtual4 },
		"mapped IPv4":   func(c *Certificate) { c.Virtual6 = netip.MustParseAddr("::ffff:10.66.0.1") },
	} {
		t.Run(name, func(t *testing.T) {
			c := wanted(keys)
			spoil(c)
			if tmpl, err := c.Template(); !errors.Is(err, ErrCertificate) || tmpl != nil {
				t.Errorf("Template = %v, %v, want ErrCertificate", tmpl, err)
			}
		})
	}
	c := wanted(keys)
	c.Virtual6 = netip.Addr{}
	if tmpl, err := c.Template(); err != nil || len(tmpl.IPAddresses) != 1 {
		t.Errorf("without IPv6: %v, %v", tmpl, err)
	}
}

func TestVerify(t *testing.T) {
	ca, other, keys := newAuthority(t), newAuthority(t), newKeys(t)
	leaf := ca.issue(t, keys, nil)
	server := ca.issue(t, keys, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	during := epoch.Add(time.Minute)
	for name, tc := range map[string]struct {
		chain [][]byte
		roots *x509.CertPool
		now   time.Time
		ok    bool
	}{
		"good":             {[][]byte{leaf.Raw, ca.inter.Raw}, ca.roots(), during, true},
		"root in chain":    {[][]byte{leaf.Raw, ca.inter.Raw, ca.root.Raw}, ca.roots(), during, true},
		"no intermediate":  {[][]byte{leaf.Raw}, ca.roots(), during, false},
		"other mesh":       {[][]byte{leaf.Raw, ca.inter.Raw}, other.roots(), during, false},
		"root from chain":  {[][]byte{leaf.Raw, ca.inter.Raw, ca.root.Raw}, other.roots(), during, false},
		"other issuer":     {[][]byte{leaf.Raw, other.inter.Raw}, other.roots(), during, false},
		"expired":          {[][]byte{leaf.Raw, ca.inter.Raw}, ca.roots(), epoch.Add(2 * time.Hour), false},
		"not yet":          {[][]byte{leaf.Raw, ca.inter.Raw}, ca.roots(), epoch.Add(-time.Minute), false},
		"server key usage": {[][]byte{server.Raw, ca.inter.Raw}, ca.roots(), during, false},
		"issuer not DER":   {[][]byte{leaf.Raw, []byte("x")}, ca.roots(), during, false},
		"no roots":         {[][]byte{leaf.Raw, ca.inter.Raw}, x509.NewCertPool(), during, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := ParseCertificate(tc.chain)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Verify(tc.roots, tc.now)
			if (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrCertificate) {
				t.Errorf("Verify = %v, want ok %v", err, tc.ok)
			}
		})
	}
	t.Run("made by hand", func(t *testing.T) {
		if err := wanted(keys).Verify(ca.roots(), during); !errors.Is(err, ErrCertificate) {
			t.Errorf("Verify = %v, want ErrCertificate", err)
		}
	})
}

func TestChainPEM(t *testing.T) {
	ca := newAuthority(t)
	leaf := ca.issue(t, newKeys(t), nil)
	text := MarshalChainPEM([][]byte{leaf.Raw, ca.inter.Raw})
	one := string(MarshalChainPEM([][]byte{leaf.Raw}))
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}))
	for name, tc := range map[string]struct {
		in string
		n  int // certificates; 0 is an error
	}{
		"two":             {string(text), 2},
		"blank lines":     {"\n\n" + one + "\r\n\n" + one + " \n", 2},
		"no end of line":  {strings.TrimSpace(one), 1},
		"most":            {strings.Repeat(one, MaxChain+1), MaxChain + 1},
		"too many":        {strings.Repeat(one, MaxChain+2), 0},
		"empty":           {"", 0},
		"blank":           {" \n", 0},
		"no PEM":          {"leaf", 0},
		"key":             {key, 0},
		"key behind":      {one + key, 0},
		"text before":     {"leaf\n" + one, 0},
		"text between":    {one + "issuer\n" + one, 0},
		"text behind":     {one + "issuer\n", 0},
		"damaged first":   {strings.Replace(one, "M", "!", 1) + one, 0},
		"first cut short": {one[:len(one)/2] + "\n" + one, 0},
		"headers":         {strings.Replace(one, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1), 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseChainPEM([]byte(tc.in))
			if len(got) != tc.n || (err == nil) != (tc.n > 0) || err != nil && !errors.Is(err, ErrCertificate) {
				t.Fatalf("ParseChainPEM = %d certificates, %v, want %d", len(got), err, tc.n)
			}
			for _, der := range got {
				if !bytes.Equal(der, leaf.Raw) && !bytes.Equal(der, ca.inter.Raw) {
					t.Error("a certificate changed")
				}
			}
		})
	}
}

func TestPin(t *testing.T) {
	ca := newAuthority(t)
	if p := Pin(ca.root); len(p) != tokenPinLen || p == Pin(ca.inter) {
		t.Errorf("Pin = %q", p)
	}
	// A token takes the pin as it is.
	tok, err := NewToken(Pin(ca.root), "farm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseToken(tok.String()); err != nil {
		t.Error(err)
	}
}

func TestValidName(t *testing.T) {
	for s, want := range map[string]bool{
		"a": true, "robot-1": true, "1": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "Robot": false, "a.b": false, "a_b": false,
		"a b": false, "a\n": false, "ä": false, strings.Repeat("a", 64): false,
	} {
		if got := ValidName(s); got != want {
			t.Errorf("ValidName(%q) = %v, want %v", s, got, want)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	ca, keys := newAuthority(f), newKeys(f)
	leaf := ca.issue(f, keys, nil)
	f.Add(leaf.Raw, ca.inter.Raw)
	f.Add(ca.inter.Raw, ca.root.Raw)
	f.Add(ca.issue(f, keys, func(c *x509.Certificate) { c.URIs = nil }).Raw, []byte{})
	f.Add([]byte{}, []byte{})
	roots := ca.roots()
	f.Fuzz(func(t *testing.T, leaf, inter []byte) {
		c, err := ParseCertificate([][]byte{leaf, inter})
		if err != nil {
			if !errors.Is(err, ErrCertificate) || c != nil {
				t.Fatalf("%+v, %v", c, err)
			}
			return
		}
		if c.ID != NewPeerID(c.Ed25519, c.X25519.Bytes()) || !c.Virtual4.Is4() || c.MeshID == "" {
			t.Fatalf("an inconsistent certificate was accepted: %+v", c)
		}
		if c.Virtual6.IsValid() && (!c.Virtual6.Is6() || c.Virtual6.Is4In6()) {
			t.Fatalf("IPv6 address %s", c.Virtual6)
		}
		_ = c.Verify(roots, epoch)
	})
}

func FuzzParseChainPEM(f *testing.F) {
	ca := newAuthority(f)
	f.Add(MarshalChainPEM([][]byte{ca.inter.Raw, ca.root.Raw}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAQ==\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("text\n-----BEGIN CERTIFICATE-----\nAQ==\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN X-----\n-----BEGIN CERTIFICATE-----\nAQ==\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		chain, err := ParseChainPEM(text)
		if err != nil {
			if !errors.Is(err, ErrCertificate) || chain != nil {
				t.Fatalf("%d certificates, %v", len(chain), err)
			}
			return
		}
		if n := bytes.Count(text, []byte("-----BEGIN")); len(chain) != n || n > MaxChain+1 {
			t.Fatalf("%d certificates of %d blocks", len(chain), n)
		}
		back, err := ParseChainPEM(MarshalChainPEM(chain))
		if err != nil || !cmp.Equal(back, chain, cmpopts.EquateEmpty()) {
			t.Fatalf("reads back as %x, %v, want %x", back, err, chain)
		}
	})
}
