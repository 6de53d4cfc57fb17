// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/bauxite-mesh/bauxite/conduit/identity"
	"github.com/bauxite-mesh/bauxite/dispatch/internal/authz"
)

const defaultKeyFileText = "~/.config/bauxite-dispatch/key"

// keyFile is what a file with an API key holds. The key may also stand in it
// alone.
type keyFile struct {
	key string
	// hub and pin are where the key is good, as far as they are known.
	hub, pin string
}

// keyFileName returns the file that c names, or the usual one.
func keyFileName(c *cli.Context) (string, error) {
	if f := c.String("key-file"); f != "" {
		return f, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", usagef("--key-file FILE is missing: %v", err)
	}
	return filepath.Join(dir, "bauxite-dispatch", "key"), nil
}

func readKeyFile(name string) (keyFile, error) {
	b, err := identity.ReadSecret(name)
	if err != nil {
		return keyFile{}, fmt.Errorf("read API key: %w", err)
	}
	k, err := parseKeyFile(b)
	if err != nil {
		return k, fmt.Errorf("read API key from %s: %w", name, err)
	}
	return k, nil
}

// parseKeyFile reads lines of a word and a value; those that begin with # are
// comments. The errors repeat nothing of the text.
func parseKeyFile(b []byte) (keyFile, error) {
	var k keyFile
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		word, value, _ := strings.Cut(line, " ")
		value = strings.TrimSpace(value)
		switch word {
		case "key":
			k.key = value
		case "hub":
			k.hub = value
		case "pin":
			k.pin = value
		default:
			if value != "" || k.key != "" {
				return keyFile{}, fmt.Errorf("line %d is neither key, hub nor pin", n)
			}
			k.key = word
		}
	}
	if err := sc.Err(); err != nil {
		return keyFile{}, err
	}
	if _, err := authz.ParseKey(k.key); err != nil {
		return keyFile{}, err
	}
	return k, nil
}

func (k keyFile) marshal() []byte {
	var b bytes.Buffer
	b.WriteString("# API key of bauxite-dispatch. Who has it can do what you can.\n")
	for _, l := range [][2]string{{"key", k.key}, {"hub", k.hub}, {"pin", k.pin}} {
		if l[1] != "" {
			fmt.Fprintf(&b, "%s %s\n", l[0], l[1])
		}
	}
	return b.Bytes()
}

// write makes the file, with mode 0600 and its directory with 0700.
func (k keyFile) write(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("write API key: %w", err)
	}
	if err := identity.WriteFile(name, k.marshal(), 0o600); err != nil {
		return fmt.Errorf("write API key: %w", err)
	}
	return nil
}

// mayWrite returns an error where name exists and c does not say --force.
func mayWrite(c *cli.Context, name string) error {
	if _, err := os.Lstat(name); err == nil && !c.Bool("force") {
		return failf(errConflict, "choose another file, or replace it with --force", "%s exists", name)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
