// SPDX-License-Identifier: Apache-2.0

// Package home is the directory of one node: where things lie in it, how an
// identity gets in as a whole or not at all, and who may use it now.
package home

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/edge/internal/config"
)

// Names inside a home.
const (
	CertsDir   = "certs"
	CAFile     = "certs/ca.crt"
	CertFile   = "certs/node.crt"
	KeyFile    = "certs/node.key"
	X25519File = "certs/x25519.key"
	PSKFile    = "psk"
	ConfigFile = "config.toml"
	SocketFile = "bauxite.sock"
	// SnapshotFile is what the node must know to start without its hub; the node
	// writes it.
	SnapshotFile = "state.cbor"
)

// Errors that callers branch on.
var (
	// ErrNotJoined tells that the home holds no identity.
	ErrNotJoined = errors.New("this machine has not joined a mesh")
	// ErrExists tells that the home holds an identity already.
	ErrExists = errors.New("this machine has an identity already")
	// ErrUnwritable tells that nothing can be written into the home.
	ErrUnwritable = errors.New("home directory is not writable")
	// ErrInUse tells that another process, mostly the daemon, holds the home.
	ErrInUse = errors.New("home directory is in use")
	// ErrPSK is returned for a pre-shared key that is not 32 bytes.
	ErrPSK = errors.New("malformed pre-shared key")
	// ErrIdentity is returned for an identity that contradicts itself, or whose
	// certificate the mesh's root does not vouch for.
	ErrIdentity = errors.New("unusable identity")
	// ErrExpired is returned with the identity when only its certificate's time
	// is wrong.
	ErrExpired = errors.New("node certificate is not valid now")
)

// Default returns the home that is meant where none is named: $BAUXITE_HOME, or
// /root/.bauxite for root, or .bauxite in the user's home.
func Default() (string, error) {
	if d := os.Getenv("BAUXITE_HOME"); d != "" {
		return filepath.Abs(d)
	}
	if os.Geteuid() == 0 {
		return "/root/.bauxite", nil
	}
	d, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find home directory: %w", err)
	}
	return filepath.Join(d, ".bauxite"), nil
}

// Node is an identity as it was loaded.
type Node struct {
	Config      *config.Config
	Keys        *identity.Keys
	Certificate *identity.Certificate
	Roots       *x509.CertPool
	PSK         []byte
	PSKEpoch    uint8
}

// TLS returns what the node shows to the hub.
func (n *Node) TLS() *tls.Certificate {
	return &tls.Certificate{Certificate: n.Certificate.Chain, PrivateKey: n.Keys.Ed25519}
}

// TLSCertificate is TLS for hub.Config.
func (n *Node) TLSCertificate() (*tls.Certificate, error) { return n.TLS(), nil }

// Joined reports whether dir holds an identity, complete or committed.
func Joined(dir string) bool {
	for _, name := range []string{ConfigFile, commitDir} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// Load reads and checks the identity in dir: permissions, that keys and
// certificate and configuration speak of one node, and that the root vouches for
// it. If only the certificate's time is wrong it returns the node together with
// an error that Is ErrExpired.
func Load(dir string, now time.Time) (*Node, error) {
	if err := recoverCommit(dir, nil); err != nil {
		return nil, err
	}
	cfg, err := config.Load(filepath.Join(dir, ConfigFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no %s in %s", ErrNotJoined, ConfigFile, dir)
	}
	if err != nil {
		return nil, err
	}
	n := &Node{Config: cfg}
	if n.Keys, err = identity.LoadKeys(filepath.Join(dir, KeyFile), filepath.Join(dir, X25519File)); err != nil {
		return nil, fmt.Errorf("load keys: %w", err)
	}
	ca, err := chain(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, err
	}
	n.Roots = x509.NewCertPool()
	for _, der := range ca {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrIdentity, CAFile, err)
		}
		n.Roots.AddCert(c)
	}
	crt, err := chain(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, err
	}
	if n.Certificate, err = identity.ParseCertificate(crt); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrIdentity, CertFile, err)
	}
	psk := cfg.PSK.File
	if psk == "" {
		psk = PSKFile
	}
	if !filepath.IsAbs(psk) {
		psk = filepath.Join(dir, psk)
	}
	if n.PSK, n.PSKEpoch, err = loadPSK(psk, cfg.PSK.Epoch); err != nil {
		return nil, err
	}
	return n, n.check(now)
}

func (n *Node) check(now time.Time) error {
	c := n.Certificate
	switch {
	case c.ID != n.Keys.ID():
		return fmt.Errorf("%w: %s is not for the keys beside it", ErrIdentity, CertFile)
	case n.Config.Node.ID != c.ID:
		return fmt.Errorf("%w: %s names another node than %s", ErrIdentity, ConfigFile, CertFile)
	}
	// Signatures first, at a time when they hold; then the time itself.
	if err := c.Verify(n.Roots, c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore)/2)); err != nil {
		return fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	if now.After(c.NotAfter) || now.Before(c.NotBefore) {
		return fmt.Errorf("%w: it is good from %s to %s, and the clock says %s", ErrExpired,
			c.NotBefore.UTC().Format(time.DateTime), c.NotAfter.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
	}
	return nil
}

func chain(name string) ([][]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("load certificates: %w", err)
	}
	der, err := identity.ParseChainPEM(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrIdentity, name, err)
	}
	return der, nil
}
