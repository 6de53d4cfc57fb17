// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// counter is a state that changes.
type counter struct {
	version atomic.Uint64
	takes   atomic.Int64
	err     atomic.Pointer[error]
}

func (c *counter) take(context.Context) (*Snapshot, error) {
	c.takes.Add(1)
	if err := c.err.Load(); err != nil {
		return nil, *err
	}
	if c.version.Load() == 0 {
		return nil, nil
	}
	return &Snapshot{MeshID: "m1", Self: self, Written: time.Now(), PolicyVersion: c.version.Load()}, nil
}

// saved returns the version in the file and when it was written; 0 without one.
func saved(t *testing.T, name string) (uint64, time.Time) {
	t.Helper()
	s, err := Load(name, "m1", self)
	if err != nil {
		t.Fatal(err)
	}
	if s == nil {
		return 0, time.Time{}
	}
	return s.PolicyVersion, s.Written
}

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "state.cbor")
		c := &counter{}
		k := NewKeeper(KeeperConfig{File: name, Take: c.take})
		step := func(version uint64, wait time.Duration, want uint64) {
			t.Helper()
			c.version.Store(version)
			k.Changed()
			time.Sleep(wait)
			synctest.Wait()
			if got, _ := saved(t, name); got != want {
				t.Errorf("%v after version %d: %d is saved, want %d", wait, version, got, want)
			}
		}
		time.Sleep(time.Hour)
		if c.takes.Load() != 0 {
			t.Error("taken without a change")
		}
		step(0, time.Second, 0) // nothing to keep yet
		step(1, 4*time.Second, 0)
		step(2, time.Second, 2) // both changes at once
		for i := range uint64(100) {
			step(3+i, 100*time.Millisecond, 2+(i+1)/50*50)
		}
		if n := c.takes.Load(); n != 4 {
			t.Errorf("taken %d times, want 4", n)
		}

		// What has not changed is not written.
		_, at := saved(t, name)
		step(102, 20*time.Second, 102)
		if _, again := saved(t, name); !again.Equal(at) {
			t.Errorf("written at %v and again at %v", at, again)
		}
		c.version.Store(103)
		if err := k.Close(); err != nil { // also without a word
			t.Fatal(err)
		}
		if got, _ := saved(t, name); got != 103 {
			t.Errorf("%d is saved at the end", got)
		}
		takes := c.takes.Load()
		k.Changed()
		if err := k.Close(); err != nil || c.takes.Load() != takes {
			t.Errorf("second Close = %v", err)
		}
	})
}

func TestKeeperFirstSaveIsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "state.cbor")
		c := &counter{}
		c.version.Store(1)
		k := NewKeeper(KeeperConfig{File: name, Take: c.take})
		defer k.Close()
		k.Changed()
		time.Sleep(DefaultEvery/10 + time.Millisecond)
		synctest.Wait()
		if got, _ := saved(t, name); got != 1 {
			t.Error("a node that crashes soon after its first start has saved nothing")
		}
	})
}

func TestKeeperRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "later")
		name := filepath.Join(dir, "state.cbor")
		c := &counter{}
		c.version.Store(1)
		var log bytes.Buffer
		k := NewKeeper(KeeperConfig{File: name, Take: c.take, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		k.Changed()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := strings.Count(log.String(), "state not saved"); n != 1 {
			t.Errorf("said %d times that it cannot save, want once:\n%s", n, log.String())
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(DefaultEvery)
		synctest.Wait()
		if got, _ := saved(t, name); got != 1 {
			t.Error("not saved when it could be")
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("said something of what went well:\n%s", log.String())
		}
		err := errors.New("x")
		c.err.Store(&err)
		if got := k.Close(); !errors.Is(got, err) {
			t.Errorf("Close = %v", got)
		}
		if n := strings.Count(log.String(), "\n"); n != 2 {
			t.Errorf("said nothing of another failure:\n%s", log.String())
		}
	})
}

func TestKeeperCloseDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := NewKeeper(KeeperConfig{File: filepath.Join(t.TempDir(), "s"), Take: func(ctx context.Context) (*Snapshot, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		k.Changed()
		time.Sleep(time.Minute)
		at := time.Now()
		if err := k.Close(); !errors.Is(err, context.Canceled) || time.Since(at) != takeTime {
			t.Errorf("Close = %v after %v", err, time.Since(at))
		}
	})
}
