// SPDX-License-Identifier: Apache-2.0

package local

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// authorize accepts root, the daemon's user and the members of its group.
func authorize(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("ask who calls: %w", cerr)
	}
	if allowed(int(cred.Uid), int(cred.Gid), os.Geteuid(), os.Getegid(), groupsOf) {
		return nil
	}
	return fmt.Errorf("user %d with process %d is neither root nor the owner nor in the group", cred.Uid, cred.Pid)
}

func allowed(uid, gid, ownUID, ownGID int, groups func(uid int) []string) bool {
	return uid == 0 || uid == ownUID || gid == ownGID || slices.Contains(groups(uid), strconv.Itoa(ownGID))
}

// groupsOf returns the supplementary groups, which SO_PEERCRED does not tell.
func groupsOf(uid int) []string {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return nil
	}
	g, err := u.GroupIds()
	if err != nil {
		return nil
	}
	return g
}
