// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/chaos"
	dispatchv1 "github.com/bauxite-mesh/bauxite/proto/gen/bauxite/dispatch/v1"
)

// Exit codes of bauxite-dispatch serve, as "bauxite-dispatch help" has them.
const (
	exitInUse    = 10
	exitPort     = 11
	exitFull     = 12
	exitReadOnly = 13
	exitDamaged  = 14
	exitNewer    = 15
	exitMissing  = 19
	exitClock    = 20
)

// TestDiskFull fills the hub's disk while machines join: they are told why they
// cannot, readers are served, and when there is room again the hub goes on by
// itself, with every node that it had acknowledged.
func TestDiskFull(t *testing.T) {
	mounts(t)
	h := newBareHub(t)
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h.shell = `mount -t tmpfs -o size=8m,mode=0700 tmpfs "$D"`
	h.start()
	c := h.call()
	ctx := within(t, time.Minute)
	token, err := c.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var acked []*chaos.Machine
	join := func() error {
		m, err := c.Join(ctx, token)
		if err == nil {
			acked = append(acked, m)
		}
		return err
	}
	for range 10 {
		if err := join(); err != nil {
			t.Fatal(err)
		}
	}
	ballast := h.inside("ballast")
	fill(t, ballast, 100<<10)
	var full error
	for range 2000 {
		if full = join(); full != nil {
			break
		}
	}
	if reasonOf(full) != dispatchv1.ErrorReason_ERROR_REASON_STORAGE {
		t.Fatalf("join on a full disk = %v (%v), want reason STORAGE", full, reasonOf(full))
	}
	fill(t, ballast, 0)
	for range 20 { // one or the other may still find room in the log
		if err := join(); err != nil && reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_STORAGE {
			t.Fatalf("join on a full disk = %v, want reason STORAGE", err)
		}
	}
	if _, err := c.Token(ctx); err != nil && reasonOf(err) != dispatchv1.ErrorReason_ERROR_REASON_STORAGE {
		t.Errorf("token on a full disk = %v, want reason STORAGE", err)
	}
	keeps(t, c, acked) // readers are served
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := join(); err != nil {
			t.Fatalf("join when there is room again: %v", err)
		}
	}
	t.Logf("%d nodes acknowledged", len(acked))
	keeps(t, c, acked)

	// The same files again, after a crash.
	after := newBareHub(t)
	copyDir(t, h.inside(), after.dir)
	h.kill()
	after.addr = h.addr
	after.start()
	keeps(t, after.call(), acked)
}

