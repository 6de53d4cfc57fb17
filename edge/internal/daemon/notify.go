// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net"
	"os"
	"strconv"
	"time"
)

// notify tells systemd a state (sd_notify(3)); without systemd it does nothing.
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}

// watchdog answers systemd's watchdog twice per period until stop is called.
func watchdog() (stop func()) {
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	pid := os.Getenv("WATCHDOG_PID")
	if err != nil || usec <= 0 || (pid != "" && pid != strconv.Itoa(os.Getpid())) {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(time.Duration(usec) * time.Microsecond / 2)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				notify("WATCHDOG=1")
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}
