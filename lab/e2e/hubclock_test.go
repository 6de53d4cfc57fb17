// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bauxite-mesh/bauxite/lab/build"
	"github.com/bauxite-mesh/bauxite/lab/chaos"
)

// clockEnv names the file with the seconds, 8 bytes, that the clock of a hub is wrong by.
const clockEnv = "BAUXITE_LAB_CLOCK"

// clockSource is added to package time in the build of the hub for this test. The
// file is mapped, because the runtime calls Now where no system call is allowed.
const clockSource = `package time

import (
	"syscall"
	"unsafe"
)

var labClock = func() *int64 {
	name, ok := syscall.Getenv("` + clockEnv + `")
	if !ok {
		return new(int64)
	}
	fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}()
`

// wrongClockHub builds the hub with a time.Now that can be made wrong while the
// hub runs. The machine's clock is everybody's, a time namespace does not change
// what clock time it is, and the hub has no switch for it: so the standard library
// gets one, for this binary only.
func wrongClockHub(t *testing.T) string {
	t.Helper()
	root, err := build.Root()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	timeDir := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	src, err := os.ReadFile(filepath.Join(timeDir, "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	const call = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(src), call) != 1 {
		t.Fatal("time.Now of this Go release begins otherwise: adapt the test")
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(timeDir, "time.go"):      write("time.go", strings.Replace(string(src), call, call+"\tif labClock != nil {\n\t\tsec += *labClock\n\t}\n", 1)),
		filepath.Join(timeDir, "lab_clock.go"): write("lab_clock.go", clockSource),
	}})
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bauxite-dispatch")
	cmd := exec.CommandContext(within(t, 10*time.Minute), "go", "build", "-trimpath",
		"-overlay", write("overlay.json", string(overlay)), "-o", bin, "./cmd/bauxite-dispatch")
	cmd.Dir = filepath.Join(root, "dispatch")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build hub with a wrong clock: %v\n%s", err, out)
	}
	return bin
}

// TestClockJumps sets the hub's clock wrong, while it runs and over restarts. Two
// hours this way or that change nothing but times. Ten years back the hub issues
// nothing and does not start, and says why. With the clock put right all is there.
func TestClockJumps(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the standard library")
	}
	const years = 10 * 365 * 24 * time.Hour
	h := newBareHub(t)
	h.bin = wrongClockHub(t)
	file := filepath.Join(t.TempDir(), "offset")
	h.env = []string{clockEnv + "=" + file}
	set := func(d time.Duration) {
		t.Helper()
		f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(d/time.Second)), 0); err != nil {
			t.Fatal(err)
		}
	}
	set(-72 * time.Hour) // a mesh of some days
	h.start()
	h.stop()
	set(0)
	h.start()
	c := h.call()
	ctx := within(t, 2*time.Minute)
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
	first := func() { // its certificate was made under a right clock
		t.Helper()
		if err := c.Use(ctx, acked[0]); err != nil {
			t.Errorf("use a certificate: %v", err)
		}
	}
	for _, d := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour, 2 * time.Hour} {
		set(d)
		for range 3 {
			if err := join(); err != nil {
				t.Fatalf("join with the clock at %v: %v", d, err)
			}
		}
		first()
		h.kill()
		h.start()
		c = h.call()
		first()
		keepsRows(t, c, acked)
	}

	set(-years)
	err = join()
	if err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("join ten years ago = %v, want that the hub's clock is wrong", err)
	}
	keepsRows(t, c, acked) // operators are served
	deadline := time.NewTimer(startTime)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for said := false; !said; said = strings.Contains(h.stderr.String(), "clock jumped") {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("the log says nothing of the clock:\n%s", h.stderr)
		}
	}
	h.stop()
	h.refuses(exitClock, "clock is wrong", strconv.Itoa(time.Now().Add(-years).Year()), strconv.Itoa(time.Now().Year()), "time server")

	set(0)
	h.start()
	c = h.call()
	if err := join(); err != nil {
		t.Errorf("join with the clock put right: %v", err)
	}
	first()
	keepsRows(t, c, acked)
	h.stop()
	out, err := exec.CommandContext(ctx, h.bin, "audit", "verify", "--data", h.dir).CombinedOutput()
	if err != nil {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
}