// TestStartOnFullDisk starts hubs where there is no room: a new one cannot, and
// one that has worked before comes back with all it had once there is room.
func TestStartOnFullDisk(t *testing.T) {
	mounts(t)
	t.Run("first", func(t *testing.T) {
		h := newBareHub(t)
		if err := os.MkdirAll(h.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		h.shell = `mount -t tmpfs -o size=1m,mode=0700 tmpfs "$D"; cat /dev/zero >"$D/ballast" 2>/dev/null || true`
		h.refuses(exitFull, "no space", "make room")
	})
	t.Run("later", func(t *testing.T) {
		h, ms := lived(t, 20)
		h.shell = `mkdir /run/bxfull; mount -t tmpfs -o size=8m,mode=0700 tmpfs /run/bxfull; cp -a "$D/." /run/bxfull/; ` +
			`cat /dev/zero >/run/bxfull/ballast 2>/dev/null || true; mount --bind /run/bxfull "$D"`
		h.shell = strings.Replace(h.shell, "mkdir /run/bxfull", `mount -t tmpfs tmpfs /run; mkdir /run/bxfull`, 1)
		h.refuses(exitFull, h.dir, "make room")
		h.shell = ""
		h.start()
		keeps(t, h.call(), ms)
	})
}

// TestReadOnlyDirectory starts a hub on a file system that is mounted read-only.
func TestReadOnlyDirectory(t *testing.T) {
	mounts(t)
	h, ms := lived(t, 3)
	h.shell = `mount --bind "$D" "$D"; mount -o remount,ro,bind "$D"`
	h.refuses(exitReadOnly, "read-only", h.dir)
	h.shell = ""
	h.start()
	keeps(t, h.call(), ms)
}

// TestPortInUse occupies each of the hub's ports in turn.
func TestPortInUse(t *testing.T) {
	tcp, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for flag, addr := range map[string]string{
		"--listen": tcp.Addr().String(), "--admin-listen": tcp.Addr().String(), "--metrics-listen": tcp.Addr().String(),
		"--stun-listen": udp.LocalAddr().String(),
	} {
		t.Run(flag, func(t *testing.T) {
			h := newBareHub(t)
			h.extra = []string{flag, addr}
			h.refuses(exitPort, addr, "in use", flag)
		})
	}
}

// TestSecondHub starts a second hub on the data directory of a running one.
func TestSecondHub(t *testing.T) {
	h := newBareHub(t)
	h.start()
	c := h.call()
	second := newBareHub(t)
	second.dir = h.dir
	second.refuses(exitInUse, h.dir, "another hub")
	if _, err := c.Token(within(t, startTime)); err != nil {
		t.Errorf("the first hub after that: %v", err)
	}
}

// TestDamagedDirectory starts the hub on what broken disks, wrong copies and newer
// programs leave, and then on the same files put right again.
func TestDamagedDirectory(t *testing.T) {
	database := func(f func(t *testing.T, path string)) func(*testing.T, string) {
		return func(t *testing.T, dir string) { t.Helper(); f(t, filepath.Join(dir, "dispatch.db")) }
	}
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		do    func(t *testing.T, dir string)
		code  int // 0 starts, with all that there was
		texts []string
	}{
		"pages in the middle": {database(func(t *testing.T, p string) {
			for at := size(t, p) / 3 &^ 4095; at < size(t, p)*2/3; at += 4096 {
				scribble(t, p, at, strings.Repeat("damage! ", 512))
			}
		}), exitDamaged, []string{"dispatch.db", "damaged", "restore"}},
		"truncated": {database(func(t *testing.T, p string) {
			if err := os.Truncate(p, size(t, p)/2&^4095); err != nil {
				t.Fatal(err)
			}
		}), exitDamaged, []string{"dispatch.db", "damaged", "restore"}},
		"emptied": {database(func(t *testing.T, p string) {
			if err := os.Truncate(p, 0); err != nil {
				t.Fatal(err)
			}
		}), exitMissing, []string{"dispatch.db", "restore"}},
		"header zeroed": {
			database(func(t *testing.T, p string) { scribble(t, p, 0, strings.Repeat("\x00", 100)) }),
			exitDamaged,
			[]string{"dispatch.db", "damaged", "restore"},
		},
		"log of garbage": {database(func(t *testing.T, p string) { scribble(t, p+"-wal", 0, strings.Repeat("garbage ", 9000)) }), 0, nil},
		"no database at all": {database(func(t *testing.T, p string) {
			if err := os.WriteFile(p, []byte("hello\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}), exitDamaged, []string{"dispatch.db", "restore"}},
		"foreign database": {database(func(t *testing.T, p string) {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
			execSQL(t, p, `CREATE TABLE recipes (name TEXT)`)
		}), exitDamaged, []string{"dispatch.db", "not a database of a hub", "restore"}},
		"newer schema": {database(func(t *testing.T, p string) {
			execSQL(t, p, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)`)
		}), exitNewer, []string{"dispatch.db", "schema version 999", "restore"}},
		"lost database":          {remove("dispatch.db"), exitMissing, []string{"dispatch.db", "restore"}},
		"lost root certificate":  {remove("ca/root.crt"), exitMissing, []string{"root.crt", "restore"}},
		"lost intermediate":      {remove("ca/intermediate.crt"), exitMissing, []string{"intermediate.crt", "restore"}},
		"lost intermediate key":  {remove("ca/intermediate.key"), exitMissing, []string{"intermediate.key", "restore"}},
		"root key moved offline": {remove("ca/root.key"), 0, nil},
		"lost mesh key":          {remove("psk"), exitMissing, []string{"psk", "restore"}},
	} {
		t.Run(name, func(t *testing.T) {
			h, ms := lived(t, 40)
			good := filepath.Join(filepath.Dir(h.dir), "good")
			copyDir(t, h.dir, good)
			c.do(t, h.dir)
			if c.code != 0 {
				h.refuses(c.code, c.texts...)
				h.refuses(c.code, c.texts...) // nor does the second attempt make it worse
				if err := errors.Join(os.RemoveAll(h.dir), os.Rename(good, h.dir)); err != nil {
					t.Fatal(err)
				}
			}
			h.start()
			keeps(t, h.call(), ms)
		})
	}
}
